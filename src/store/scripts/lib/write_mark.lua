-- Writes the first use of the presented token, which refuse_token.lua has set in `text`. The script is then sure to answer the
-- call: a call that is decided again has not presented its token yet.
--
-- KEYS   those of head.lua
-- ARGV   none
-- Reads  text, is_marked
-- Sets   nothing

if is_marked then redis.call('SETRANGE', SESSION, CONTENT_HEAD_BYTES, text:sub(CONTENT_HEAD_BYTES + 1)) end
