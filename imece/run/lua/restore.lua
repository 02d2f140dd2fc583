-- Puts jobs back that are in no list: neither in the queue nor waiting, nor held by a worker.
-- A job that was there after all is then there twice, which `take` finds out.
--
-- KEYS 1 run  2 queue  3 leases (rq:wip)
-- ARGV 1 the run's entries in the queue as the caller has counted them, then fields
-- Returns how many were put back.
local run, queue, leases = KEYS[1], KEYS[2], KEYS[3]
if not is_on(redis.call('HGET', run, 'state')) then
  return 0
end
redis.call('HSET', run, 'window', ARGV[1])
local restored = 0
for index = 2, #ARGV do
  local field = ARGV[index]
  local holders = redis.call('HGET', run .. ':holders', field) or ''
  local member = job_id(run, field) .. ':' .. string.match(holders, '[^,]*$')
  if redis.call('HEXISTS', run .. ':jobs', field) == 1 and not redis.call('ZSCORE', leases, member)
  then
    redis.call('RPUSH', run .. ':waiting', field)
    restored = restored + 1
  end
end
refill(run, queue)
keep_new(run)
return restored
