-- Ends a session on request.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of mutation.lua, and
--         cause           number of sessiond.v1.Cause
--         least_tombstone ms: TTL of the tombstone written if there is no session, and the minimum TTL of one that
--                         exists, so that a create in flight fails
--         subject         stored value: end the session only if it has this subject; absent = any subject
--         reserved_since  us: also end a session without a subject if its reservation in the index from that time is
--                         valid
--         created_before  ms: end the session only if it was created before; absent = any time
-- Reply {DONE, now, cause, subject} | {NOT_FOUND, now} | {ENDED, now, cause[, subject]} | {CORRUPT, now}
--     | {REQUEST_ID_REUSED, now} | {NOT_MEANT, now}: a condition is not met, the session lives on

local found = find()
local subject = found.fixed.u or ''

if found.kind == 'wrong_token' then
  if redis.call('EXISTS', SESSION) == 1 then
    -- Only a tombstone has a TTL, and GT extends nothing else.
    redis.call('PEXPIRE', SESSION, args.least_tombstone, 'GT')
    return {NOT_FOUND, now_us}
  end
  found.kind = 'none'
end
local known = known_request(found.fixed.r)
if known and not known.same then return {REQUEST_ID_REUSED, now_us} end
if found.kind == 'tombstone' then
  redis.call('PEXPIRE', SESSION, args.least_tombstone, 'GT')
  if known and known.outcome == 2 then return {DONE, now_us, found.cause, ''} end
  return {ENDED, now_us, found.cause}
end

local ended = end_if_expired(found)
if ended then return ended end
if found.kind == 'none' then
  -- A session created later does not meet the condition: no tombstone is needed.
  if args.created_before and now >= args.created_before then return {NOT_MEANT, now_us} end
  write_tombstone(found, args.cause, args.least_tombstone)
  return {NOT_FOUND, now_us}
end
if found.kind == 'corrupt' and args.credential then return {CORRUPT, now_us} end
if found.fixed.x and not found.fixed.m then
  -- An unreadable tombstone: the ENDED entry is already in the log.
  write_tombstone(found, args.cause, args.tombstone)
  return {NOT_FOUND, now_us}
end
local refused = found.kind == 'live' and refuse_token(found, tokens_of(found))
if refused then return refused[1] == ENDED and refused or {NOT_FOUND, now_us} end
local matches = not args.subject or subject == args.subject or is_reserved(found, args.reserved_since)
if not matches or args.created_before and (found.created or 0) >= args.created_before then
  return {NOT_MEANT, now_us}
end
end_session(found, args.cause, 2)
return {DONE, now_us, args.cause, subject}
