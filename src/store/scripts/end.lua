-- Ends a session: the only script that does so on request.
--
-- KEYS  session, due, namespaces, log, meta
-- ARGV  those of mutation.lua, and
--         cause       number of sessiond.v1.Cause; absent = only what is over by itself: past its deadline, or gone
--                     from Redis behind our back
--         nothing     ms: the tombstone where there was no session, so that a create still under way fails
-- Reply {DONE, now, cause} | {NOT_FOUND, now} | {ENDED, now, cause} | {CORRUPT, now} | {REQUEST_ID_REUSED, now}
--     | {NOT_DUE, now}

local found = find()

if not args.cause then
  -- The deadline stands in the due set as well: a record that cannot be read ends by it.
  if found.kind == 'corrupt' and due_score and now >= tonumber(due_score) then
    finish(found, IDLE_TIMEOUT)
    return {DONE, now_us, IDLE_TIMEOUT}
  end
  local over = end_if_over(found)
  if over then return {DONE, now_us, over} end
  -- The due set follows the record, should they ever differ.
  if found.kind == 'live' and tonumber(due_score) ~= found.expires then schedule(found.expires) end
  if found.kind == 'tombstone' and due_score then redis.call('ZREM', DUE, args.id) end
  return {found.kind == 'live' and NOT_DUE or NOT_FOUND, now_us}
end

if found.kind ~= 'none' and not proves(found) then return {NOT_FOUND, now_us} end
local known = known_request(found.fixed.r)
if known and not known.same then return {REQUEST_ID_REUSED, now_us} end
if known and known.outcome == 2 then return {DONE, now_us, found.cause} end

local over = end_if_over(found)
if over then return {ENDED, now_us, over} end
if found.kind == 'tombstone' then return {ENDED, now_us, found.cause} end
if found.kind == 'none' then
  bury(found, args.cause, args.nothing, 0)
  return {NOT_FOUND, now_us}
end
if found.kind == 'corrupt' and args.proof then return {CORRUPT, now_us} end
finish(found, args.cause, 2)
return {DONE, now_us, args.cause}
