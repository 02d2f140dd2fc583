-- What somebody has done to the records of a run, if it cannot continue.
--
-- KEYS 1 run
-- Returns {generation, what helps: 'enqueue' or 'delete', what is wrong}, or nothing.
local helps, what = damage(KEYS[1])
if not what then
  return nil
end
local generation = fits(KEYS[1], 'hash') and redis.call('HGET', KEYS[1], 'generation')
return {generation or '', helps, what}
