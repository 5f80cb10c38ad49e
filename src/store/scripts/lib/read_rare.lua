-- Reads a session that has ended or is missing, or with a token that is not the current one or was not presented yet.
--
-- KEYS   those of head.lua
-- ARGV   those of read.lua
-- Reads  those of read.lua
-- Sets   index, state, valid_until, as in read.lua; or it returns

local REQUEST_ID = ''
-- include change
-- include tokens
index = credential ~= '' and token_index(credential) or nil
if kind == ABSENT or credential ~= '' and not index then return {NOT_FOUND, now_us} end
if kind == UNREADABLE then return {CORRUPT, now_us} end
local old = unpack_old()
local over = 0
if index and index > 0 then valid_until, over = old[index].valid_until, is_over(old[index]) and 1 or 0 end
if kind == TOMBSTONE then return {ENDED, now_us, cause, '', valid_until, over, 1} end
if expires > 0 and now >= expires then
  return {ENDED, now_us, expires == absolute and ABSOLUTE_TIMEOUT or IDLE_TIMEOUT, '', valid_until, over, 0}
end
if index and may_write == 1 then
  -- include requests
  -- include end_session
  local is_marked = false
  -- include refuse_token
  local refused = refuse_token(old, index)
  if refused then return refused end
  -- include write_mark
end
local needs_write
if index then state, needs_write = token_state(old, index) end
if state == REFUSED then return {ROTATED, now_us, valid_until, needs_write and 1 or 0} end
