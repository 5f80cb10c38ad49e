-- Reads a session and, if asked, counts that as a use: moves its deadline, without a revision and without an entry.
-- Registered twice: without the right to write it tells what is news, and leaves it to the one that has it.
--
-- KEYS  session, due, namespaces, log, meta
-- ARGV  those of record.lua (with the right to write: of mutation.lua), and
--         writes          true = with the right to write
--         touch           true = counts as use
--         brief           true = without attributes
-- Reply {DONE, now, fields, standing of the token, ms until which that holds, 1 = this use is news}
--     | {ROTATED, now, 1 = this is news} | {NOT_FOUND, now} | {CORRUPT, now}
--     | {ENDED, now, cause, subject where this call ended it, 1 = it is told, 1 = the token was accepted up to its end}

local found = find()
if found.kind == 'none' or found.kind == 'stranger' then return {NOT_FOUND, now_us} end
if found.kind == 'tombstone' then
  local was_accepted = not found.place or found.place == 0 or found.revision / 1000 < tokens_of(found).old[found.place].good_until
  return {ENDED, now_us, found.cause, '', 1, was_accepted and 1 or 0}
end
if found.kind == 'corrupt' then return {CORRUPT, now_us} end

local tokens = tokens_of(found)
if is_over(found) then
  local was_accepted = standing(found, tokens) ~= REFUSED
  return {ENDED, now_us, timeout_cause(found), '', 0, was_accepted and 1 or 0}
end
local refused = args.writes and refuse_token(found, tokens)
if refused then return refused end
local stands, good_until, is_news = standing(found, tokens)
if stands == REFUSED then return {ROTATED, now_us, is_news and 1 or 0} end

if args.touch and touch_is_due(found) then
  found.accessed = now
  found.idle_until = math.max(found.idle_until, from_now(found.idle))
  found.flat[found.meta_at] = pack_meta(found)
  redis.call('HSET', SESSION, 'm', found.flat[found.meta_at])
  schedule(earlier(found.idle_until, found.absolute))
end
return {DONE, now_us, told(found.flat, args.brief), stands, good_until, is_news and 1 or 0}
