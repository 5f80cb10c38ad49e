-- Claims periodic or shared work on a partition: one instance runs it.
--
-- KEYS  1 meta
-- ARGV  those of gate.lua, and
--         field        field of the meta that holds the time of the claim; with _by, the owner
--         owner        text that identifies the instance
--         period       ms for which the claim of another instance is valid
--         own_period   ms for which an earlier claim of this instance is valid
-- Reply {DONE, now}: claimed | {NOT_DUE, now}: a valid claim exists

assert(#KEYS == 1, 'arity')

local claim = redis.call('HMGET', META, args.field, args.field .. '_by')
local claimed_at = tonumber(claim[1]) or 0
local period = claim[2] == args.owner and args.own_period or args.period
if now < claimed_at + period and now >= claimed_at then return {NOT_DUE, now_us} end
redis.call('HSET', META, args.field, string.format('%.0f', now), args.field .. '_by', args.owner)
return {DONE, now_us}
