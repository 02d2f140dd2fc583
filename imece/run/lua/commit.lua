-- Turns what a producer has staged into a run's next round, all at once: jobs and numbers, and the
-- first jobs in the queue. It takes as long for ten jobs as for a million: staged keys are renamed.
--
-- Jobs that a worker has, or died with, continue in the new round ("kept"), so that no file starts a
-- second time; what is staged does not have their files. Jobs with damaged records are dropped.
--
-- KEYS 1 run  2 claim  3 queue  4 leases (rq:wip)  5 RQ's set of queues
--      6 staged cursors {field: cursor}  7 their order, a list of fields
--      8 the failures that stay as they are  9 what these files have printed  10 the causes of failures
-- ARGV 1 token of the producer  2 generation the run must be in ('': there must be no run)
--      3 run TTL, s  4 result TTL, s  5 count of staged jobs  6 score in the list of runs
--      up to which the producer has compared outputs  7 count of the failures that stay
--      8 count of held jobs, then of each field, cursor and '1' if it is kept, '0' if it is dropped;
--      then pairs of field and value, set in the run's hash; `parts` among them
-- Returns 'committed'; 'changed': a kept job has moved, look again; 'overtaken': a run has come that
--      the producer has not compared outputs with; 'withdrawn': the claim is gone.
local run, claim, queue, leases, token = KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1]
must_fit(run, {'generation', 'round'})
local owner, state, generation, parts =
  unpack(redis.call('HMGET', run, 'token', 'state', 'generation', 'parts'))
if owner == token then
  return 'committed' -- the answer to the same call was lost
end
if redis.call('HGET', claim, 'token') ~= token or is_on(state) then
  return 'withdrawn'
end
if (generation or '') ~= ARGV[2] then
  return 'changed'
end

local looked, kept, count = {}, {}, tonumber(ARGV[8])
for index = 1, count do
  local field, cursor = ARGV[6 + 3 * index], ARGV[7 + 3 * index]
  looked[field] = cursor
  kept[field] = ARGV[8 + 3 * index] == '1' and cursor or nil
end
local holders = redis.call('HGETALL', run .. ':holders')
local held = {}
for index = 1, #holders, 2 do
  local field = holders[index]
  if not string.find(field, ':', 1, true) then
    local cursor = redis.call('HGET', run .. ':jobs', field)
    if cursor and looked[field] ~= cursor then
      return 'changed'
    end
    held[field] = kept[field] and holders[index + 1] or nil
  end
end
for field, cursor in pairs(kept) do
  if redis.call('HGET', run .. ':jobs', field) ~= cursor then
    return 'changed'
  end
end
if redis.call('ZCOUNT', listed(run), '(' .. ARGV[6], '+inf') > 0 then
  return 'overtaken'
end
if redis.call('HLEN', KEYS[6]) ~= tonumber(ARGV[5])
  or redis.call('HLEN', KEYS[8]) ~= tonumber(ARGV[7]) then
  return 'withdrawn' -- what was staged has expired
end

redis.call('UNLINK', run .. ':jobs', run .. ':waiting', run .. ':failures', run .. ':outputs',
  run .. ':causes', run .. ':durations', run .. ':timeline', run .. ':slowest', run .. ':current')
redis.call('HDEL', run, 'done', 'failed', 'skipped', 'retried', 'bytes_in', 'bytes_out', 'shortest',
  'started', 'ended', 'unseen', 'pauses', 'not_before', 'blocking_reason', 'blocked_at', 'window',
  'most_failed', 'fewest_ended')
local fields = {}
for index = 9 + 3 * count, #ARGV do
  fields[#fields + 1] = ARGV[index]
end
redis.call('HSET', run, unpack(fields))
local time = now()
redis.call('HSETNX', run, 'created', string.format('%.6f', time))
if redis.call('HGET', run, 'unseen') == '1' then -- the producer has not seen the outputs
  redis.call('HSET', run, 'unseen', string.format('%.6f', time))
end
redis.call('HSET', run, 'token', token, 'state', 'queued')
redis.call('HINCRBY', run, 'generation', 1)
redis.call('HINCRBY', run, 'round', 1)
if redis.call('EXISTS', KEYS[6]) == 1 then
  redis.call('RENAME', KEYS[6], run .. ':jobs')
  redis.call('RENAME', KEYS[7], run .. ':waiting')
end
for index, suffix in ipairs({':failures', ':outputs', ':causes'}) do
  if redis.call('EXISTS', KEYS[7 + index]) == 1 then
    redis.call('RENAME', KEYS[7 + index], run .. suffix)
  end
end
for index = 1, #holders, 2 do -- what is not kept is over
  if not held[string.match(holders[index], '^[^:]*')] then
    redis.call('HDEL', run .. ':holders', holders[index])
  end
end
for field, cursor in pairs(kept) do
  redis.call('HSET', run .. ':jobs', field, cursor)
  local execution = held[field] and string.match(held[field], '[^,]*$')
  if execution and redis.call('ZSCORE', leases, job_id(run, field) .. ':' .. execution) then
    redis.call('HSET', run, 'state', 'running')
    redis.call('HSETNX', run, 'started', time)
  else
    redis.call('LPUSH', run .. ':waiting', field)
  end
end
local lives = redis.call('HGET', run, 'parts') or ''
for part in string.gmatch(parts or '', '[^,]+') do
  if not string.find(lives, part, 1, true) then
    redis.call('UNLINK', run .. ':manifest:' .. part)
  end
end
redis.call('DEL', claim)
redis.call('ZADD', listed(run), string.format('%.6f', time), run_id(run))
if fits(KEYS[5], 'set') then -- it has the queues of others, too: one of them may have spoilt it
  redis.call('SADD', KEYS[5], queue)
  at_least(KEYS[5], tonumber(ARGV[3]))
end
if redis.call('EXISTS', run .. ':jobs') == 0 then -- there is nothing to do
  redis.call('HSET', run, 'state', 'done', 'started', time, 'ended', time)
  keep(run, tonumber(ARGV[4]))
  return 'committed'
end
refill(run, queue)
keep(run, tonumber(ARGV[3]))
return 'committed'
