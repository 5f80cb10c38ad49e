-- Replies to a call whose request id is known.
--
-- KEYS   those of head.lua
-- ARGV   those of update.lua
-- Reads  those of tokens_after.lua; known: entry of the request id
-- Sets   nothing: it returns

if index and token_state(old, index) == REFUSED then
  -- Only the very rotation that superseded the token is answered.
  local token = old[index]
  local is_its_rotation = known.is_same and known.effect == ROTATED_IT and index == #old
    and known.seen_at == token.superseded and (salt_of_this == '' or now - known.seen_at <= GUARANTEED)
  if not is_its_rotation then return {ROTATED, now_us} end
elseif not known.is_same then
  return {REQUEST_ID_REUSED, now_us}
end
if successor ~= '' and salt_of_this ~= '' then
  if not is_issued() then return {ROTATED, now_us} end
  outcome = SHARED
end
-- include record_text
return {outcome, now_us, reply_text}
