-- Sets the deadline of the session in the due set. If the set of namespaces lacks the namespace, its bound is the earliest
-- deadline of all its sessions: the set may have been lost.
--
-- KEYS   those of head.lua
-- ARGV   2 as in head.lua
-- Reads  namespace and id of the session; expires; namespace_score: score of the namespace in the set of namespaces, read before the first write
-- Sets   nothing

redis.call('ZADD', DUE, expires > 0 and string.format('%d', expires) or '+inf', id)
if not namespace_score or tonumber(namespace_score) > (expires > 0 and expires or math.huge) then
  redis.call('ZADD', NAMESPACES, redis.call('ZRANGE', DUE, '0', '0', 'WITHSCORES')[2], namespace)
end
