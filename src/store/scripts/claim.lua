-- Claims the audit of the store: of several instances one does it, once in a period.
--
-- KEYS  1 meta   (of the first partition)
-- ARGV  those of gate.lua, and
--         period   ms
-- Reply {DONE, now} | {NOT_DUE, now}

assert(#KEYS == 1, 'arity')

local audited = tonumber(redis.call('HGET', META, 'audited') or '0')
if now < audited + args.period and now >= audited then return {NOT_DUE, now_us} end
redis.call('HSET', META, 'audited', string.format('%.0f', now))
return {DONE, now_us}
