-- Puts a job of a dead worker back to the front of the queue, if nothing has changed since the
-- caller looked: a lease with another expiry, or an id no longer where it was, is left alone.
--
-- KEYS 1 queue  2 leases (rq:wip) or intermediate list  3 the job's hash
-- ARGV 1 job id  2 'lease' or 'moving'  3 member of the leases  4 its expiry, as read
-- Returns 'requeued', 'dropped' (the job is no more) or 'changed'.
if ARGV[2] == 'lease' then
  local expiry = redis.call('ZSCORE', KEYS[2], ARGV[3])
  if not expiry or tonumber(expiry) ~= tonumber(ARGV[4]) then
    return 'changed'
  end
  redis.call('ZREM', KEYS[2], ARGV[3])
elseif redis.call('LREM', KEYS[2], 1, ARGV[1]) == 0 then
  return 'changed'
end
if redis.call('EXISTS', KEYS[3]) == 0 then
  return 'dropped'
end
redis.call('HSET', KEYS[3], 'status', 'queued', 'worker_name', '')
redis.call('LPUSH', KEYS[1], ARGV[1])
return 'requeued'
