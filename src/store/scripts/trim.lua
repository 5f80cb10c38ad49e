-- Drops the oldest log entries that exceed a bound, at most one batch per call; never the last entry.
--
-- KEYS  1 log  2 meta
-- ARGV  1 age in us  2 entries, count  3 bytes  4 batch, count
-- Reply {entries dropped, entries left, bytes left}

assert(#KEYS == 2 and #ARGV == 4, 'arity')
-- Without meta the log belongs to a store that was emptied.
if redis.call('EXISTS', KEYS[2]) == 0 then return {0, 0, 0} end
local time = redis.call('TIME')
local oldest = time[1] * 1000000 + time[2] - tonumber(ARGV[1])
local count = redis.call('XLEN', KEYS[1])
local bytes = tonumber(redis.call('HGET', KEYS[2], 'bytes') or '0')
local dropped, batch = 0, tonumber(ARGV[4])
local from, keep = '-', nil
while dropped < batch and count > 1 and not keep do
  -- Read one entry first: mostly there is nothing to drop.
  local entries = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', dropped == 0 and 1 or 32)
  for _, entry in ipairs(entries) do
    local revision = tonumber(entry[1]:match('^%d+'))
    if count > 1 and (revision < oldest or count > tonumber(ARGV[2]) or bytes > tonumber(ARGV[3])) then
      count, bytes, dropped = count - 1, bytes - #entry[2][2], dropped + 1
      from = '(' .. entry[1]
    else
      keep = entry[1]
      break
    end
  end
  if #entries == 0 then break end
end
if dropped > 0 then
  local kept = redis.call('XRANGE', KEYS[1], keep or from, '+', 'COUNT', 1)[1]
  redis.call('XTRIM', KEYS[1], 'MINID', kept[1])
  -- With one entry left its size is exact, even if another client trimmed the log.
  if count == 1 then bytes = #kept[2][2] end
  redis.call('HSET', KEYS[2], 'bytes', string.format('%.0f', math.max(bytes, 0)))
end
return {dropped, count, bytes}
