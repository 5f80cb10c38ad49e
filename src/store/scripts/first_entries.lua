-- Returns the oldest entries of many subject indexes. Has no effect.
--
-- KEYS   one index for each subject, meta   (all in the subjects' partition)
-- ARGV   1 as in gate.lua  2 maximum number of entries of one index
-- Reply  {DONE, now, [[id, time added, …], …]}: the entries of each index, in order; 0 = it cannot be read

assert(#KEYS >= 2 and #ARGV == 2, 'arity')
-- include constants
-- include gate

local indexes = {}
for n = 1, #KEYS - 1 do
  reply = redis.pcall('ZRANGE', KEYS[n], 0, ARGV[2] - 1, 'WITHSCORES')
  -- include unless_wrong_type
  indexes[n] = reply.err and 0 or reply
end
return {DONE, now_us, indexes}
