-- Prelude of all scripts that check store id and deadline: unpacks the arguments and returns early if a check fails.
--
-- KEYS  the last one is the partition's meta
-- ARGV  1 a MessagePack map; the header of each script names its fields. All of them take:
--         store       id of the store that the caller expects
--         not_after   ms, Redis clock; after it the script writes nothing; absent = no limit
-- Reply {outcome, now in us, …}: the first element is always an integer, so no text from a session or an index begins a
--       reply.

local META = KEYS[#KEYS]
assert(#ARGV == 1, 'arity')

-- Outcomes; the same list is in store/scripts.rs.
local STORE_CHANGED, TOO_LATE = -2, -1
local NOT_FOUND, DONE, ENDED, EXISTS, CORRUPT = 0, 1, 2, 3, 4
local REVISION_MISMATCH, REQUEST_ID_REUSED, SUBJECT_CHANGE = 5, 6, 7
local TOO_MANY_ATTRIBUTES, TOO_MANY_LABELS, TOO_LARGE, NOT_DUE = 8, 9, 10, 11
local ROTATED, TOKEN_KNOWN, NOT_RESERVED, SUBJECT_FULL, SUBJECT_LIMIT = 12, 13, 14, 15, 16
local NOT_MEANT = 17

local args = cmsgpack.unpack(ARGV[1])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- The gate: the expected store, before the deadline.
local meta = redis.pcall('HMGET', META, 'store', 'last', 'bytes')
if meta.err or meta[1] ~= args.store or not meta[2] then return {STORE_CHANGED, now_us} end
if args.not_after and now > args.not_after then return {TOO_LATE, now_us} end
