-- Creates a session.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of mutation.lua, and
--         verifier        16 bytes, hash of the new session's token
--         idle, absolute  ms, 0 = none
--         fields          array of field names and stored values
--         reserved        true = the subject index has the id, or the session has no subject
-- Reply {DONE, now, fields} | {EXISTS, now} | {ENDED, now, cause[, subject]} | {REQUEST_ID_REUSED, now}
--     | {NOT_RESERVED, now}

local found = find()
local known = known_request(found.fixed.r)
local ended = end_if_expired(found)
if ended then return ended end
if found.kind == 'tombstone' then return {ENDED, now_us, found.cause} end
if known and not known.same then return {REQUEST_ID_REUSED, now_us} end
if known and found.kind == 'live' then return {DONE, now_us, pack_fields(found.flat)} end
if found.kind ~= 'none' then return {EXISTS, now_us} end
if not args.reserved then return {NOT_RESERVED, now_us} end

-- The first token counts as used: it supersedes no token, so its first use carries no information.
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
-- `unpack` takes at most 8,000 values; a session has far fewer.
redis.call('HSET', SESSION, 't', fixed.t, unpack(flat))
if requests then redis.call('HSET', SESSION, 'r', requests) end
schedule(earlier(session.idle_until, session.absolute))
return {DONE, now_us, fields}
