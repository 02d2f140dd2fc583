#!lua flags=allow-oom
-- Says that somebody waits for this run: it moves to its next generation, so that a cancel meant for
-- an earlier one has no effect, be it late or not due yet.
--
-- KEYS 1 run
-- Returns the generation, or '' if the run is not on.
local run = KEYS[1]
local state = redis.call('HGET', run, 'state')
if state ~= 'queued' and state ~= 'running' then
  return ''
end
redis.call('HDEL', run, 'cancelling')
return tostring(redis.call('HINCRBY', run, 'generation', 1))
