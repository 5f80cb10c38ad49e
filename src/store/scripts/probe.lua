-- Proves that a connection can serve calls: Redis refuses this script on a replica, and the script finds the commands that
-- the user may not run. It runs none of them.
--
-- KEYS  none   (so that a node of a Cluster that owns no slot runs it as well)
-- ARGV  1 absent: key and channel that never exist
-- Reply {1, name of each command that is refused}

assert(#KEYS == 0 and #ARGV == 1, 'arity')
local absent = ARGV[1]
local commands = {
  {'TIME'}, {'EXISTS', absent}, {'DEL', absent}, {'PEXPIRE', absent, 1}, {'HGET', absent, 'f'}, {'HMGET', absent, 'f'},
  {'HGETALL', absent}, {'HSET', absent, 'f', 'v'}, {'HDEL', absent, 'f'}, {'ZADD', absent, 0, 'm'}, {'ZREM', absent, 'm'},
  {'ZCARD', absent}, {'ZSCORE', absent, 'm'}, {'ZRANGE', absent, 0, 0}, {'ZSCAN', absent, 0},
  {'XADD', absent, '*', 'f', 'v'}, {'XLEN', absent}, {'XRANGE', absent, '-', '+'}, {'XTRIM', absent, 'MAXLEN', 0},
  {'SPUBLISH', absent, ''},
}
local refused = {1}
for _, command in ipairs(commands) do
  if not redis.acl_check_cmd(unpack(command)) then refused[#refused + 1] = command[1] end
end
return refused
