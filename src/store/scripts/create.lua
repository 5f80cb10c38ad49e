-- Makes a session.
--
-- KEYS  session, due, namespaces, log, meta
-- ARGV  those of session.lua (proof: hash of the new session's secret), and
--         idle, absolute  ms, 0 = none
--         fields          array of field names and stored values
--         tombstone       ms
--         request, fingerprint, retry_window   16 bytes, 8 bytes, ms; absent = no request id
-- Reply {DONE, now, fields} | {EXISTS, now} | {ENDED, now, cause} | {REQUEST_ID_REUSED, now}

local found = find()
local known = known_request(found.fields.r)
if known and not known.same then return {REQUEST_ID_REUSED, now_us} end

local over = end_if_over(found)
if over then return {ENDED, now_us, over} end
if found.kind == 'tombstone' then return {ENDED, now_us, found.cause} end
if known and found.kind == 'live' and proves(found) then return {DONE, now_us, told(found.fields)} end
if found.kind ~= 'none' then return {EXISTS, now_us} end

local fields = {t = struct.pack(TOKEN_FIELD, args.proof, now, 0)}
for i = 1, #args.fields, 2 do fields[args.fields[i]] = args.fields[i + 1] end
local session = {
  revision = revision, created = now, accessed = now, idle = args.idle, idle_until = from_now(args.idle),
  absolute = from_now(args.absolute), generation = 1, fields = fields,
}
fields.m = pack_meta(session)
fields.r = requests_with_this(nil, 1)

append(CREATED, 0, fields)
-- One command, also in the append-only file: far fewer fields than `unpack` can take, which is 8,000 values.
local flat, n = {}, 0
for name, value in pairs(fields) do
  flat[n + 1], flat[n + 2] = name, value
  n = n + 2
end
redis.call('HSET', SESSION, unpack(flat))
schedule(earlier(session.idle_until, session.absolute))
return {DONE, now_us, told(fields)}
