-- Removes ids from the index of their subject. For each of them a script in the id's own partition found that the
-- session has ended and that its tombstone outlives every create in flight, or that it lives, does not have the subject
-- and has no valid reservation.
--
-- KEYS  1 index  2 meta   (both in the subject's partition)
-- ARGV  those of gate.lua, and
--         entries   array of ids and the latest time at which each was added, decimal text; '' = any time
-- Reply {DONE, now, count}

local INDEX = KEYS[1]
assert(#KEYS == 2, 'arity')

local count = 0
for i = 1, #args.entries, 2 do
  local id, added = args.entries[i], args.entries[i + 1]
  -- An entry that was added later belongs to a session that is about to be created.
  if added == '' or tonumber(redis.call('ZSCORE', INDEX, id) or 'inf') <= tonumber(added) then
    count = count + redis.call('ZREM', INDEX, id)
  end
end
return {DONE, now_us, count}
