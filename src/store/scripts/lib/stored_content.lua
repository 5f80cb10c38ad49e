-- Content of the record in Redis, for a log entry and for a record of other lengths.
--
-- KEYS   those of head.lua
-- ARGV   none
-- Reads  token_bytes, basic_bytes and attribute_bytes of the record in Redis; zeros: bytes before `basic` in a record that is
--        not small, 0 = the content is not written
-- Sets   content, start

start, content = 0, ''
if basic_bytes + attribute_bytes > 0 then
  local from = HEAD_BYTES + token_bytes
  content = redis.call('GETRANGE', SESSION, from, from + basic_bytes + attribute_bytes - 1)
end
if #content > MAX_SMALL then
  local packed_nonce = struct.pack('>I8', NONCE)
  start = zeros > 0 and zeros or #packed_nonce
  content = packed_nonce .. ('\0'):rep(start - #packed_nonce) .. content
end
