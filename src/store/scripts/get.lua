-- Reads a session and touches it if asked: moves its idle deadline, without a new revision or log entry.
-- Registered with two preludes. The variant without mutation.lua writes nothing: it replies 1 if the read needs a
-- write, and the caller then runs the variant that writes.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of record.lua (of mutation.lua in the variant that writes), and
--         writes          true = this is the variant that writes
--         touch           true = touch the session
--         brief           true = reply without attributes
-- Reply {DONE, now, fields, token state, valid until, 1 = needs a write}
--     | {ROTATED, now, valid until, 1 = needs a write} | {NOT_FOUND, now} | {CORRUPT, now}
--     | {ENDED, now, cause, subject or '', valid until, 1 = that time is over, 1 = the end is in the log}
--   valid until   ms until which the presented token is, or was, accepted; 0 = no limit
--   In the variant that writes, ENDED ends after the subject if this call ended the session, ROTATED ends after now.

-- Functions of mutation.lua; the variant without it never calls them.
-- luacheck: read globals refuse_token touch_is_due from_now pack_meta schedule

local found = find()
local valid_until, over = 0, 0
if found.kind == 'tombstone' or found.kind == 'live' then valid_until, over = validity(found) end
if found.kind == 'none' or found.kind == 'wrong_token' then return {NOT_FOUND, now_us} end
if found.kind == 'tombstone' then return {ENDED, now_us, found.cause, '', valid_until, over, 1} end
if found.kind == 'corrupt' then return {CORRUPT, now_us} end
if is_expired(found) then return {ENDED, now_us, timeout_cause(found), '', valid_until, over, 0} end

local tokens = tokens_of(found)
local refused = args.writes and refuse_token(found, tokens)
if refused then return refused end
local state, needs_write = token_state(found, tokens)
if state == REFUSED then return {ROTATED, now_us, valid_until, needs_write and 1 or 0} end

if args.touch and touch_is_due(found) then
  found.accessed = now
  found.idle_until = math.max(found.idle_until, from_now(found.idle))
  found.flat[found.meta_at] = pack_meta(found)
  redis.call('HSET', SESSION, 'm', found.flat[found.meta_at])
  schedule(earlier(found.idle_until, found.absolute))
end
return {DONE, now_us, pack_fields(found.flat, args.brief), state, valid_until, needs_write and 1 or 0}
