-- Turns a popped bucket job into a held one, if it is still ours to take.
--
-- KEYS 1 run  2 intermediate list  3 leases (rq:wip)  4 the job's hash  5 queue
-- ARGV 1 job id  2 execution  3 lease, s  4 worker  5 field of the job  6 part  7 bucket
--      8 ISO time for RQ's fields
-- Returns {'held', cursor, earlier holders, parameters, run's created time, manifest, length of the
-- queue, untouched: '1' or '', or '?' if this is the first job and the worker is to look}, or
-- {why not}: 'lost' (another worker has it), 'gone' (no such run or job), 'cancelled'.
local run, field = KEYS[1], ARGV[5]
if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 0 then
  return {'lost'}
end
local state, parameters, created, untouched =
  unpack(redis.call('HMGET', run, 'state', 'parameters', 'created', 'untouched'))
local cursor = redis.call('HGET', run .. ':jobs', field)
local manifest = redis.call('HGET', run .. ':manifest:' .. ARGV[6], ARGV[7])
local refusal = nil
if not (state and cursor and manifest) then
  refusal = 'gone'
elseif state ~= 'queued' and state ~= 'running' then
  refusal = state
elseif cancel_if_due(run, KEYS[5]) then
  refusal = 'cancelled'
end
if refusal then
  redis.call('DEL', KEYS[4])
  return {refusal}
end
local time = now()
local earlier = redis.call('HGET', run .. ':holders', field) or ''
if redis.call('ZSCORE', KEYS[3], ARGV[1] .. ':' .. string.match(earlier, '[^,]*$')) then
  return {'lost'} -- it was in the queue twice
end
redis.call('HSET', run .. ':holders', field, earlier .. ',' .. ARGV[2], field .. ':seq', 0)
keep_new(run)
redis.call('ZADD', KEYS[3], time + tonumber(ARGV[3]), ARGV[1] .. ':' .. ARGV[2])
redis.call('HSET', KEYS[4], 'status', 'started', 'worker_name', ARGV[4],
  'started_at', ARGV[8], 'last_heartbeat', ARGV[8])
if state == 'queued' then
  redis.call('HSET', run, 'state', 'running')
  redis.call('HSETNX', run, 'started', time)
  redis.call('HDEL', run, 'untouched') -- a run that is resumed: who knows what came meanwhile
  untouched = '?'
end
return {'held', cursor, earlier, parameters, created, manifest, redis.call('LLEN', KEYS[5]),
  untouched or ''}
