-- Begins a run: from here on its id is taken, for as long as its producer shows signs of life.
--
-- KEYS 1 run
-- ARGV 1 run id  2 token of the producer  3 seconds until the next sign of life is overdue
--      4 parameters, JSON  5 TTL of the list of runs, s
-- Returns 1, or 0 if the id is taken.
local run = KEYS[1]
if redis.call('EXISTS', run) == 1 then
  return 0
end
local time = now()
redis.call('HSET', run, 'state', 'listing', 'token', ARGV[2], 'parameters', ARGV[4],
  'created', string.format('%.6f', time), 'generation', 0)
redis.call('EXPIRE', run, ARGV[3])
redis.call('ZADD', 'imece:runs', time, ARGV[1])
at_least('imece:runs', tonumber(ARGV[5]))
return 1
