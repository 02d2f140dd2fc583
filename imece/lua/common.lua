-- Put in front of every script here. imece does not run on Redis Cluster, nor does RQ: the keys of
-- a run are made from the run's key, and those of its jobs from RQ's prefix.

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function run_id(run)
  return string.sub(run, #'imece:run:' + 1)
end

local function job_id(run, field)
  return run_id(run) .. '-' .. field
end

local function at_least(key, ttl)
  if redis.call('TTL', key) < ttl then
    redis.call('EXPIRE', key, ttl)
  end
end

local suffixes = {
  '', ':jobs', ':holders', ':failures', ':outputs', ':durations', ':timeline', ':slowest'
}

-- Lets what has come up since the last `keep` live as long as its run.
local function keep_new(run)
  local ttl = redis.call('TTL', run)
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
  for _, field in ipairs(redis.call('HKEYS', run .. ':jobs')) do
    redis.call('EXPIRE', 'rq:job:' .. job_id(run, field), ttl)
  end
  at_least('imece:runs', ttl)
end

-- Puts jobs into the queue, at its back.
local function push(queue, ids)
  for first = 1, #ids, 1000 do
    redis.call('RPUSH', queue, unpack(ids, first, math.min(first + 999, #ids)))
  end
end

-- Ends a run: its waiting jobs leave the queue; who holds one is told at the next checkpoint.
-- The cursors stay, so that the run can be resumed.
local function cancel(run, queue, result_ttl)
  redis.call('HSET', run, 'state', 'cancelled', 'ended', now())
  redis.call('HDEL', run, 'cancelling')
  keep(run, tonumber(result_ttl))
  local ours = {}
  for _, field in ipairs(redis.call('HKEYS', run .. ':jobs')) do
    ours[job_id(run, field)] = true
  end
  local others = {}
  for _, id in ipairs(redis.call('LRANGE', queue, 0, -1)) do
    if ours[id] then
      redis.call('DEL', 'rq:job:' .. id)
    else
      others[#others + 1] = id
    end
  end
  redis.call('DEL', queue)
  push(queue, others)
end

-- Whether a cancel with a grace was asked for and the grace is over. If so, the run has ended now.
local function cancel_if_due(run, queue)
  local at, result_ttl = string.match(redis.call('HGET', run, 'cancelling') or '', '(%S+) (%S+)')
  if not at or now() < tonumber(at) then
    return false
  end
  cancel(run, queue, result_ttl)
  return true
end
