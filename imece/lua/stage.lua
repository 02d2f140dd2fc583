-- Writes the hashes of bucket jobs as RQ keeps them, without putting the jobs in the queue.
--
-- KEYS the jobs' hashes
-- ARGV 1 TTL, s  2 count of the fields all have in common, then their names and values
--      then data and description of each job
local common = {}
for index = 3, 2 + 2 * tonumber(ARGV[2]) do
  common[#common + 1] = ARGV[index]
end
local argument = 3 + #common
for _, job in ipairs(KEYS) do
  redis.call('HSET', job, 'data', ARGV[argument], 'description', ARGV[argument + 1], unpack(common))
  redis.call('EXPIRE', job, ARGV[1])
  argument = argument + 2
end
return #KEYS
