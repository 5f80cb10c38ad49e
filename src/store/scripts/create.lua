-- Makes a session.
--
-- KEYS  session, due, namespaces, log, meta
-- ARGV  those of mutation.lua (proof: hash of the new session's secret), and
--         idle, absolute  ms, 0 = none
--         fields          array of field names and stored values
-- Reply {DONE, now, fields} | {EXISTS, now} | {ENDED, now, cause} | {REQUEST_ID_REUSED, now}

local found = find()
local known = known_request(found.fixed.r)
if known and not known.same then return {REQUEST_ID_REUSED, now_us} end

local over = end_if_over(found)
if over then return {ENDED, now_us, over} end
if found.kind == 'tombstone' then return {ENDED, now_us, found.cause} end
if known and found.kind == 'live' and proves(found) then return {DONE, now_us, told(found.flat)} end
if found.kind ~= 'none' then return {EXISTS, now_us} end

local session = {
  revision = revision, created = now, accessed = now, idle = args.idle, idle_until = from_now(args.idle),
  absolute = from_now(args.absolute), generation = 1, token = struct.pack(TOKEN_FIELD, args.proof, now, 0),
}
local flat = args.fields
flat[#flat + 1] = 'm'
flat[#flat + 1] = pack_meta(session)
local fields = cmsgpack.pack(flat)
local requests = requests_with_this(nil, 1)

append(CREATED, 0, fields)
-- Far fewer fields than `unpack` can take, which is 8,000 values.
redis.call('HSET', SESSION, 't', session.token, unpack(flat))
if requests then redis.call('HSET', SESSION, 'r', requests) end
schedule(earlier(session.idle_until, session.absolute))
return {DONE, now_us, fields}
