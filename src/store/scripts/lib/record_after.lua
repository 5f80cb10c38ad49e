-- The record after an update.
--
-- KEYS   those of head.lua
-- ARGV   those of update.lua
-- Reads  those of update.lua, tokens_after.lua and times_after.lua
-- Sets   the fields of the head; is_whole: the whole record is written, else head and tokens; zeros, content, start: as in
--        append.lua; content_head; life_and_tokens; namespace, id, namespace_score: as in schedule.lua, if the deadline moves;
--        reply_text

local is_whole = changes_content or REQUEST_ID ~= '' or #new_tokens ~= token_bytes
local zeros = is_whole and HEAD_BYTES + #new_tokens or 0
local content, start = ARGV[7], 0
if not is_whole then new_requests = '' end
if changes_content then
  local _
  basic_bytes, attribute_bytes, _, basic_crc, attribute_crc = struct.unpack(LAYOUT, ARGV[6], EXPECTED_BYTES + 1)
  content_revision, content_nonce, turn, turn_until, has_content = new_revision, NONCE, 0, 0, true
  if basic_bytes + attribute_bytes > MAX_SMALL then
    start = zeros
    if #content ~= zeros + basic_bytes + attribute_bytes + #new_requests then return {CONFLICT, now_us, ''} end
  end
  if loses_subject == 1 then left = new_revision end
elseif is_whole or is_logged then
  -- include stored_content
  if start > 0 then content = content .. ('\0'):rep(#new_requests) end
end
if is_whole then request_bytes = #new_requests end
if is_logged then revision, nonce = new_revision, NONCE end
if effect == ROTATED_IT then generation = generation + 1 end
local is_life_kept = new_tokens == tokens and accessed == accessed_before and idle == idle_before
  and idle_until == idle_until_before and absolute == absolute_before and loses_subject == 0
tokens = new_tokens
expires = (idle_until == 0 or absolute == 0) and idle_until + absolute or math.min(idle_until, absolute)
local namespace, id, namespace_score
if expires ~= expires_before then
  namespace, id = NAME:match('^([^:]*):(.*)$')
  -- An error for a key of another type has to come before the first write.
  redis.call('ZCARD', DUE)
  -- include may_schedule
end
local content_head, life_and_tokens
-- include pack_head
if is_life_kept then
  life_and_tokens = text:sub(CONTENT_HEAD_BYTES + 1)
else
  -- include pack_life
end
-- The caller has the life and the tokens if the seal is the one that it read: a touch changes them only.
reply_text = is_life_kept and text:sub(LIFE_END + 1, HEAD_BYTES) == known_seal and content_head or content_head .. life_and_tokens
