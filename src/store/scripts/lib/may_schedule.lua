-- Makes sure, before the first write, that the deadline of the session can be set. The script has read the due set.
--
-- KEYS   those of head.lua
-- ARGV   2 as in head.lua
-- Reads  namespace
-- Sets   namespace_score

namespace_score = redis.call('ZSCORE', NAMESPACES, namespace)
require_right('ZADD', DUE, '0', 'm')
require_right('ZRANGE', DUE, '0', '0')
