-- Ends a session: the only script that does so on request.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of mutation.lua, and
--         cause           number of sessiond.v1.Cause
--         least_tombstone ms: what is left where there was no session, so that a create still under way fails, and the
--                         least that is left of one that has ended
--         subject         stored value: only a session of this subject; absent = whoever's
--         joining         us: also one of no subject that since then may be about to get this one
--         created_before  ms: only a session made before; absent = whenever made
-- Reply {DONE, now, cause, subject} | {NOT_FOUND, now} | {ENDED, now, cause[, subject]} | {CORRUPT, now}
--     | {REQUEST_ID_REUSED, now} | {NOT_MEANT, now}: it lives on

local found = find()
local subject = found.fixed.u or ''

if found.kind == 'stranger' then
  if redis.call('EXISTS', SESSION) == 1 then return {NOT_FOUND, now_us} end
  found.kind = 'none'
end
local known = known_request(found.fixed.r)
if known and not known.same then return {REQUEST_ID_REUSED, now_us} end
if known and known.outcome == 2 and found.kind == 'tombstone' then return {DONE, now_us, found.cause, ''} end

local over = end_if_over(found)
if over then return over end
if found.kind == 'tombstone' then
  redis.call('PEXPIRE', SESSION, args.least_tombstone, 'GT')
  return {ENDED, now_us, found.cause}
end
if found.kind == 'none' then
  -- A session that is made from now on is not made before.
  if args.created_before and now >= args.created_before then return {NOT_MEANT, now_us} end
  bury(found, args.cause, args.least_tombstone)
  return {NOT_FOUND, now_us}
end
if found.kind == 'corrupt' and args.proof then return {CORRUPT, now_us} end
if found.fixed.x and not found.fixed.m then
  -- A tombstone that cannot be read: what it stands for has been told.
  bury(found, args.cause, args.least_tombstone)
  return {NOT_FOUND, now_us}
end
local refused = found.kind == 'live' and refuse_token(found, tokens_of(found))
if refused then return refused[1] == ENDED and refused or {NOT_FOUND, now_us} end
local is_meant = not args.subject or subject == args.subject or is_joining(found, args.joining)
if not is_meant or args.created_before and (found.created or 0) >= args.created_before then
  return {NOT_MEANT, now_us}
end
finish(found, args.cause, 2)
return {DONE, now_us, args.cause, subject}
