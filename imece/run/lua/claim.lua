-- Takes a run's id for a producer that is about to list, for as long as it shows signs of life.
-- The run itself is touched by the commit alone.
--
-- KEYS 1 run  2 claim
-- ARGV 1 run id  2 token of the producer  3 seconds until the next sign of life is overdue
--      4 parameters, JSON  5 TTL of the list of runs, s
-- Returns 'claimed'; 'listing' if another producer has it; or the state of a run that is on.
local run, claim = KEYS[1], KEYS[2]
must_fit(run)
local state = redis.call('HGET', run, 'state')
if is_on(state) then
  return state
end
if redis.call('EXISTS', claim) == 1 then
  return redis.call('HGET', claim, 'token') == ARGV[2] and 'claimed' or 'listing'
end
local time = now()
redis.call('HSET', claim, 'token', ARGV[2], 'parameters', ARGV[4],
  'created', string.format('%.6f', time))
redis.call('EXPIRE', claim, ARGV[3])
redis.call('ZADD', 'imece:runs', string.format('%.6f', time), ARGV[1])
at_least('imece:runs', tonumber(ARGV[5]))
return 'claimed'
