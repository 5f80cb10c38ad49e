-- Ends a session that is past its deadline, or whose key is missing although its id is still in the due set; no other.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of mutation.lua, and
--         least_tombstone ms: TTL of the tombstone written if there is no session, and the minimum TTL of the tombstone
--                         of a session that has already ended; absent = write none, keep the TTL
--         reserved_since  us: time of a reservation that may give a session without a subject one; absent = none
-- Reply {DONE, now, cause, subject} | {NOT_FOUND, now} | {ENDED, now, cause} | {CORRUPT, now}
--     | {NOT_DUE, now, subject, 1 = has no subject, but a valid reservation}: the session lives on

local found = find()
local subject = found.fixed.u or ''

-- An unreadable record ends at the deadline in the due set.
if found.kind == 'corrupt' and due_score and now >= tonumber(due_score) then
  end_session(found, IDLE_TIMEOUT)
  return {DONE, now_us, IDLE_TIMEOUT, subject}
end
local ended = end_if_expired(found)
if ended then return {DONE, now_us, ended[3], subject} end
if found.kind == 'corrupt' then return {CORRUPT, now_us} end
if found.kind == 'live' then
  -- If record and due set differ, the record is right.
  local expires = found.expires > 0 and found.expires or math.huge
  if tonumber(due_score) ~= expires or not namespace_score then schedule(found.expires) end
  return {NOT_DUE, now_us, subject, is_reserved(found, args.reserved_since) and 1 or 0}
end
if found.kind == 'tombstone' and due_score then redis.call('ZREM', DUE, args.id) end
if found.kind == 'none' then
  if not args.least_tombstone then return {NOT_FOUND, now_us} end
  write_tombstone(found, REVOKED, args.least_tombstone)
end
-- The caller may remove the id from the index: the tombstone has to outlive every create in flight.
if args.least_tombstone then redis.call('PEXPIRE', SESSION, args.least_tombstone, 'GT') end
return {ENDED, now_us, found.cause or REVOKED}
