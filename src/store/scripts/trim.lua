-- Drops the oldest log entries that exceed a bound, at most one batch per call; never the last entry.
--
-- KEYS   1 log  2 meta
-- ARGV   1 age in us  2 aged: revision  3 entries, count  4 bytes  5 batch, count
--       Entries up to the revision aged have exceeded the age by the clock of the caller; 0 = none.
-- Reply  {entries dropped, entries left, bytes left, last revision}

assert(#KEYS == 2 and #ARGV == 5, 'arity')
local meta = redis.call('HMGET', KEYS[2], 'bytes', 'last')
-- Without meta the log belongs to a store that was emptied.
if not meta[2] then return {0, 0, 0, 0} end
local time = redis.call('TIME')
local oldest = math.max(time[1] * 1000000 + time[2] - tonumber(ARGV[1]), tonumber(ARGV[2]) + 1)
local most, most_bytes, batch = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local count, bytes = redis.call('XLEN', KEYS[1]), tonumber(meta[1] or '0')
local dropped, from, keep, at_once = 0, '-', nil, 1
local function size_of(entry)
  return #entry[2][2] + #(entry[2][4] or '')
end
while dropped < batch and count > 1 and not keep do
  -- One entry first, because mostly there is nothing to drop; then about 1 MiB, because Redis copies what it reads.
  local entries = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', at_once)
  for _, entry in ipairs(entries) do
    local revision = tonumber(entry[1]:match('^%d+'))
    if count > 1 and (revision < oldest or count > most or bytes > most_bytes) then
      count, bytes, dropped = count - 1, bytes - size_of(entry), dropped + 1
      from, at_once = '(' .. entry[1], math.max(1, math.min(32, math.floor(1048576 / size_of(entry))))
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
  if count == 1 then bytes = size_of(kept) end
  redis.call('HSET', KEYS[2], 'bytes', string.format('%.0f', math.max(bytes, 0)))
end
return {dropped, count, math.max(bytes, 0), tonumber(meta[2]:match('^%d+') or '0')}
