#!lua flags=allow-oom
-- Says that somebody waits for this run. It moves to its next generation, so that a cancel of an
-- earlier one has no effect.
--
-- KEYS 1 run
-- Returns the generation, or '' if the run is not on.
local run = KEYS[1]
must_fit(run, {'generation'})
if not is_on(redis.call('HGET', run, 'state')) then
  return ''
end
return tostring(redis.call('HINCRBY', run, 'generation', 1))
