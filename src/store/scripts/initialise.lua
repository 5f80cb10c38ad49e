#!lua
-- Makes a partition's meta where there is none; answers what is there.
--
-- KEYS  1 meta
-- ARGV  1 store id to give  2 format  3 number of partitions  4 nonce, decimal text
-- Reply {1, store id, format, number of partitions}

assert(#KEYS == 1 and #ARGV == 4, 'arity')
if redis.call('EXISTS', KEYS[1]) == 0 then
  local time = redis.call('TIME')
  local position = string.format('%.0f', time[1] * 1000000 + time[2]) .. '-' .. ARGV[4]
  redis.call('HSET', KEYS[1], 'store', ARGV[1], 'format', ARGV[2], 'partitions', ARGV[3], 'last', position, 'bytes', '0')
end
local meta = redis.call('HMGET', KEYS[1], 'store', 'format', 'partitions')
return {1, meta[1] or '', meta[2] or '', meta[3] or ''}
