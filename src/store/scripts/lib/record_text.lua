-- Text of the record for a reply: only what the caller does not have. That is the head of the content, head and tokens, head to
-- `basic`, or all of it; its length shows which.
--
-- KEYS   those of head.lua
-- ARGV   those of head.lua
-- Reads  text; reply_text: head of the content, or head and tokens, that the script wrote, nil = none; tokens; basic_bytes;
--        has_content; is_brief: 1 = a reply without attributes
-- Sets   reply_text

reply_text = reply_text or text
if not has_content then
  local last_byte = is_brief == 1 and HEAD_BYTES + #tokens + basic_bytes - 1 or -1
  reply_text = redis.call('GETRANGE', SESSION, 0, last_byte)
end
