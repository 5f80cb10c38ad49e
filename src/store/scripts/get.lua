-- Reads a session and, if asked, counts that as a use: moves its deadline, without a revision and without an entry.
-- Registered twice: without the right to write it tells what is news, and leaves it to the one that has it.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of record.lua (with the right to write: of mutation.lua), and
--         writes          true = with the right to write
--         touch           true = counts as use
--         brief           true = without attributes
-- Reply {DONE, now, fields, standing of the token, till, 1 = this use is news} | {ROTATED, now, till, 1 = this is news}
--     | {NOT_FOUND, now} | {CORRUPT, now} | {ENDED, now, cause, subject or '', till, 1 = that is told}
--   till   ms until when the presented token is, or was, good; 0 = no end
--   With the right to write nothing follows the subject of one that was ended, nor the time of one that is ROTATED.

local found = find()
if found.kind == 'none' or found.kind == 'stranger' then return {NOT_FOUND, now_us} end
if found.kind == 'tombstone' then return {ENDED, now_us, found.cause, '', good_until(found), 1} end
if found.kind == 'corrupt' then return {CORRUPT, now_us} end
if is_over(found) then return {ENDED, now_us, timeout_cause(found), '', good_until(found), 0} end

local tokens = tokens_of(found)
local refused = args.writes and refuse_token(found, tokens)
if refused then return refused end
local stands, is_news = standing(found, tokens)
if stands == REFUSED then return {ROTATED, now_us, good_until(found), is_news and 1 or 0} end

if args.touch and touch_is_due(found) then
  found.accessed = now
  found.idle_until = math.max(found.idle_until, from_now(found.idle))
  found.flat[found.meta_at] = pack_meta(found)
  redis.call('HSET', SESSION, 'm', found.flat[found.meta_at])
  schedule(earlier(found.idle_until, found.absolute))
end
return {DONE, now_us, told(found.flat, args.brief), stands, good_until(found), is_news and 1 or 0}
