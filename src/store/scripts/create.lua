-- Makes a session.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of mutation.lua, and
--         verifier        16 bytes, hash of the new session's secret
--         idle, absolute  ms, 0 = none
--         fields          array of field names and stored values
--         reserved        true = the subject's index has the id, or there is no subject
-- Reply {DONE, now, fields} | {EXISTS, now} | {ENDED, now, cause[, subject]} | {REQUEST_ID_REUSED, now}
--     | {NOT_RESERVED, now}

local found = find()
local known = known_request(found.fixed.r)
local over = end_if_over(found)
if over then return over end
if found.kind == 'tombstone' then return {ENDED, now_us, found.cause} end
if known and not known.same then return {REQUEST_ID_REUSED, now_us} end
if known and found.kind == 'live' then return {DONE, now_us, told(found.flat)} end
if found.kind ~= 'none' then return {EXISTS, now_us} end
if not args.reserved then return {NOT_RESERVED, now_us} end

-- Nothing came before the first token: that it is used tells nothing.
local fixed = {t = struct.pack(TOKEN_FIELD, args.verifier, now, 1)}
local session = {
  revision = revision, created = now, accessed = now, idle = args.idle, idle_until = from_now(args.idle),
  absolute = from_now(args.absolute), generation = 1, fixed = fixed,
}
local flat = args.fields
flat[#flat + 1] = 'm'
flat[#flat + 1] = pack_meta(session)
local fields = cmsgpack.pack(flat)
local requests = requests_with_this(nil, 1)

append(CREATED, 0, fields)
-- Far fewer fields than `unpack` can take, which is 8,000 values.
redis.call('HSET', SESSION, 't', fixed.t, unpack(flat))
if requests then redis.call('HSET', SESSION, 'r', requests) end
schedule(earlier(session.idle_until, session.absolute))
return {DONE, now_us, fields}
