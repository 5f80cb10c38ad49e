-- Ends what is over by itself: past its deadline, or gone from Redis behind our back; no other.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of mutation.lua, and
--         least_tombstone ms: what is left where there was no session, and the least that is left of one that has ended;
--                         absent = what is there
--         joining         us: since when one of no subject may be about to get one
-- Reply {DONE, now, cause, subject} | {NOT_FOUND, now} | {ENDED, now, cause} | {CORRUPT, now}
--     | {NOT_DUE, now, subject, 1 = it may be about to get one}: it lives on

local found = find()
local subject = found.fixed.u or ''

-- The deadline stands in the due set as well: a record that cannot be read ends by it.
if found.kind == 'corrupt' and due_score and now >= tonumber(due_score) then
  finish(found, IDLE_TIMEOUT)
  return {DONE, now_us, IDLE_TIMEOUT, subject}
end
local over = end_if_over(found)
if over then return {DONE, now_us, over[3], subject} end
if found.kind == 'corrupt' then return {CORRUPT, now_us} end
if found.kind == 'live' then
  -- The due set follows the record, should they ever differ.
  if tonumber(due_score) ~= (found.expires > 0 and found.expires or math.huge) then schedule(found.expires) end
  return {NOT_DUE, now_us, subject, is_joining(found, args.joining) and 1 or 0}
end
if found.kind == 'tombstone' and due_score then redis.call('ZREM', DUE, args.id) end
if found.kind == 'none' then
  if not args.least_tombstone then return {NOT_FOUND, now_us} end
  bury(found, REVOKED, args.least_tombstone)
end
-- Who asks may forget the id: for as long as a create may be under way it stays ended.
if args.least_tombstone then redis.call('PEXPIRE', SESSION, args.least_tombstone, 'GT') end
return {ENDED, now_us, found.cause or REVOKED}
