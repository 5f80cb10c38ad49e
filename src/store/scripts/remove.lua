-- Removes ids from the index of their subject. For each of them a script in the id's own partition found that the session has
-- ended and that its tombstone outlives every create in flight, or that it lives, does not have the subject and has no valid
-- reservation.
--
-- KEYS   1 index  2 meta   (both in the subject's partition)
-- ARGV   1 as in gate.lua
--        2… pairs: an id, and the latest time in us at which it was added, decimal text; empty = any time
-- Reply  {DONE, now, count}

assert(#KEYS == 2 and #ARGV >= 1, 'arity')
-- include constants
-- include gate
local INDEX = KEYS[1]

local count = 0
for i = 2, #ARGV, 2 do
  local id, added = ARGV[i], ARGV[i + 1]
  -- An entry that was added later belongs to a session that is about to be created.
  if added == '' or tonumber(redis.call('ZSCORE', INDEX, id) or 'inf') <= tonumber(added) then
    count = count + redis.call('ZREM', INDEX, id)
  end
end
return {DONE, now_us, count}
