-- Ends a session on request.
--
-- KEYS   session, due, namespaces, log, absent, meta
-- ARGV   those of head.lua, and
--        5 cause: number of sessiond.v1.Cause
--        6 least tombstone, ms: TTL of the tombstone written if there is no session, and the minimum TTL of one that exists,
--          so that a create in flight fails
--        7 id and fingerprint of the request, 16 and 8 bytes; empty = the call has no request id
--        8 encoded subject: end the session only if it has this subject; empty = any
--        9 us: also end a session without a subject if its reservation in the index from that time is valid; empty = do not
--        10 ms: end the session only if it was created before; empty = any time
-- Reply  {DONE, now, cause, basic} | {NOT_FOUND, now} | {ENDED, now, cause, basic} | {CORRUPT, now}
--      | {REQUEST_ID_REUSED, now} | {NOT_MEANT, now}: a condition is not met, the session lives on

assert(#KEYS == 6 and #ARGV == 10, 'arity')
-- include constants
-- include gate
local known_seal, REQUEST_ID = nil, ARGV[7]
-- include head
-- include change
-- include requests
-- include tokens
-- include end_session
-- include subject
local wanted_cause, least_tombstone, wanted_subject, reserved_since, created_before =
  tonumber(ARGV[5]), ARGV[6], ARGV[8], ARGV[9], tonumber(ARGV[10]) or math.huge

-- Reply if a condition about the record is not met, or if there is nothing to end; nil = the session ends.
local function refuse(known)
  if kind == ABSENT then
    -- A session created later does not meet the condition: no tombstone is needed.
    if now >= created_before then return {NOT_MEANT, now_us} end
    write_tombstone(wanted_cause, least_tombstone, NO_EFFECT)
    return {NOT_FOUND, now_us}
  end
  if kind == TOMBSTONE then
    redis.call('PEXPIRE', SESSION, least_tombstone, 'GT')
    return {known and known.effect == ENDED_IT and DONE or ENDED, now_us, cause, ''}
  end
  if kind == UNREADABLE then
    if credential ~= '' then return {CORRUPT, now_us} end
    if redis.call('PTTL', SESSION) > 0 then
      -- A tombstone: the ENDED entry is already in the log.
      write_tombstone(wanted_cause, TOMBSTONE_MS, NO_EFFECT)
      return {NOT_FOUND, now_us}
    end
    -- The lengths in the head may be right all the same.
    if wanted_subject ~= '' and not has_subject(wanted_subject) then return {NOT_MEANT, now_us} end
    return nil
  end
  local is_meant = wanted_subject == '' or has_subject(wanted_subject) or has_reservation(reserved_since)
  return (not is_meant or created >= created_before) and {NOT_MEANT, now_us} or nil
end

local index = credential ~= '' and token_index(credential) or nil
if credential ~= '' and not index and kind ~= ABSENT then
  -- Only a tombstone has a TTL, and GT extends nothing else.
  redis.call('PEXPIRE', SESSION, least_tombstone, 'GT')
  return {NOT_FOUND, now_us}
end
local known = known_request(read_requests())
if known and not known.is_same then return {REQUEST_ID_REUSED, now_us} end
local ended, basic = end_if_expired()
if ended then return {ENDED, now_us, ended, basic} end
local refused = refuse(known)
if refused then return refused end
-- Token reuse ends the session with its own cause, if the policy says so. No other state of the token matters.
if index and REPORTS == 0 then
  local state, needs_write = token_state(unpack_old(), index)
  if state == REFUSED and needs_write then wanted_cause = TOKEN_REUSE end
end
return {DONE, now_us, wanted_cause, end_session(wanted_cause, ENDED_IT)}
