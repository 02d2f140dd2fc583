-- Takes a malformed job out of the way: its id and what is wrong go to the list of refused jobs.
--
-- KEYS 1 intermediate list  2 refused list  3 the job's key, whatever it holds  4 leases (rq:wip)
-- ARGV 1 job id  2 record, JSON  3 TTL of the list, s  4 how many records are kept
--      5 the lease that was taken on it, or ''
redis.call('LREM', KEYS[1], 1, ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[5])
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('LTRIM', KEYS[2], 0, ARGV[4] - 1)
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[3], ARGV[3])
return 1
