-- Creates the meta of a partition if it has no store id. The first partition decides the store id; all others copy it.
--
-- KEYS   1 meta
-- ARGV   1 store id  2 format  3 number of partitions  4 nonce, decimal text  5 "names" = keep an existing store id
-- Reply  {1, store id, format, number of partitions}

assert(#KEYS == 1 and #ARGV == 5, 'arity')
if not redis.call('HGET', KEYS[1], 'store') then
  local time = redis.call('TIME')
  local position = string.format('%.0f', time[1] * 1000000 + time[2]) .. '-' .. ARGV[4]
  redis.call('HSET', KEYS[1], 'store', ARGV[1], 'format', ARGV[2], 'partitions', ARGV[3], 'last', position,
    'origin', position, 'bytes', '0')
end
local meta = redis.call('HMGET', KEYS[1], 'store', 'format', 'partitions')
if ARGV[5] ~= 'names' and meta[1] ~= ARGV[1] and meta[2] == ARGV[2] and meta[3] == ARGV[3] then
  redis.call('HSET', KEYS[1], 'store', ARGV[1])
  meta[1] = ARGV[1]
end
return {1, meta[1] or '', meta[2] or '', meta[3] or ''}
