-- Returns the oldest entries of many subject indexes. Has no effect.
--
-- KEYS  one index for each subject, meta   (all in the subjects' partition)
-- ARGV  those of gate.lua, and
--         page         maximum number of entries of one index
-- Reply {DONE, now, [[id, time added, …], …]}: the entries of each index, in order; 0 = it cannot be read

assert(#KEYS >= 2, 'arity')

local indexes = {}
for n = 1, #KEYS - 1 do
  local entries = redis.pcall('ZRANGE', KEYS[n], 0, args.page - 1, 'WITHSCORES')
  indexes[n] = entries.err and 0 or entries
end
return {DONE, now_us, indexes}
