-- Makes what a producer has staged visible to workers, whole: the jobs, their run, its numbers.
--
-- KEYS 1 run  2 queue  3 leases (rq:wip)  4 RQ's set of queues  5 staged cursors {field: cursor}
-- ARGV 1 token of the producer; also names the part of the manifest that it staged
--      2 kind: new, retry (the failed files of an ended run), resume (a cancelled run)
--      3 generation the run must be in ('' for new)  4 run TTL, s
--      then pairs of field and value, set in the run's hash
-- Returns 'committed', or the state that forbids it ('' if there is no run).
local run, queue, token, kind, ttl = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[4])
local state, owner, generation, parts =
  unpack(redis.call('HMGET', run, 'state', 'token', 'generation', 'parts'))
if not state then
  return ''
end
if owner == token and state ~= 'listing' then
  return 'committed' -- the answer to the same call was lost
end
if kind == 'new' then
  if state ~= 'listing' or owner ~= token then
    return state
  end
elseif generation ~= ARGV[3] then
  return state
elseif kind == 'retry' and state ~= 'failed' or kind == 'resume' and state ~= 'cancelled' then
  return state
end
if kind ~= 'resume' and redis.call('EXISTS', KEYS[5]) == 0 then
  return 'without what was staged' -- the producer gave up while this call was on its way
end

for index = 5, #ARGV, 2 do
  redis.call('HSET', run, ARGV[index], ARGV[index + 1])
end
redis.call('HSET', run, 'state', 'queued', 'token', token)
redis.call('HINCRBY', run, 'generation', 1)
redis.call('HDEL', run, 'ended', 'cancelling')
if kind ~= 'resume' then
  redis.call('HSET', run, 'parts', (parts and parts ~= '' and parts .. ',' or '') .. token)
end
if kind == 'retry' then
  local failed = redis.call('HLEN', run .. ':failures')
  redis.call('HINCRBY', run, 'failed', -failed)
  redis.call('DEL', run .. ':failures', run .. ':outputs')
end
local staged = redis.call('HGETALL', KEYS[5])
for index = 1, #staged, 2 do
  redis.call('HSET', run .. ':jobs', staged[index], staged[index + 1])
end
redis.call('DEL', KEYS[5])

-- A job that a worker still holds (the run was cancelled and is resumed) goes on where it is.
local held = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  held[string.match(member, '^[^:]*')] = true
end
local ids, places = {}, {}
for _, field in ipairs(redis.call('HKEYS', run .. ':jobs')) do
  local id = job_id(run, field)
  if not held[id] then
    local bucket, start = string.match(field, '(%d+)-(%d+)$')
    ids[#ids + 1] = id
    places[id] = tonumber(bucket) * 4294967296 + tonumber(start)
  end
end
table.sort(ids, function(left, right) return places[left] < places[right] end)
push(queue, ids)
redis.call('SADD', KEYS[4], queue)
at_least(KEYS[4], ttl)
keep(run, ttl)
return 'committed'
