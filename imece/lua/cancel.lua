#!lua flags=allow-oom
-- Ends a run, at once or after a grace: then the next worker that takes one of its jobs or records
-- progress ends it, unless somebody has attached meanwhile.
--
-- KEYS 1 run  2 queue
-- ARGV 1 generation that is meant ('': whichever it is)  2 result TTL, s  3 grace, s
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
local grace = tonumber(ARGV[3])
if grace > 0 then
  redis.call('HSET', run, 'cancelling', string.format('%.6f %s', now() + grace, ARGV[2]))
else
  cancel(run, queue, ARGV[2])
end
return 'cancelled'
