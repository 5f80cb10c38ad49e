-- Checks the store and the deadline of a call; returns early if a check fails.
--
-- KEYS   the last one is the partition's meta
-- ARGV   1 packed as GATE: id of the store that the caller expects, 32 bytes; ms by the clock of Redis after which the script
--          writes nothing, 0 = no limit; nonce of the change, below 2^53, new for every send
-- Sets   META, NONCE, now_us, now, last, logged_bytes; reply: of a command
--
-- Every reply is {outcome, now in us, …}: the first element is an integer, so no text from a session or an index begins a
-- reply.

local META = KEYS[#KEYS]
local store, not_after, NONCE = struct.unpack(GATE, ARGV[1])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = (now_us - now_us % 1000) / 1000
local reply = redis.pcall('HMGET', META, 'store', 'last', 'bytes')
-- include unless_wrong_type
local meta = reply
if meta.err or meta[1] ~= store or not meta[2] then return {STORE_CHANGED, now_us} end
if not_after > 0 and now > not_after then return {TOO_LATE, now_us} end
local last, logged_bytes = meta[2], meta[3] or 0
