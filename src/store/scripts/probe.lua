-- Proves that a connection can serve calls: Redis refuses this script on a replica, and the script finds out whether
-- the Cluster is down, and which commands the user may not run.
--
-- KEYS   none   (so that a node of a Cluster that owns no slot runs it as well)
-- ARGV   1 absent: key and channel that never exist
-- Reply  {1, name of each command that is refused} | {0}: the Cluster is down. Not the error CLUSTERDOWN, with which
--       fred fails all calls in flight.

assert(#KEYS == 0 and #ARGV == 1, 'arity')
local absent = ARGV[1]
local commands = {
  {'TIME'}, {'GETEX', absent}, {'GET', absent}, {'GETRANGE', absent, 0, 0}, {'SET', absent, 'v'},
  {'SETRANGE', absent, 0, 'v'}, {'DEL', absent}, {'PEXPIRE', absent, 1}, {'PTTL', absent}, {'HGET', absent, 'f'},
  {'HMGET', absent, 'f'}, {'HSET', absent, 'f', 'v'},
  {'ZADD', absent, 0, 'm'}, {'ZREM', absent, 'm'},
  {'ZCARD', absent}, {'ZSCORE', absent, 'm'}, {'ZRANGE', absent, 0, 0}, {'ZSCAN', absent, 0},
  {'XADD', absent, '*', 'f', 'v'}, {'XLEN', absent}, {'XRANGE', absent, '-', '+'}, {'XTRIM', absent, 'MAXLEN', 0},
  {'SPUBLISH', absent, ''},
}
-- Redis checks the state of the Cluster only for a command with a key. There is none to delete. Another node may own
-- its slot.
local reply = redis.pcall('DEL', absent)
if type(reply) == 'table' and reply.err and reply.err:find('cluster is down', 1, true) then return {0} end

local refused = {1}
for _, command in ipairs(commands) do
  if not redis.acl_check_cmd(unpack(command)) then refused[#refused + 1] = command[1] end
end
return refused
