#!lua flags=allow-oom
-- Whether this worker is the one that looks for dead workers and lost jobs. It stays the one while it
-- asks again in time.
--
-- KEYS 1 sweeper
-- ARGV 1 worker  2 milliseconds until it has to ask again
local holder = redis.call('GET', KEYS[1])
-- One that never ends was not made here, and would keep everybody from looking.
if holder and holder ~= ARGV[1] and redis.call('TTL', KEYS[1]) >= 0 then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
