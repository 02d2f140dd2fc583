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
