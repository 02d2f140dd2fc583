#!lua flags=allow-oom
-- The one place where progress is recorded. Fenced: who has lost the lease records nothing.
-- Exactly once: a batch that comes again (its answer was lost) has no effect.
--
-- KEYS 1 run  2 leases (rq:wip)  3 queue  4 the job's hash
-- ARGV 1 job id  2 execution  3 lease, s  4 field of the job
--      5 action: continue; finish: the job is through; return: to the front of the queue;
--        defer: to its back
--      6 number of the batch, counted from 1 in each execution; 0: no batch, only a sign of life
--      7 cursor  8 deltas, JSON: done, failed, skipped, retried, bytes_in, bytes_out,
--        durations {exponent: count}, untouched
--      9 run TTL, s  10 result TTL, s  11 failures, count, then name, record, output of each
--      then pairs of name and microseconds: candidates for the slowest files
-- Returns {'held' | 'lost' | 'gone' | 'cancelled', length of the queue}.
local run, leases, queue, job = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local member, field, action = ARGV[1] .. ':' .. ARGV[2], ARGV[4], ARGV[5]
local detailed = 1000

if not redis.call('ZSCORE', leases, member) then
  return {'lost', 0}
end
local state = redis.call('HGET', run, 'state')
if not state then
  redis.call('ZREM', leases, member)
  redis.call('DEL', job)
  return {'gone', 0}
end
if cancel_if_due(run, queue) then
  state = 'cancelled'
end
local time = now()

local function add(key, name, amount)
  if amount and amount ~= 0 then
    redis.call('HINCRBY', key, name, string.format('%.0f', amount))
  end
end

local sequence = tonumber(redis.call('HGET', run .. ':holders', field .. ':seq') or 0)
if tonumber(ARGV[6]) > sequence then
  local deltas = cjson.decode(ARGV[8])
  for _, name in ipairs({'done', 'failed', 'skipped', 'retried', 'bytes_in', 'bytes_out'}) do
    add(run, name, deltas[name])
  end
  if deltas.untouched then
    redis.call('HSET', run, 'untouched', '1')
  end
  for exponent, count in pairs(deltas.durations) do
    add(run .. ':durations', exponent, count)
  end
  -- Slots of the timeline widen as a run gets older, so that it stays small.
  local age = math.max(0, time - tonumber(redis.call('HGET', run, 'started') or time))
  local width = age < 3600 and 5 or age < 86400 and 60 or 600
  local slot = string.format('%.0f', math.floor(age / width) * width)
  add(run .. ':timeline', slot, deltas.done + deltas.failed + deltas.skipped)

  local argument = 12
  for _ = 1, tonumber(ARGV[11]) do
    local name, record, output = ARGV[argument], ARGV[argument + 1], ARGV[argument + 2]
    redis.call('HSET', run .. ':failures', name, record)
    if output ~= '' and redis.call('HLEN', run .. ':outputs') < detailed then
      redis.call('HSET', run .. ':outputs', name, output)
    end
    argument = argument + 3
  end
  while argument < #ARGV do
    redis.call('ZADD', run .. ':slowest', 'GT', ARGV[argument + 1], ARGV[argument])
    argument = argument + 2
  end
  redis.call('ZREMRANGEBYRANK', run .. ':slowest', 0, -11)

  redis.call('HSET', run .. ':jobs', field, ARGV[7])
  redis.call('HSET', run .. ':holders', field, ARGV[2], field .. ':seq', ARGV[6])
  if redis.call('TTL', run) < tonumber(ARGV[9]) / 2 then
    keep(run, tonumber(ARGV[9]))
  end
  keep_new(run)
end

if action == 'continue' then
  redis.call('ZADD', leases, 'XX', time + tonumber(ARGV[3]), member)
else
  redis.call('ZREM', leases, member)
  redis.call('HDEL', run .. ':holders', field, field .. ':seq')
  if action == 'finish' then
    redis.call('HDEL', run .. ':jobs', field)
    redis.call('DEL', job)
  elseif state == 'cancelled' then
    redis.call('DEL', job)
  else
    redis.call('HSET', job, 'status', 'queued', 'worker_name', '')
    redis.call(action == 'return' and 'LPUSH' or 'RPUSH', queue, ARGV[1])
  end
  if redis.call('EXISTS', run .. ':jobs') == 0 then
    local failed = tonumber(redis.call('HGET', run, 'failed') or 0)
    redis.call('HSET', run, 'state', failed > 0 and 'failed' or 'done', 'ended', time)
    keep(run, tonumber(ARGV[10]))
  end
end
return {state == 'cancelled' and state or 'held', redis.call('LLEN', queue)}
