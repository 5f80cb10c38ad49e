-- Makes sure, before the first write, that the deadline of the session can be set.
--
-- KEYS   those of head.lua
-- ARGV   2 as in head.lua
-- Reads  nothing
-- Sets   namespace_score

namespace_score = redis.call('ZSCORE', NAMESPACES, NAME:match('^[^:]*'))
redis.call('ZRANGE', DUE, '0', '0')
if not redis.acl_check_cmd('ZADD', DUE, '0', 'm') or not redis.acl_check_cmd('ZREM', DUE, 'm') then
  error({err = 'NOPERM the Redis user lacks a right that the scripts need'})
end
