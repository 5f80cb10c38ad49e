-- Adds an id to the index of its subject, before the session is created or gets this subject. Every entry of the index counts
-- against the limit, entries of sessions that do not exist yet included.
--
-- KEYS   1 index  2 meta   (both in the subject's partition)
-- ARGV   1 as in gate.lua
--        2 id
--        3 us: the entry gets a later time than this
--        4 maximum number of sessions of the subject, 0 = unlimited
--        5 1 = the caller has checked that the newest entries, as many as the limit, count; 0 = it has to check them first
--        6 1 = reject the id if the limit is reached; 0 = the oldest entries make room
--        7 maximum number of entries in a reply
-- Reply  {DONE, now, time added, [id, time added, …]}: added; the caller ends the listed sessions first. If they fill a page
--        there may be more
--      | {SUBJECT_FULL, now, [id, time added, …]}: the newest entries, possibly with this id; the caller checks whether they
--        count
--      | {SUBJECT_LIMIT, now}: rejected

assert(#KEYS == 2 and #ARGV == 7, 'arity')
-- include constants
-- include gate
local INDEX, ID = KEYS[1], ARGV[2]
local after, limit, page = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[7])

local count = redis.call('ZCARD', INDEX) + (redis.call('ZSCORE', INDEX, ID) and 0 or 1)
local too_many = limit > 0 and count - limit or 0
if too_many > 0 and ARGV[5] == '0' then
  return {SUBJECT_FULL, now_us, redis.call('ZRANGE', INDEX, 0, limit, 'REV', 'WITHSCORES')}
end
if too_many > 0 and ARGV[6] == '1' then return {SUBJECT_LIMIT, now_us} end

-- Scores are unique within an index: a list resumes after a score.
local newest = redis.call('ZRANGE', INDEX, -1, -1, 'WITHSCORES')
local added = math.max(now_us, (tonumber(newest[2]) or 0) + 1, after + 1)
redis.call('ZADD', INDEX, string.format('%.0f', added), ID)
local replaced = {}
if too_many > 0 then
  replaced = redis.call('ZRANGE', INDEX, 0, math.min(too_many, page) - 1, 'WITHSCORES')
end
return {DONE, now_us, added, replaced}
