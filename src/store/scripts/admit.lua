-- Adds an id to its subject's index: before the session is made, or becomes this subject's. What the index holds counts
-- against the limit, sessions that are about to come included.
--
-- KEYS  1 index  2 meta   (both in the subject's partition)
-- ARGV  those of gate.lua, and
--         id
--         after      us: it is added later than that
--         limit      sessions of the subject, 0 = any number
--         checked    true = the newest of the index, as many as the limit, do count; absent = that is to be looked at first
--         rejects    true = beyond the limit nobody is admitted; absent = the oldest make room
--         page       most entries in one reply, count
-- Reply {DONE, now, when it was added, [id, when it was added, …]}: admitted, as soon as those are ended; a whole page of
-- them means that there may be more
--     | {SUBJECT_FULL, now, [id, when it was added, …]}: the newest, perhaps its own among them | {SUBJECT_LIMIT, now}

local INDEX = KEYS[1]
assert(#KEYS == 2, 'arity')

local count = redis.call('ZCARD', INDEX) + (redis.call('ZSCORE', INDEX, args.id) and 0 or 1)
local too_many = args.limit > 0 and count - args.limit or 0
if too_many > 0 and not args.checked then
  return {SUBJECT_FULL, now_us, redis.call('ZRANGE', INDEX, 0, args.limit, 'REV', 'WITHSCORES')}
end
if too_many > 0 and args.rejects then return {SUBJECT_LIMIT, now_us} end

-- No two entries have one score: lists go on after it.
local newest = redis.call('ZRANGE', INDEX, -1, -1, 'WITHSCORES')
local added = math.max(now_us, (tonumber(newest[2]) or 0) + 1, args.after + 1)
redis.call('ZADD', INDEX, string.format('%.0f', added), args.id)
local replaced = {}
if too_many > 0 then
  replaced = redis.call('ZRANGE', INDEX, 0, math.min(too_many, args.page) - 1, 'WITHSCORES')
end
return {DONE, now_us, added, replaced}
