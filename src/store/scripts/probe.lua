-- Proves that a connection can serve calls: Redis refuses this script on a replica, and the script finds the commands that
-- the user may not run. It changes nothing, because its key never exists: without a key each of these commands does
-- nothing. No other script finds out in its middle that a right is missing, after its first write.
--
-- KEYS  none   (so that a node of a Cluster that owns no slot runs it as well)
-- ARGV  1 absent: key and channel that never exist  2 depth: "full" = check HSET, too
--       HSET has no form without an effect: it is called without its last value, which fails. Redis counts such failures in
--       its statistics, so that the heartbeats leave it out.
-- Reply {1, text of each refused command}

assert(#KEYS == 0 and #ARGV == 2, 'arity')
local absent = ARGV[1]
local commands = {
  {'TIME'}, {'EXISTS', absent}, {'DEL', absent}, {'PEXPIRE', absent, 1, 'GT'},
  {'HGET', absent, 'f'}, {'HMGET', absent, 'f'}, {'HGETALL', absent}, {'HDEL', absent, 'f'},
  {'ZADD', absent, 'XX', 0, 'm'}, {'ZREM', absent, 'm'}, {'ZCARD', absent}, {'ZSCORE', absent, 'm'},
  {'ZRANGE', absent, 0, 0}, {'ZSCAN', absent, 0}, {'XADD', absent, 'NOMKSTREAM', '*', 'f', 'v'}, {'XLEN', absent},
  {'XRANGE', absent, '-', '+'}, {'XTRIM', absent, 'MAXLEN', 0}, {'SPUBLISH', absent, ''},
}
if ARGV[2] == 'full' then commands[#commands + 1] = {'HSET', absent, 'f', 'v', 'f'} end

local refused = {1}
for _, command in ipairs(commands) do
  local reply = redis.pcall(unpack(command))
  local text = type(reply) == 'table' and reply.err or ''
  -- Redis 7.0, then all later versions. Other errors, such as a slot on another node, say nothing about rights.
  if text:find('The user executing the script', 1, true) or text:find('ACL failure in script', 1, true) then
    refused[#refused + 1] = command[1] .. ': ' .. text:gsub('^ERR ', ''):gsub('^NOPERM ', '')
  end
end
return refused
