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
  -- include read_rare
elseif credential ~= '' then
  local _, renewal = struct.unpack(RULES, ARGV[3])
  local _, since = struct.unpack(TOKEN, tokens)
  state = now - since >= renewal and ROTATION_DUE or CURRENT
end

local reply_text
if may_write == 1 and touches == 1 then
  -- include touch
end
local has_content = ARGV[5]:sub(4, 17) == text:sub(CONTENT_FROM, CONTENT_TO)
-- include record_text
return {DONE, now_us, reply_text, state, valid_until}
