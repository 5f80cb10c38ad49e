-- Adds an id to the index of its subject, before the session is created or gets this subject. Every entry of the index
-- counts against the limit, entries of sessions that do not exist yet included.
--
-- KEYS  1 index  2 meta   (both in the subject's partition)
-- ARGV  those of gate.lua, and
--         id
--         after      us: the entry gets a later time than this
--         limit      maximum number of sessions of the subject, 0 = unlimited
--         checked    true = the caller has checked that the newest entries, as many as the limit, count; absent = it
--                    has to check them first
--         rejects    true = reject the id if the limit is reached; absent = the oldest entries make room
--         page       maximum number of entries in a reply
-- Reply {DONE, now, time added, [id, time added, …]}: added; the caller ends the listed sessions first. If they fill a
--       page there may be more
--     | {SUBJECT_FULL, now, [id, time added, …]}: the newest entries, possibly with this id; the caller checks whether
--       they count
--     | {SUBJECT_LIMIT, now}: rejected

local INDEX = KEYS[1]
assert(#KEYS == 2, 'arity')

local count = redis.call('ZCARD', INDEX) + (redis.call('ZSCORE', INDEX, args.id) and 0 or 1)
local too_many = args.limit > 0 and count - args.limit or 0
if too_many > 0 and not args.checked then
  return {SUBJECT_FULL, now_us, redis.call('ZRANGE', INDEX, 0, args.limit, 'REV', 'WITHSCORES')}
end
if too_many > 0 and args.rejects then return {SUBJECT_LIMIT, now_us} end

-- Scores are unique within an index: a list resumes after a score.
local newest = redis.call('ZRANGE', INDEX, -1, -1, 'WITHSCORES')
local added = math.max(now_us, (tonumber(newest[2]) or 0) + 1, args.after + 1)
redis.call('ZADD', INDEX, string.format('%.0f', added), args.id)
local replaced = {}
if too_many > 0 then
  replaced = redis.call('ZRANGE', INDEX, 0, math.min(too_many, args.page) - 1, 'WITHSCORES')
end
return {DONE, now_us, added, replaced}
