-- Turns a popped bucket job into a held one, if it is still ours to take.
--
-- KEYS 1 run  2 intermediate list  3 leases (rq:wip)  4 queue
-- ARGV 1 job id  2 execution  3 lease, s  4 worker  5 field of the job  6 part  7 bucket
--      8 '1' if this worker leaves the run to others for now
-- Returns {'taken', cursor, earlier holders, parameters, manifest, length of the queue, when the
-- round was enqueued if its producer has not seen the outputs and this is its first job, or '', server's
-- time, round}, or
-- {why not}: 'lost' (another worker has it), 'gone' (no such run or job), 'later' (the run pauses; the
-- job has been put back), {'damaged', what helps, what is wrong}, or the state of the run.
local run, queue, field = KEYS[1], KEYS[4], ARGV[5]
if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 0 then
  return {'lost'}
end
local helps, what = damage(run)
if what then
  return {'damaged', helps, what}
end
local state, parameters, unseen, not_before, window, round =
  unpack(redis.call('HMGET', run, 'state', 'parameters', 'unseen', 'not_before', 'window', 'round'))
if not state then
  return {'gone'}
end
count_window(run, -1)
local cursor = redis.call('HGET', run .. ':jobs', field)
if not cursor then
  if is_on(state) then
    refill(run, queue)
  end
  return {'gone'}
end
if not is_on(state) then
  put_back(run, queue, state, field, 'LPUSH')
  return {state}
end
local time = now()
local earlier = redis.call('HGET', run .. ':holders', field) or ''
if redis.call('ZSCORE', KEYS[3], ARGV[1] .. ':' .. string.match(earlier, '[^,]*$')) then
  return {'lost'} -- it was in the queue twice
end
if ARGV[8] == '1' then
  put_back(run, queue, state, field, 'RPUSH')
  return {'later'}
end
if time < (tonumber(not_before or 0) or 0) then
  -- One job of a run that pauses stays in the queue: an autoscaler has to see that work waits.
  if (tonumber(window or 0) or 0) > 1 then
    redis.call('LPUSH', run .. ':waiting', field)
    keep_new(run)
  else
    put_back(run, queue, state, field, 'RPUSH')
  end
  return {'later'}
end
local manifest = redis.call('HGET', run .. ':manifest:' .. ARGV[6], ARGV[7])
if not manifest then
  return {'damaged', 'enqueue', 'names of its files are gone from Redis'}
end
-- The last executions are enough: each of them has left a directory to clear, at most.
earlier = string.sub(earlier, -1000)
redis.call('HSET', run .. ':holders', field, earlier .. ',' .. ARGV[2], field .. ':seq', 0,
  field .. ':worker', ARGV[4])
note_current(run, field, '')
keep_new(run)
redis.call('ZADD', KEYS[3], time + tonumber(ARGV[3]), ARGV[1] .. ':' .. ARGV[2])
if state == 'queued' then
  redis.call('HSET', run, 'state', 'running')
  redis.call('HSETNX', run, 'started', time)
else
  unseen = ''
end
refill(run, queue)
return {'taken', cursor, earlier, parameters, manifest, redis.call('LLEN', queue), unseen or '',
  string.format('%.6f', time), round or ''}
