-- Function that checks the presented token of a live session.
--
-- KEYS   those of head.lua
-- ARGV   those of head.lua
-- Reads  those of head.lua, change.lua, tokens.lua and end_session.lua
-- Sets   the function; is_marked: the first use has to be written

-- Returns the reply if the token at this index is not accepted; nil = accepted, `text` has its first use. Token reuse ends the
-- session or is reported, as the policy says.
local function refuse_token(old, index)
  local state, needs_write = token_state(old, index)
  if not needs_write then return state == REFUSED and {ROTATED, now_us} or nil end
  if state == REFUSED and REPORTS == 0 then
    return {ENDED, now_us, TOKEN_REUSE, end_session(TOKEN_REUSE, NO_EFFECT)}
  end
  local content_head, life_and_tokens
  if state ~= REFUSED then
    -- A successor that was presented is not issued again: its salt is removed.
    if index == 0 then
      used, salt = USED, salt ~= '' and REMOVED_SALT or ''
    else
      old[index].flags = bit.bor(old[index].flags, USED)
    end
    tokens = pack_tokens(old)
    -- include pack_life
    text, is_marked = text:sub(1, CONTENT_HEAD_BYTES) .. life_and_tokens, true
    return nil
  end
  old[index].flags = bit.bor(old[index].flags, REPORTED)
  local entry_type, entry_cause, changes, zeros, content, start = TOKEN_REUSED, 0, '', 0, nil, nil
  -- include stored_content
  tokens, revision, nonce = pack_tokens(old), new_revision, NONCE
  -- include pack_head
  -- include pack_life
  local entry_head = content_head .. life_and_tokens:sub(1, LIFE_END - CONTENT_HEAD_BYTES)
  require_right('SETRANGE', SESSION, '0', 'v')
  -- include append
  redis.call('SETRANGE', SESSION, '0', content_head .. life_and_tokens)
  return {ROTATED, now_us}
end
