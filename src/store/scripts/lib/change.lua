-- Prepares a script that may write.
--
-- KEYS   those of head.lua
-- ARGV   those of head.lua
-- Reads  those of gate.lua
-- Sets   new_revision, the function
--
-- Order in a script: read and check everything, also the rights, then XADD, then the other writes, which cannot fail. A
-- script is not a transaction: Redis keeps what a script wrote before an error.

local new_revision = last:match('^%d+') + 1
if new_revision < now_us then new_revision = now_us end
-- Redis checks rights command by command: a right that was taken has to stop the script before its first write.
local function require_right(...)
  if not redis.acl_check_cmd(...) then
    error({err = 'NOPERM the Redis user lacks the right to ' .. select(1, ...) .. ', which the scripts need'})
  end
end

-- WAIT counts from the last write of its connection: this write changes no value, so that a retry has one too.
if ARGV[3]:byte(-1) == 1 then redis.call('HSET', META, 'last', last) end
