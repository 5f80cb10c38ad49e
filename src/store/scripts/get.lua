-- Reads a session and, if asked, counts that as a use: moves its deadline, without a revision and without an entry.
--
-- KEYS  session, due, namespaces, log, meta
-- ARGV  those of record.lua (touch: of mutation.lua), and
--         touch           true = counts as use
--         brief           true = without attributes
-- Reply {DONE, now, fields} | {NOT_FOUND, now} | {ENDED, now, cause} | {CORRUPT, now}

local found = find()
if found.kind == 'none' or not proves(found) then return {NOT_FOUND, now_us} end
if found.kind == 'tombstone' then return {ENDED, now_us, found.cause} end
if found.kind == 'corrupt' then return {CORRUPT, now_us} end
if is_over(found) then return {ENDED, now_us, timeout_cause(found)} end

if args.touch and touch_is_due(found) then
  found.accessed = now
  found.idle_until = math.max(found.idle_until, from_now(found.idle))
  found.token = found.fixed.t
  found.flat[found.meta_at] = pack_meta(found)
  redis.call('HSET', SESSION, 'm', found.flat[found.meta_at])
  schedule(earlier(found.idle_until, found.absolute))
end
return {DONE, now_us, told(found.flat, args.brief)}
