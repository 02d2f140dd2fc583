-- Takes back what a producer has staged, unless it has been committed after all.
--
-- KEYS 1 run  2 claim  3 staged cursors  4 their order, then what else is staged
-- ARGV 1 token of the producer  2 '1' if the claim is given up, too
local run = KEYS[1]
if redis.call('HGET', run, 'token') == ARGV[1] then
  return 0
end
if ARGV[2] == '1' and redis.call('HGET', KEYS[2], 'token') == ARGV[1] then
  redis.call('DEL', KEYS[2])
  if redis.call('EXISTS', run) == 0 then
    redis.call('ZREM', listed(run), run_id(run))
  end
end
redis.call('UNLINK', unpack(KEYS, 3))
return 1
