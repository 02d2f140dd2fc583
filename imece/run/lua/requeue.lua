-- Puts a job of a dead worker back to the front of the queue, if nothing has changed since the
-- caller looked: a lease with another expiry, or an id no longer where it was, is left alone.
--
-- KEYS 1 run  2 queue  3 leases (rq:wip) or intermediate list
-- ARGV 1 'lease' or 'moving'  2 the entry there: a member of the leases, a job id
--      3 its expiry, as read  4 field of the job; '': it is no bucket job
-- Returns 'requeued', 'kept' (its run is not on; the job has its cursor, and what its worker has left),
-- 'dropped' (the job is no more) or 'changed'.
local run, field = KEYS[1], ARGV[4]
if ARGV[1] == 'lease' then
  local expiry = redis.call('ZSCORE', KEYS[3], ARGV[2])
  if not expiry or tonumber(expiry) ~= tonumber(ARGV[3]) then
    return 'changed'
  end
  redis.call('ZREM', KEYS[3], ARGV[2])
elseif redis.call('LREM', KEYS[3], 1, ARGV[2]) == 0 then
  return 'changed'
end
if field == '' or misfit(run) then
  return 'dropped'
end
local state = redis.call('HGET', run, 'state')
if not state or redis.call('HEXISTS', run .. ':jobs', field) == 0 then
  return 'dropped'
end
note_current(run, field, '')
if ARGV[1] == 'moving' then
  count_window(run, -1) -- it was counted while it was in the queue
end
put_back(run, KEYS[2], state, field, 'LPUSH')
return is_on(state) and 'requeued' or 'kept'
