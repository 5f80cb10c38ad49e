-- Ends a session: the only script that does so on request.
--
-- KEYS  session, due, namespaces, log, meta
-- ARGV  those of mutation.lua, and
--         cause           number of sessiond.v1.Cause; absent = only what is over by itself: past its deadline, or gone
--                         from Redis behind our back
--         nothing         ms: the tombstone where there was no session, so that a create still under way fails, and the
--                         least that is left of one that is there; absent = none is left
--         subject         stored value: only a session of this subject; absent = whoever's
--         joining         true = also one of no subject, which may be about to get this one
--         created_before  ms: only a session made before; absent = whenever made
-- Reply {DONE, now, cause, subject} | {NOT_FOUND, now} | {ENDED, now, cause[, subject]} | {CORRUPT, now}
--     | {REQUEST_ID_REUSED, now} | {NOT_DUE, now, subject}: it lives on

local found = find()
local subject = found.fixed.u or ''

if not args.cause then
  -- The deadline stands in the due set as well: a record that cannot be read ends by it.
  if found.kind == 'corrupt' and due_score and now >= tonumber(due_score) then
    finish(found, IDLE_TIMEOUT)
    return {DONE, now_us, IDLE_TIMEOUT, subject}
  end
  local over = end_if_over(found)
  if over then return {DONE, now_us, over[3], subject} end
  -- The due set follows the record, should they ever differ.
  if found.kind == 'live' and tonumber(due_score) ~= found.expires then schedule(found.expires) end
  if found.kind == 'live' then return {NOT_DUE, now_us, subject} end
  if found.kind == 'corrupt' then return {CORRUPT, now_us} end
  if found.kind == 'none' and not args.nothing then return {NOT_FOUND, now_us} end
  if found.kind == 'none' then bury(found, REVOKED, args.nothing) end
  if found.kind == 'tombstone' and due_score then redis.call('ZREM', DUE, args.id) end
  -- Who asks may forget the id: for as long as a create may be under way it stays ended.
  if args.nothing then redis.call('PEXPIRE', SESSION, args.nothing, 'GT') end
  return {ENDED, now_us, found.cause or REVOKED}
end

if found.kind == 'stranger' then
  if redis.call('EXISTS', SESSION) == 1 then return {NOT_FOUND, now_us} end
  found.kind = 'none'
end
local known = known_request(found.fixed.r)
if known and not known.same then return {REQUEST_ID_REUSED, now_us} end
if known and known.outcome == 2 then return {DONE, now_us, found.cause, ''} end

local over = end_if_over(found)
if over then return over end
if found.kind == 'tombstone' then
  redis.call('PEXPIRE', SESSION, args.nothing, 'GT')
  return {ENDED, now_us, found.cause}
end
if found.kind == 'none' then
  -- A session that is made from now on is not made before.
  if args.created_before and now >= args.created_before then return {NOT_DUE, now_us, ''} end
  bury(found, args.cause, args.nothing)
  return {NOT_FOUND, now_us}
end
if found.kind == 'corrupt' and args.proof then return {CORRUPT, now_us} end
local refused = found.kind == 'live' and refuse_token(found, tokens_of(found))
if refused then return refused[1] == ENDED and refused or {NOT_FOUND, now_us} end
local is_meant = not args.subject or subject == args.subject or args.joining and subject == ''
if not is_meant or args.created_before and (found.created or 0) >= args.created_before then
  return {NOT_DUE, now_us, subject}
end
finish(found, args.cause, 2)
return {DONE, now_us, args.cause, subject}
