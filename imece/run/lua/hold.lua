#!lua flags=allow-oom
-- Holds a run whose records cannot be used: it waits for a person.
--
-- KEYS 1 run
-- ARGV 1 reason  2 generation that is meant ('': any)
-- Returns 1, or 0 if the run is not on.
local run = KEYS[1]
if not fits(run, 'hash') or not is_on(redis.call('HGET', run, 'state')) then
  return 0
end
if ARGV[2] ~= '' and ARGV[2] ~= redis.call('HGET', run, 'generation') then
  return 0
end
hold(run, ARGV[1], now())
redis.call('UNLINK', run .. ':current') -- workers that are at a file name it again
return 1
