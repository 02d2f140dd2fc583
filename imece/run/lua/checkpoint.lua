#!lua flags=allow-oom
-- The one place where progress is recorded. Fenced: a worker that has lost the lease records nothing.
-- Exactly once: a batch that comes again (its answer was lost) has no effect. A gap after the last
-- recorded batch shows that the server has forgotten something: the lease is lost, and the job is done
-- again from the cursor that is there.
--
-- KEYS 1 run  2 leases (rq:wip)  3 queue
-- ARGV 1 job id  2 execution  3 lease, s  4 field of the job
--      5 action: continue; finish: the job is through; return: to the front of the queue;
--        defer: to its back; stall: to its back, and the run pauses; hold: the run is held;
--        leave: to its back, for other workers: the run pauses if none has a job of it
--      6 number of the batch, counted from 1 in each execution; 0: no batch, only a sign of life
--      7 cursor  8 deltas, JSON: done, failed, retried, bytes_in, bytes_out,
--        durations {step: count}, shortest (microseconds, or -1)
--      9 run TTL, s  10 result TTL, s  11 reason for stall, hold, leave  12 the round that the worker knows
--      13 the current file, if the worker has been at it for long, or ''  14 for so many seconds
--      15 failures, count, then name, record, output of each
--      then their causes, count, then text, count of failures, name and message of the first of each
--      then pairs of name and microseconds: candidates for the slowest files
-- If more files have failed than the run's field `most_failed` says, the run is held.
-- Returns {'held' | 'stop' (the run is not on) | 'lost' | 'gone', length of the queue}, with a third
-- entry if this call has held the run: its jobs are to be taken out of the queue. Or {'round',
-- round}: another round has begun since, and has kept the job. Nothing is recorded of the batch, for
-- its outputs may have been removed before that round: the worker is to look, and to send it again.
local run, leases, queue = KEYS[1], KEYS[2], KEYS[3]
local member, field, action, number = ARGV[1] .. ':' .. ARGV[2], ARGV[4], ARGV[5], tonumber(ARGV[6])
local detailed = 1000
local most_causes = 200 -- so many are counted by themselves; as imece/run/causes.py has it

local expiry = redis.call('ZSCORE', leases, member)
if not expiry then
  return {'lost', 0}
end

-- First all that can go wrong, then all that is written.
must_fit(run, counters)
local state, round = unpack(redis.call('HMGET', run, 'state', 'round'))
if not state then
  redis.call('ZREM', leases, member)
  return {'gone', 0}
end
local time = now()
local sequence = tonumber(redis.call('HGET', run .. ':holders', field .. ':seq') or 0)
local cursor = redis.call('HGET', run .. ':jobs', field)
if not cursor or number > sequence + 1 then
  redis.call('ZREM', leases, member)
  note_current(run, field, '')
  if cursor then
    put_back(run, queue, state, field, 'LPUSH')
  end
  return {'lost', 0}
end
local deltas = number > sequence and cjson.decode(ARGV[8])
if deltas and ARGV[12] ~= (round or '') then
  redis.call('ZADD', leases, 'XX', time + tonumber(ARGV[3]), member)
  return {'round', round or ''}
end

local function add(key, name, amount)
  if amount and amount ~= 0 then
    redis.call('HINCRBY', key, name, string.format('%.0f', amount))
  end
end

-- Counts failures by their cause, which has a number for as long as the round lasts.
local function count_cause(text, count, name, message)
  local causes = run .. ':causes'
  local number = redis.call('HGET', causes, '=' .. text)
  if not number then
    local last = tonumber(redis.call('HGET', causes, 'last') or 0) or 0
    number = string.format('%.0f', math.min(last, most_causes) + 1)
    if last < most_causes then
      redis.call('HSET', causes, 'last', number, '=' .. text, number, number .. ':text', text)
    else
      redis.call('HSET', causes, number .. ':text', 'other causes')
    end
  end
  local before = tonumber(redis.call('HGET', causes, number .. ':count') or 0) or 0
  if before == 0 then
    redis.call('HSET', causes, number .. ':file', name, number .. ':message', message)
  end
  redis.call('HSET', causes, number .. ':count', string.format('%.0f', before + count))
end

-- Why the run is to be held, if too many files have failed.
local function too_many_failed()
  local most, fewest, files, done, failed, skipped =
    unpack(redis.call('HMGET', run, 'most_failed', 'fewest_ended', 'files', 'done', 'failed', 'skipped'))
  most, failed = tonumber(most or nil), tonumber(failed or 0)
  local ended = failed + (done or 0) + (skipped or 0)
  if most and failed > most and ended >= (tonumber(fewest or 0) or 0) then
    local id = run_id(run)
    return string.format('%.0f of %s files have failed, and --max-failed allows %.0f: `imece failures %s ' ..
      '--by-cause` says why, and `imece resume %s` goes on after the fix', failed, files or 0, most, id, id)
  end
end

-- Slots of the timeline widen as a run gets older, so that it stays small. Those are there in which a
-- worker had a job of the run: since this one was last heard, it had.
local age = math.max(0, time - (tonumber(redis.call('HGET', run, 'started') or time) or time))
local width = age < 3600 and 5 or age < 86400 and 60 or 600
local silent = math.max(0, time - (tonumber(expiry) - tonumber(ARGV[3])))
local slot = math.floor(age / width) * width
local since = math.floor(math.max(0, age - silent) / width) * width
for at = math.max(since, slot - 100 * width), slot, width do
  redis.call('HSETNX', run .. ':timeline', string.format('%.0f', at), 0)
end

if deltas then
  local through = deltas.done + deltas.failed
  for _, name in ipairs(counters) do
    add(run, name, deltas[name])
  end
  if through > 0 and is_on(state) then
    redis.call('HDEL', run, 'pauses', 'not_before', 'blocking_reason', 'blocked_at')
  end
  for step, count in pairs(deltas.durations) do
    add(run .. ':durations', step, count)
  end
  local shortest = tonumber(redis.call('HGET', run, 'shortest') or nil)
  if deltas.shortest >= 0 and not (shortest and shortest <= deltas.shortest) then
    redis.call('HSET', run, 'shortest', string.format('%.0f', deltas.shortest))
  end
  add(run .. ':timeline', string.format('%.0f', slot), through)

  local argument = 16
  for _ = 1, tonumber(ARGV[15]) do
    local name, record, output = ARGV[argument], ARGV[argument + 1], ARGV[argument + 2]
    redis.call('HSET', run .. ':failures', name, record)
    if output ~= '' and redis.call('HLEN', run .. ':outputs') < detailed then
      redis.call('HSET', run .. ':outputs', name, output)
    end
    argument = argument + 3
  end
  argument = argument + 1
  for _ = 1, tonumber(ARGV[argument - 1]) do
    count_cause(unpack(ARGV, argument, argument + 3))
    argument = argument + 4
  end
  while argument < #ARGV do
    redis.call('ZADD', run .. ':slowest', 'GT', ARGV[argument + 1], ARGV[argument])
    argument = argument + 2
  end
  redis.call('ZREMRANGEBYRANK', run .. ':slowest', 0, -11)

  redis.call('HSET', run .. ':jobs', field, ARGV[7])
  redis.call('HSET', run .. ':holders', field .. ':seq', ARGV[6])
  if redis.call('TTL', run) < tonumber(ARGV[9]) / 2 and is_on(state) then
    keep(run, tonumber(ARGV[9]))
  end
end
note_current(run, field, action == 'continue' and ARGV[13] or '', time - tonumber(ARGV[14]))
keep_new(run)

local has_held
local is_last = action == 'finish' and redis.call('HLEN', run .. ':jobs') == 1 -- then the run ends
local reason = deltas and is_on(state) and not is_last and too_many_failed()
if action == 'hold' and is_on(state) then
  reason = ARGV[11]
end
if reason then
  hold(run, reason, time)
  state, has_held = 'held', 1
end

if action == 'continue' then
  redis.call('ZADD', leases, 'XX', time + tonumber(ARGV[3]), member)
else
  redis.call('ZREM', leases, member)
  redis.call('HDEL', run .. ':holders', field, field .. ':seq', field .. ':worker')
  local stalls = action == 'stall' or action == 'leave' and redis.call('EXISTS', run .. ':holders') == 0
  if stalls and is_on(state) then
    local not_before = tonumber(redis.call('HGET', run, 'not_before') or 0) or 0
    if time >= not_before then -- else another worker has met the same within this pause
      local pauses = redis.call('HINCRBY', run, 'pauses', 1)
      not_before = time + math.min(2 ^ (pauses - 1), LONGEST_PAUSE)
      redis.call('HSET', run, 'not_before', string.format('%.6f', not_before),
        'blocking_reason', ARGV[11], 'blocked_at', time)
      if pauses > PAUSES then
        hold(run, ARGV[11], time)
        state = 'held'
      end
    end
  end
  if action == 'finish' then
    redis.call('HDEL', run .. ':jobs', field)
  else
    put_back(run, queue, state, field, action == 'return' and 'LPUSH' or 'RPUSH')
  end
  if redis.call('EXISTS', run .. ':jobs') == 0 then
    local files, done, failed, skipped =
      unpack(redis.call('HMGET', run, 'files', 'done', 'failed', 'skipped'))
    local left = (tonumber(files) or 0) - (done or 0) - (failed or 0) - (skipped or 0)
    redis.call('HSET', run, 'ended', time,
      'state', (left ~= 0 or tonumber(failed or 0) > 0) and 'failed' or 'done')
    if left ~= 0 then
      local what = left > 0 and '%.0f files are neither done nor failed'
        or 'its count of files in Redis is too low by %.0f'
      redis.call('HSET', run, 'blocked_at', time, 'blocking_reason',
        string.format(what .. ': enqueue the run again', math.abs(left)))
    end
    redis.call('HDEL', run, 'window')
    redis.call('UNLINK', run .. ':waiting', run .. ':current')
    keep(run, tonumber(ARGV[10]))
  end
end
return {is_on(state) and 'held' or 'stop', redis.call('LLEN', queue), has_held}
