-- Creates a session.
--
-- KEYS   session, due, namespaces, log, absent, meta
-- ARGV   those of head.lua, and
--        5 layout of the content, packed as LAYOUT; then packed as SETUP: verifier of the first token; idle timeout and
--          absolute timeout in ms, 0 = none; 1 = the subject index has the id, or the session has no subject
--        6 the content; above MAX_SMALL within a record whose other parts are zero and the nonce
--        7 id and fingerprint of the request, 16 and 8 bytes; absent = the call has no request id
-- Reply  {DONE, now, record}: head and tokens; the whole record if an earlier call with the request id created it
--      | {ROTATED, now}: so it is for an earlier call, but the token is not accepted any more
--      | {EXISTS, now} | {ENDED, now, cause, basic} | {REQUEST_ID_REUSED, now} | {NOT_RESERVED, now}

assert(#KEYS == 6 and #ARGV >= 6, 'arity')
-- include constants
-- include gate
local known_seal, REQUEST_ID = nil, ARGV[7] or ''
local namespace, id = ARGV[2]:match('^([^:]*):(.*)$')
-- include head
-- include change
local LAYOUT_BYTES, SETUP = 18, '>c16I8I8B'
if kind ~= ABSENT then
  -- include requests
  -- include end_session
  local known = known_request(read_requests())
  local ended, basic = end_if_expired()
  if ended then return {ENDED, now_us, ended, basic} end
  if kind == TOMBSTONE then return {ENDED, now_us, cause, ''} end
  if not known then return {EXISTS, now_us} end
  -- The retry presents the token that it created the session with.
  -- include tokens
  local index = kind == LIVE and token_index(ARGV[5]:sub(LAYOUT_BYTES + 1, LAYOUT_BYTES + 16)) or nil
  if not index then return {EXISTS, now_us} end
  if token_state(unpack_old(), index) == REFUSED then return {ROTATED, now_us} end
  if not known.is_same then return {REQUEST_ID_REUSED, now_us} end
  return {DONE, now_us, redis.call('GET', SESSION)}
end
if redis.call('ZSCORE', DUE, id) then
  -- include requests
  -- include end_session
  local ended, basic = end_if_expired()
  return {ENDED, now_us, ended, basic}
end
local namespace_score
-- include may_schedule

basic_bytes, attribute_bytes, request_bytes, basic_crc, attribute_crc = struct.unpack(LAYOUT, ARGV[5])
local has_place
verifier, idle, absolute, has_place = struct.unpack(SETUP, ARGV[5], LAYOUT_BYTES + 1)
if has_place == 0 then return {NOT_RESERVED, now_us} end
kind, revision, nonce, content_revision, content_nonce = LIVE, new_revision, NONCE, new_revision, NONCE
created, accessed, generation, cause, left, turn, turn_until = now, now, 1, 0, 0, 0, 0
idle_until, absolute = idle > 0 and now + idle or 0, absolute > 0 and now + absolute or 0
expires = (idle_until == 0 or absolute == 0) and idle_until + absolute or math.min(idle_until, absolute)
-- The first token counts as used: it supersedes no token, so its first use carries no information.
tokens = struct.pack(TOKEN, verifier, now, USED)
local content_head, life_and_tokens
-- include pack_head
-- include pack_life
local entry_type, entry_cause, changes, content = CREATED, 0, '', ARGV[6]
local entry_head, start = content_head .. life_and_tokens:sub(1, LIFE_END - CONTENT_HEAD_BYTES), 0
if basic_bytes + attribute_bytes > MAX_SMALL then start = HEAD_BYTES + TOKEN_BYTES end
require_right('SET', SESSION, 'v')
if start > 0 then require_right('SETRANGE', SESSION, '0', 'v') end
-- include append
local new_requests = REQUEST_ID ~= '' and struct.pack(REQUEST, REQUEST_ID, now, CHANGED) or ''
-- include write_whole
-- include schedule
return {DONE, now_us, content_head .. life_and_tokens}
