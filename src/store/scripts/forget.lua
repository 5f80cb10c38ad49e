-- Takes ids out of their subject's index: those that a script in their own partition found ended, with a tombstone that
-- outlasts every create under way.
--
-- KEYS  1 index  2 meta   (both in the subject's partition)
-- ARGV  those of gate.lua, and
--         entries   array of ids and the latest when each was added, decimal text; '' = whenever
-- Reply {DONE, now, count}

local INDEX = KEYS[1]
assert(#KEYS == 2, 'arity')

local count = 0
for i = 1, #args.entries, 2 do
  local id, added = args.entries[i], args.entries[i + 1]
  -- One that was added anew since is of a session to come.
  if added == '' or tonumber(redis.call('ZSCORE', INDEX, id) or 'inf') <= tonumber(added) then
    count = count + redis.call('ZREM', INDEX, id)
  end
end
return {DONE, now_us, count}
