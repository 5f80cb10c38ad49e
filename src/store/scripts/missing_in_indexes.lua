-- Returns which ids are missing in the index of their subject. Has no effect.
--
-- KEYS   one index for each id, meta   (all in the subjects' partition)
-- ARGV   1 as in gate.lua  2… ids
-- Reply  {DONE, now, [n, …]}: the numbers of the missing ids, from 1. An index that cannot be read misses none

assert(#KEYS >= 2 and #KEYS == #ARGV, 'arity')
-- include constants
-- include gate

local missing = {}
for n = 1, #KEYS - 1 do
  reply = redis.pcall('ZSCORE', KEYS[n], ARGV[n + 1])
  -- include unless_wrong_type
  if not reply then missing[#missing + 1] = n end
end
return {DONE, now_us, missing}
