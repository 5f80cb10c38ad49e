-- Claims the index reconciliation of the store: one instance runs it per period.
--
-- KEYS  1 meta   (of the first partition)
-- ARGV  those of gate.lua, and
--         period   ms
-- Reply {DONE, now}: claimed | {NOT_DUE, now}: an instance claimed it less than a period ago

assert(#KEYS == 1, 'arity')

local audited = tonumber(redis.call('HGET', META, 'audited') or '0')
if now < audited + args.period and now >= audited then return {NOT_DUE, now_us} end
redis.call('HSET', META, 'audited', string.format('%.0f', now))
return {DONE, now_us}
