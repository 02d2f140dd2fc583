-- A sign of life of a producer that is listing.
--
-- KEYS 1 claim
-- ARGV 1 token of the producer  2 seconds until the next one is overdue
-- Returns 1, or 0 if the claim is no longer this producer's.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then
  return 0
end
return redis.call('EXPIRE', KEYS[1], ARGV[2])
