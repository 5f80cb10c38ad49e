-- Changes a session: its content, timeouts or token. The caller has merged the content into the record that it read.
--
-- KEYS   session, due, namespaces, log, absent, meta
-- ARGV   those of head.lua, and
--        5 eight bytes, 1 = yes: login; touch; check only; first subject; loses its subject; reply without attributes; sets
--          the idle timeout; sets the absolute timeout. Then packed as CHANGE, or nothing = all 0: the timeouts and the grace
--          period of the old token in ms; time of the reservation in us; turn, 0 = the caller does not want it; 1 + required
--          revision, 0 = any
--        6 packed as EXPECTED, of the record that the caller read: content position, 14 bytes; bytes of tokens and of
--          request ids; seal. Empty = any record. Then the layout of the new content, packed as LAYOUT, or nothing = the
--          content stays
--        7 the new content; above MAX_SMALL within a record whose other parts are zero and the nonce. Empty if it stays
--        8 changes for the log entry
--        9 id and fingerprint of the request, 16 and 8 bytes; empty or absent = the call has no request id
--        10 verifier of the new token, 16 bytes, and the salt from which the server derived it, 32 bytes; without salt: the
--           caller made the token. Absent = no rotation
-- Reply  {DONE, now, record}: as in record_text.lua
--      | {SHARED, now, record}: the presented token has a successor that was not presented yet; the rest is applied
--      | {CONFLICT, now, record of up to 4 KiB or ''}: the content or a length is not the expected one
--      | {BUSY, now, ms}: another call has the turn, for at most this time
--      | {NOT_FOUND, now} | {ENDED, now, cause, basic} | {CORRUPT, now} | {ROTATED, now} | {TOKEN_KNOWN, now}
--      | {NOT_RESERVED, now, reservations up to this us are void} | {REVISION_MISMATCH, now, revision}
--      | {REQUEST_ID_REUSED, now} | {REQUEST_ID_LIMIT, now, ms until there is room}

assert(#KEYS == 6 and #ARGV >= 8, 'arity')
-- include constants
-- include gate
local CHANGE, EXPECTED, EXPECTED_BYTES = '>I8I8I8I8I8I8', '>c14I2I2c8', 26
local TURN_MS, MAX_REPLY = 100, 4096
local login, touches, checks, first_subject, loses_subject, is_brief, sets_idle, sets_absolute = ARGV[5]:byte(1, 8)
local new_idle, new_absolute, grace, reserved, own_turn, if_revision = 0, 0, 0, 0, 0, 0
if #ARGV[5] > 8 then
  new_idle, new_absolute, grace, reserved, own_turn, if_revision = struct.unpack(CHANGE, ARGV[5], 9)
end
local had_content, had_tokens, had_requests, known_seal
if ARGV[6] ~= '' then had_content, had_tokens, had_requests, known_seal = struct.unpack(EXPECTED, ARGV[6]) end
local REQUEST_ID, successor = ARGV[9] or '', (ARGV[10] or ''):sub(1, 16)
-- An empty content is a new content as well.
local changes_content = #ARGV[6] > EXPECTED_BYTES
-- include head
-- include change
local reply_text
local has_content = had_content == text:sub(CONTENT_FROM, CONTENT_TO)

-- Rare: there is no live session.
if kind ~= LIVE or expires > 0 and now >= expires then
  -- include no_live_session
end

-- Tokens and request ids. A call by id or by the current token, without rotation, login and request ids, changes none.
local outcome, effect, new_tokens, changes_tokens, new_requests, wait = DONE, CHANGED, tokens, false, '', 0
local is_marked = false
if credential ~= '' and (credential ~= verifier or not is_used) or successor ~= '' or login == 1 or REQUEST_ID ~= ''
  or changes_content and request_bytes > 0 or tokens:byte(TOKEN_BYTES) >= SALTED then
  -- include requests
  -- include tokens
  -- include end_session
  -- include refuse_token
  -- include tokens_after
end

-- include check_update
-- include times_after
if not is_logged and touches == 0 and idle_until == idle_until_before and REQUEST_ID == '' and new_tokens == tokens then
  -- include record_text
  return {outcome, now_us, reply_text}
end

-- include record_after
if is_logged then
  local entry_type, entry_cause, changes = effect == ROTATED_IT and ROTATING or UPDATED, 0, ARGV[8]
  local entry_head = content_head .. life_and_tokens:sub(1, LIFE_END - CONTENT_HEAD_BYTES)
  if is_whole then require_right('SET', SESSION, 'v') end
  if not is_whole or start > 0 then require_right('SETRANGE', SESSION, '0', 'v') end
  -- include append
end
if is_whole then
  -- include write_whole
else
  redis.call('SETRANGE', SESSION, '0', content_head .. life_and_tokens)
end
if expires ~= expires_before then
  -- include schedule
end
-- include record_text
return {outcome, now_us, reply_text}
