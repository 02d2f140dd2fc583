#!lua flags=allow-oom
-- Ends a run at once: no worker starts another file of it. The cursors stay, so that its next round
-- starts no file that a worker has; `purge` takes its jobs out of the queue.
--
-- KEYS 1 run  2 claim
-- ARGV 1 generation that is meant ('': any)  2 result TTL, s
-- Returns 'cancelled', or the state that forbids it ('' if there is no run).
local run, claim = KEYS[1], KEYS[2]
must_fit(run)
local state, generation = unpack(redis.call('HMGET', run, 'state', 'generation'))
if ARGV[1] == '' and not is_on(state) and state ~= 'held' and redis.call('DEL', claim) == 1 then
  if not state then
    redis.call('ZREM', listed(run), run_id(run))
  end
  return 'cancelled' -- nothing is committed; the producer finds its claim gone
end
if not state then
  return ''
end
if not is_on(state) and state ~= 'held' then
  return state
end
if ARGV[1] ~= '' and ARGV[1] ~= generation then
  return 'generation ' .. generation
end
redis.call('HSET', run, 'state', 'cancelled', 'ended', now())
redis.call('HDEL', run, 'window')
redis.call('UNLINK', run .. ':waiting')
keep(run, tonumber(ARGV[2]))
return 'cancelled'
