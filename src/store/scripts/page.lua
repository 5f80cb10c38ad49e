-- Returns the log entries after a position, up to a number of entries and of bytes: at least one if there is one.
--
-- KEYS   1 log
-- ARGV   1 start of the range: "(" and a position, or "-"  2 entries, count  3 bytes
-- Reply  {1, entry, content, …}: the content is empty if the entry contains it

assert(#KEYS == 1 and #ARGV == 3, 'arity')
local from, most, bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local reply, batch, is_full = {1}, 1, false
while not is_full do
  -- Few at first: Redis copies all entries that it reads, and they may be large.
  batch = math.min(batch, most)
  local entries = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', batch)
  for _, entry in ipairs(entries) do
    local text, content = entry[2][2], entry[2][4] or ''
    is_full = is_full or #reply > 1 and #text + #content > bytes
    if not is_full then
      reply[#reply + 1] = text
      reply[#reply + 1] = content
      from, most, bytes = '(' .. entry[1], most - 1, bytes - #text - #content
    end
  end
  is_full = is_full or #entries < batch or most == 0
  batch = batch * 2
end
return reply
