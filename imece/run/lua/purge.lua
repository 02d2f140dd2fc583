#!lua flags=allow-oom
-- Takes a run's jobs out of a piece of the queue: its front, which then goes to the back. One call for
-- each such piece goes through the whole queue.
--
-- KEYS 1 run  2 queue
-- ARGV 1 how many entries
-- Returns how many entries there were; 0, too, if the run is on (again).
local run, queue = KEYS[1], KEYS[2]
local state = fits(run, 'hash') and redis.call('HGET', run, 'state')
if is_on(state) then
  return 0
end
local ids = redis.call('LPOP', queue, ARGV[1])
if not ids then
  return 0
end
local prefix, others = run_id(run) .. '-', {}
local taken = 0
for _, id in ipairs(ids) do
  local field = string.sub(id, #prefix + 1)
  if string.sub(id, 1, #prefix) == prefix and string.match(field, '^%x+%-%d+%-%d+$') then
    if state == 'held' and fits(run .. ':waiting', 'list') then
      redis.call('RPUSH', run .. ':waiting', field)
    end
    taken = taken + 1
  else
    others[#others + 1] = id
  end
end
if #others > 0 then
  redis.call('RPUSH', queue, unpack(others))
end
if state and taken > 0 then
  count_window(run, -taken)
  keep_new(run)
end
return #ids
