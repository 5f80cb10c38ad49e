-- Deletes a key that another client has overwritten with another type, if the store can rebuild it.
--
-- KEYS   1 key  2 meta   (both in one partition)
-- ARGV   1 kind of the key: meta, log, namespaces, due or subject
-- Reply  {0}: the key has its type or does not exist | {1}: deleted | {2}: it has another type and cannot be rebuilt

assert(#KEYS == 2 and #ARGV == 1, 'arity')

local READS = {
  meta = {'HGET', KEYS[1], 'store'}, log = {'XLEN', KEYS[1]}, namespaces = {'ZCARD', KEYS[1]}, due = {'ZCARD', KEYS[1]},
  subject = {'ZCARD', KEYS[1]},
}
local reply = redis.pcall(unpack(READS[ARGV[1]]))
if type(reply) ~= 'table' or not reply.err then return {0} end
-- include unless_wrong_type
if ARGV[1] == 'subject' then return {2} end
local has_meta = type(redis.pcall('HGET', KEYS[2], 'store')) == 'string'
redis.call('DEL', KEYS[1])
if ARGV[1] == 'log' and has_meta then redis.call('HSET', KEYS[2], 'bytes', '0') end
return {1}
