-- Returns which ids are missing in the index of their subject. Has no effect.
--
-- KEYS  one index for each id, meta   (all in the subjects' partition)
-- ARGV  those of gate.lua, and
--         ids          array
-- Reply {DONE, now, [n, …]}: the numbers of the missing ids, from 1. An index that cannot be read misses none

assert(#KEYS >= 2 and #KEYS == #args.ids + 1, 'arity')

local missing = {}
for n, id in ipairs(args.ids) do
  if not redis.pcall('ZSCORE', KEYS[n], id) then missing[#missing + 1] = n end
end
return {DONE, now_us, missing}
