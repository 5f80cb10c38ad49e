-- Claims periodic or shared work on a partition: one instance runs it.
--
-- KEYS   1 meta
-- ARGV   1 as in gate.lua
--        2 field of the meta that holds the time of the claim; with _by, the owner
--        3 text that identifies the instance
--        4 ms for which the claim of another instance is valid
--        5 ms for which an earlier claim of this instance is valid
-- Reply  {DONE, now}: claimed | {NOT_DUE, now}: a valid claim exists

assert(#KEYS == 1 and #ARGV == 5, 'arity')
-- include constants
-- include gate
local field, owner = ARGV[2], ARGV[3]

local claim = redis.call('HMGET', META, field, field .. '_by')
local claimed_at = tonumber(claim[1]) or 0
local period = tonumber(claim[2] == owner and ARGV[5] or ARGV[4])
if now < claimed_at + period and now >= claimed_at then return {NOT_DUE, now_us} end
redis.call('HSET', META, field, string.format('%d', now), field .. '_by', owner)
return {DONE, now_us}
