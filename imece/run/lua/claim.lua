-- Takes a run's id for a producer that is about to list, for as long as it shows signs of life.
-- The run itself is touched by the commit alone.
--
-- KEYS 1 run  2 claim
-- ARGV 1 token of the producer  2 seconds until the next sign of life is overdue
--      3 parameters, JSON  4 TTL of the list of runs, s
-- Returns 'claimed'; 'listing' if another producer has it; or the state of a run that is on.
local run, claim = KEYS[1], KEYS[2]
must_fit(run)
local state = redis.call('HGET', run, 'state')
if is_on(state) then
  return state
end
if redis.call('EXISTS', claim) == 1 then
  return redis.call('HGET', claim, 'token') == ARGV[1] and 'claimed' or 'listing'
end
local time = now()
redis.call('HSET', claim, 'token', ARGV[1], 'parameters', ARGV[3],
  'created', string.format('%.6f', time))
redis.call('EXPIRE', claim, ARGV[2])
redis.call('ZADD', listed(run), string.format('%.6f', time), run_id(run))
at_least(listed(run), tonumber(ARGV[4]))
return 'claimed'
