-- Removes what is no bucket job from the queue: its id and what is wrong go to the list of refused ones.
--
-- KEYS 1 intermediate list  2 refused list  3 leases (rq:wip)
-- ARGV 1 what was popped  2 record, JSON  3 TTL of the list, s  4 how many records are kept
--      5 the lease that was taken on it, or ''
redis.call('LREM', KEYS[1], 1, ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[5])
if fits(KEYS[2], 'list') then
  redis.call('LPUSH', KEYS[2], ARGV[2])
  redis.call('LTRIM', KEYS[2], 0, ARGV[4] - 1)
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return 1
