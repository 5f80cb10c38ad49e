-- Checks of an update that come after those of token and request id.
--
-- KEYS   those of head.lua
-- ARGV   those of update.lua
-- Reads  those of update.lua
-- Sets   nothing: it returns a reply that ends the script, or the script goes on

if if_revision ~= 0 and if_revision ~= revision + 1 then
  -- include write_mark
  return {REVISION_MISMATCH, now_us, revision}
end
if had_content then
  -- A turn that ends later than any that is given now is from before the clock was set back.
  local is_taken = turn ~= 0 and now < turn_until and turn_until <= now + TURN_MS
  if changes_content and is_taken and turn ~= own_turn then return {BUSY, now_us, turn_until - now} end
  if not has_content or had_tokens ~= token_bytes or had_requests ~= request_bytes or wait < 0 then
    if own_turn ~= 0 and not is_taken then
      local content_head
      turn, turn_until = own_turn, now + TURN_MS
      -- include pack_head
      redis.call('SETRANGE', SESSION, '0', content_head)
    end
    local bytes = HEAD_BYTES + token_bytes + basic_bytes + attribute_bytes + request_bytes
    return {CONFLICT, now_us, bytes <= MAX_REPLY and redis.call('GET', SESSION) or ''}
  end
end
-- include write_mark
if checks == 1 then
  -- include record_text
  return {DONE, now_us, reply_text}
end
if wait > 0 then return {REQUEST_ID_LIMIT, now_us, wait} end
-- The last check: the caller then reserves the id, which ends other sessions if the subject has too many.
if first_subject == 1 and reserved <= left then return {NOT_RESERVED, now_us, left} end
