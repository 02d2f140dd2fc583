-- Removes an ended run, and a run in any state whose records cannot be used. Outputs stay.
--
-- KEYS 1 run  2 claim
-- ARGV 1 '1' if its parameters cannot be read
-- Returns 'deleted', or the state that forbids it ('' if there is no run).
local run, claim = KEYS[1], KEYS[2]
if not ruin(run) then
  local state = redis.call('HGET', run, 'state')
  if redis.call('EXISTS', claim) == 1 then
    return 'listing'
  end
  if redis.call('EXISTS', run) == 0 then
    return ''
  end
  if ARGV[1] ~= '1' and (is_on(state) or state == 'held') then
    return state
  end
end
local parts = fits(run, 'hash') and redis.call('HGET', run, 'parts')
for part in string.gmatch(parts or '', '[^,]+') do
  redis.call('UNLINK', run .. ':manifest:' .. part)
end
for _, suffix in ipairs(suffixes) do
  redis.call('UNLINK', run .. suffix)
end
redis.call('UNLINK', claim)
if fits(listed(run), 'zset') then
  redis.call('ZREM', listed(run), run_id(run))
end
return 'deleted'
