-- Writes the whole record.
--
-- KEYS   those of head.lua
-- ARGV   none
-- Reads  content_head; life_and_tokens: life, seal and tokens; content, start; new_requests: the request ids
-- Sets   nothing

if start == 0 then
  redis.call('SET', SESSION, content_head .. life_and_tokens .. content .. new_requests)
else
  redis.call('SET', SESSION, content)
  redis.call('SETRANGE', SESSION, '0', content_head .. life_and_tokens)
  if new_requests ~= '' then redis.call('SETRANGE', SESSION, #content - #new_requests, new_requests) end
end
