-- Ends a run: its waiting jobs leave the queue; who holds one is told at the next checkpoint.
-- The cursors stay, so that the run can be resumed.
--
-- KEYS 1 run  2 queue
-- ARGV 1 generation that is meant ('': whichever it is)  2 result TTL, s
-- Returns 'cancelled', or the state that forbids it ('' if there is no run).
local run, queue = KEYS[1], KEYS[2]
local state, generation = unpack(redis.call('HMGET', run, 'state', 'generation'))
if not state then
  return ''
end
if state == 'listing' then
  redis.call('DEL', run) -- nothing is committed; the producer finds its run gone
  redis.call('ZREM', 'imece:runs', run_id(run))
  return 'cancelled'
end
if state ~= 'queued' and state ~= 'running' then
  return state
end
if ARGV[1] ~= '' and ARGV[1] ~= generation then
  return 'generation ' .. generation
end
redis.call('HSET', run, 'state', 'cancelled', 'ended', now())
keep(run, tonumber(ARGV[2]))
local ours = {}
for _, field in ipairs(redis.call('HKEYS', run .. ':jobs')) do
  ours[job_id(run, field)] = true
end
local others = {}
for _, id in ipairs(redis.call('LRANGE', queue, 0, -1)) do
  if ours[id] then
    redis.call('DEL', 'rq:job:' .. id)
  else
    others[#others + 1] = id
  end
end
redis.call('DEL', queue)
push(queue, others)
return 'cancelled'
