-- Ends a session that is past its deadline, or whose key is missing although its id is still in the due set; no other.
--
-- KEYS   session, due, namespaces, log, absent, meta
-- ARGV   those of head.lua, and
--        5 least tombstone, ms: TTL of the tombstone written if there is no session, and the minimum TTL of the tombstone of
--          a session that has already ended; empty = write none, keep the TTL
--        6 us: time of a reservation that may give a session without a subject one; empty = none
-- Reply  {DONE, now, cause, basic} | {NOT_FOUND, now} | {ENDED, now, cause, ''} | {CORRUPT, now}
--      | {NOT_DUE, now, basic, 1 = has no subject, but a valid reservation}: the session lives on

assert(#KEYS == 6 and #ARGV == 6, 'arity')
-- include constants
-- include gate
local known_seal, REQUEST_ID = nil, ''
-- include head
-- include change
-- include requests
-- include end_session
-- include subject
local least_tombstone, reserved_since = ARGV[5], ARGV[6]
local namespace, id = NAME:match('^([^:]*):(.*)$')
local ended, basic = end_if_expired()
if ended then return {DONE, now_us, ended, basic} end
local due_score = redis.call('ZSCORE', DUE, id)
if kind == UNREADABLE then
  -- An unreadable record ends at the deadline in the due set.
  if not due_score or now < tonumber(due_score) then return {CORRUPT, now_us} end
  return {DONE, now_us, IDLE_TIMEOUT, end_session(IDLE_TIMEOUT, NO_EFFECT)}
end
if kind == LIVE then
  -- If record and due set differ, the record is right.
  local namespace_score = redis.call('ZSCORE', NAMESPACES, namespace)
  if tonumber(due_score) ~= (expires > 0 and expires or math.huge) or not namespace_score then
    -- include schedule
  end
  local from = HEAD_BYTES + token_bytes
  basic = redis.call('GETRANGE', SESSION, from, from + basic_bytes - 1)
  return {NOT_DUE, now_us, basic, has_reservation(reserved_since) and 1 or 0}
end
if kind == TOMBSTONE and due_score then redis.call('ZREM', DUE, id) end
if least_tombstone == '' then
  return kind == TOMBSTONE and {ENDED, now_us, cause, ''} or {NOT_FOUND, now_us}
end
-- The caller may remove the id from the index: the tombstone has to outlive every create in flight.
if kind == ABSENT then write_tombstone(REVOKED, least_tombstone, NO_EFFECT) end
redis.call('PEXPIRE', SESSION, least_tombstone, 'GT')
return {ENDED, now_us, kind == TOMBSTONE and cause or REVOKED, ''}
