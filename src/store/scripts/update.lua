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
  -- include requests
  -- include tokens
  -- include end_session
  if credential ~= '' and not token_index(credential) then return {NOT_FOUND, now_us} end
  local ended, basic = end_if_expired()
  if ended then return {ENDED, now_us, ended, basic} end
  if kind == TOMBSTONE then return {ENDED, now_us, cause, ''} end
  return {kind == ABSENT and NOT_FOUND or CORRUPT, now_us}
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

-- Timeouts and touch.
local accessed_before, absolute_before, idle_before, idle_until_before, expires_before =
  accessed, absolute, idle, idle_until, expires
if sets_idle == 1 then idle = new_idle end
if sets_absolute == 1 then absolute = new_absolute > 0 and created + new_absolute or 0 end
local is_logged = changes_content or changes_tokens or idle ~= idle_before or absolute ~= absolute_before
if touches == 1 and not is_logged then
  local _, _, touch_interval = struct.unpack(RULES, ARGV[3])
  if now - accessed < (idle > 0 and math.min(touch_interval, idle / 20) or touch_interval) then touches = 0 end
end
if touches == 1 then accessed = now end
if sets_idle == 1 then
  idle_until = idle > 0 and now + idle or 0
elseif touches == 1 and idle > 0 then
  -- Later: the clock was set back.
  idle_until = math.max(idle_until, now + idle)
end
if not is_logged and touches == 0 and idle_until == idle_until_before and REQUEST_ID == '' and new_tokens == tokens then
  -- include record_text
  return {outcome, now_us, reply_text}
end

-- The record after the change.
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
local content_head, life
-- include pack_head
if is_life_kept then
  life = text:sub(CONTENT_HEAD_BYTES + 1)
else
  -- include pack_life
end
-- The caller has the life and the tokens if the seal is the one that it read: a touch changes them only.
reply_text = is_life_kept and text:sub(LIFE_END + 1, HEAD_BYTES) == known_seal and content_head or content_head .. life
if is_logged then
  local entry_type, entry_cause, changes = effect == ROTATED_IT and ROTATING or UPDATED, 0, ARGV[8]
  local head = content_head .. life:sub(1, LIFE_END - CONTENT_HEAD_BYTES)
  if is_whole then require_right('SET', SESSION, 'v') end
  if not is_whole or start > 0 then require_right('SETRANGE', SESSION, '0', 'v') end
  -- include append
end
if is_whole then
  -- include write_whole
else
  redis.call('SETRANGE', SESSION, '0', content_head .. life)
end
if expires ~= expires_before then
  -- include schedule
end
-- include record_text
return {outcome, now_us, reply_text}
