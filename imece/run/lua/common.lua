-- Put in front of every script here. imece does not run on Redis Cluster, nor does RQ: the keys of
-- a run are made from the run's key.
--
-- Of a run's bucket jobs, at most WINDOW are in the queue; the rest wait in a list of the run. So a
-- cancel or a pause touches few entries, and a large run does not keep a small one waiting. The
-- run's field `window` counts its entries in the queue; a sweep puts it right (imece/run/dead_workers.py).

local WINDOW = 1000
local PAUSES = 10        -- so many fruitless tries in a row, and the run is held
local LONGEST_PAUSE = 60 -- seconds

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- A run's key is imece:<queue>:run:<id>, and no other colon is in it.
local function run_id(run)
  return string.match(run, '[^:]*$')
end

-- The list of the queue's runs.
local function listed(run)
  return (string.gsub(run, 'run:[^:]*$', 'runs'))
end

local function job_id(run, field)
  return run_id(run) .. '-' .. field
end

local function is_on(state)
  return state == 'queued' or state == 'running'
end

local counters = {'done', 'failed', 'skipped', 'retried', 'bytes_in', 'bytes_out'}

local function at_least(key, ttl)
  if redis.call('TTL', key) < ttl then
    redis.call('EXPIRE', key, ttl)
  end
end

local suffixes = {
  '', ':jobs', ':waiting', ':holders', ':failures', ':outputs', ':causes', ':durations', ':timeline',
  ':slowest', ':current'
}
local kinds = {[':waiting'] = 'list', [':slowest'] = 'zset', [':current'] = 'zset'} -- the others, and the claim, are hashes

-- Gives the keys that are new since the last `keep` the time to live of their run.
local function keep_new(run)
  local ttl = redis.call('TTL', run)
  if ttl < 0 then
    return
  end
  for _, suffix in ipairs(suffixes) do
    if redis.call('TTL', run .. suffix) == -1 then
      redis.call('EXPIRE', run .. suffix, ttl)
    end
  end
end

-- Lets all keys of a run live `ttl` seconds from now.
local function keep(run, ttl)
  for _, suffix in ipairs(suffixes) do
    redis.call('EXPIRE', run .. suffix, ttl)
  end
  local parts = redis.call('HGET', run, 'parts') or ''
  for part in string.gmatch(parts, '[^,]+') do
    redis.call('EXPIRE', run .. ':manifest:' .. part, ttl)
  end
  at_least(listed(run), ttl)
end

local function count_window(run, change)
  local window = tonumber(redis.call('HGET', run, 'window') or 0) or 0
  redis.call('HSET', run, 'window', math.max(0, window + change))
end

-- Fills the run's share of the queue up with jobs that wait.
local function refill(run, queue)
  local room = WINDOW - (tonumber(redis.call('HGET', run, 'window') or 0) or 0)
  if room < 1 then
    return
  end
  local fields = redis.call('LPOP', run .. ':waiting', room)
  if fields then
    local ids = {}
    for index, field in ipairs(fields) do
      ids[index] = job_id(run, field)
    end
    redis.call('RPUSH', queue, unpack(ids))
    count_window(run, #ids)
  end
end

-- Puts a job back to where it is taken from. The fields of a held run wait until it continues; those
-- of a cancelled run have their cursors, and that is enough.
local function put_back(run, queue, state, field, command)
  if is_on(state) then
    redis.call(command, queue, job_id(run, field))
    count_window(run, 1)
  elseif state == 'held' then
    redis.call('LPUSH', run .. ':waiting', field)
    keep_new(run)
  end
end

-- Notes the current file of a job, if a worker has been at it for long; nothing if `name` is ''.
-- Between two calls the name stands with the holders: the set itself is sorted by time.
local function note_current(run, field, name, began)
  local mark = field .. ':current'
  local before = redis.call('HGET', run .. ':holders', mark)
  if before and before ~= name then
    redis.call('ZREM', run .. ':current', field .. ':' .. before)
    redis.call('HDEL', run .. ':holders', mark)
  end
  if name ~= '' then
    redis.call('HSET', run .. ':holders', mark, name)
    redis.call('ZADD', run .. ':current', string.format('%.6f', began), field .. ':' .. name)
  end
end

local function hold(run, reason, time)
  redis.call('HSET', run, 'state', 'held', 'blocking_reason', reason, 'blocked_at', time)
end

-- Whether a key may be used as a `kind`: it holds one, or nothing.
local function fits(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end

-- Which key of a run holds another type than it should; nil if there is none.
local function misfit(run)
  local parts = fits(run, 'hash') and redis.call('HGET', run, 'parts') or ''
  for part in string.gmatch(parts, '[^,]+') do
    if not fits(run .. ':manifest:' .. part, 'hash') then
      return 'the key ' .. run .. ':manifest:' .. part .. ' is not a hash in Redis, and has to be one'
    end
  end
  for index = 0, #suffixes do
    local suffix = suffixes[index] or ':claim'
    local kind = kinds[suffix] or 'hash'
    if not fits(run .. suffix, kind) then
      return 'the key ' .. run .. suffix .. ' is a ' .. redis.call('TYPE', run .. suffix).ok ..
        ' in Redis, and has to be a ' .. kind
    end
  end
end

-- Which of these fields of a run is not a number that can be added to; nil if there is none.
local function miscount(run, names)
  for index, value in ipairs(redis.call('HMGET', run, unpack(names))) do
    if value and not (#value <= 18 and string.match(value, '^%d+$')) then
      return 'its field ' .. names[index] .. ' in Redis is not a number from 0 on'
    end
  end
end

-- Why only to remove the run helps; nil if that is not so.
local function ruin(run)
  return misfit(run) or miscount(run, {'generation', 'round'})
end

-- What somebody has done to the records of a run, if it cannot continue: the command of imece that
-- helps ('enqueue' lists and makes them again; 'delete' removes them), and what is wrong.
local function damage(run)
  local what = ruin(run)
  if what then
    return 'delete', what
  end
  if redis.call('EXISTS', run) == 0 then
    return nil
  end
  local state, parameters = unpack(redis.call('HMGET', run, 'state', 'parameters'))
  what = miscount(run, counters) or miscount(run, {'files', 'pauses'})
  if not state then
    what = 'its state is gone from Redis'
  elseif not parameters then
    what = 'its parameters are gone from Redis'
  elseif is_on(state) and redis.call('EXISTS', run .. ':jobs') == 0 then
    what = 'its bucket jobs are gone from Redis'
  end
  return what and 'enqueue', what
end

-- Raises before anything is written: a script that fails half way would repeat what it has done.
local function must_fit(run, names)
  local what = misfit(run) or names and miscount(run, names)
  if what then
    error({err = 'BROKEN ' .. what})
  end
end
