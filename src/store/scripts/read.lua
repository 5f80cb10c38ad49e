-- Reads a session if the common read cannot answer; touches it, and records the first use of a token, if
-- it may write. Registered twice: with no-writes for the time in which Redis refuses writes.
--
-- KEYS   session, due, namespaces, log, absent, meta
-- ARGV   those of head.lua, and
--        5 three bytes: 1 = the script may write; 1 = touch the session; 1 = reply without attributes. Then the content
--          position and the seal of the record that the caller read, 14 and 8 bytes; nothing = none
-- Reply  {DONE, now, record, token state, valid until}: the record is head and tokens if the caller has the content
--      | {ROTATED, now, valid until, 1 = token reuse whose consequences need a write} | {ROTATED, now}: they are written
--      | {NOT_FOUND, now} | {CORRUPT, now}
--      | {ENDED, now, cause, '', valid until, 1 = that time is over, 1 = the end is in the log}
--      | {ENDED, now, cause, basic}: this call ended the session
--        valid until   ms until which the presented token is, or was, accepted; 0 = no limit

assert(#KEYS == 6 and #ARGV == 5, 'arity')
-- include constants
-- include gate
local known_seal = ARGV[5]:sub(18)
-- include head
local may_write, touches, is_brief = ARGV[5]:byte(1, 3)
local index, state, valid_until = 0, NOT_PRESENTED, 0

if kind ~= LIVE or expires > 0 and now >= expires or credential ~= '' and (credential ~= verifier or not is_used) then
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
elseif credential ~= '' then
  local _, renewal = struct.unpack(RULES, ARGV[3])
  local _, since = struct.unpack(TOKEN, tokens)
  state = now - since >= renewal and ROTATION_DUE or CURRENT
end

local reply_text
if may_write == 1 and touches == 1 then
  local _, _, touch_interval = struct.unpack(RULES, ARGV[3])
  if now - accessed >= (idle > 0 and math.min(touch_interval, idle / 20) or touch_interval) then
    local expires_before, life = expires, nil
    if tokens:byte(TOKEN_BYTES) >= SALTED then
      -- include tokens
      local old = unpack_old()
      if drop_salt(old) then tokens = pack_tokens(old) end
    end
    accessed = now
    if idle > 0 then idle_until = math.max(idle_until, now + idle) end
    expires = (idle_until == 0 or absolute == 0) and idle_until + absolute or math.min(idle_until, absolute)
    if expires ~= expires_before then
      local namespace, id = NAME:match('^([^:]*):(.*)$')
      local namespace_score = redis.call('ZSCORE', NAMESPACES, namespace)
      -- include schedule
    end
    -- include pack_life
    redis.call('SETRANGE', SESSION, CONTENT_HEAD_BYTES, life)
    reply_text = text:sub(1, CONTENT_HEAD_BYTES) .. life
  end
end
local has_content = ARGV[5]:sub(4, 17) == text:sub(CONTENT_FROM, CONTENT_TO)
-- include record_text
return {DONE, now_us, reply_text, state, valid_until}
