-- Returns the ids of one namespace whose deadline has passed, the earliest first. If there is none, sets the
-- namespace's bound to its earliest deadline, or removes a namespace that has no session.
--
-- KEYS   1 due  2 namespaces
-- ARGV   1 namespace  2 limit, count
-- Reply  {now in us, [id, deadline in ms, …], earliest deadline that has not passed, "" = none}

assert(#KEYS == 2 and #ARGV == 2, 'arity')
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local ids = redis.call('ZRANGE', KEYS[1], '-inf', math.floor(now_us / 1000), 'BYSCORE', 'LIMIT', 0, ARGV[2],
  'WITHSCORES')
local first = {}
if #ids == 0 then
  first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  if first[2] then
    redis.call('ZADD', KEYS[2], first[2], ARGV[1])
  else
    redis.call('ZREM', KEYS[2], ARGV[1])
  end
end
return {now_us, ids, first[2] or ''}
