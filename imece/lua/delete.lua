-- Removes an ended run, but for its outputs.
--
-- KEYS 1 run  2 claim
-- Returns 'deleted', or the state that forbids it ('' if there is no run).
local run, claim = KEYS[1], KEYS[2]
if redis.call('EXISTS', claim) == 1 then
  return 'listing'
end
local state, parts = unpack(redis.call('HMGET', run, 'state', 'parts'))
if not state then
  return ''
end
if is_on(state) or state == 'held' then
  return state
end
for part in string.gmatch(parts or '', '[^,]+') do
  redis.call('UNLINK', run .. ':manifest:' .. part)
end
for _, suffix in ipairs(suffixes) do
  redis.call('UNLINK', run .. suffix)
end
redis.call('ZREM', 'imece:runs', run_id(run))
return 'deleted'
