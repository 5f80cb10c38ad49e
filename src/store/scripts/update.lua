-- Changes parts of a session; fields are merged one by one.
--
-- KEYS  session, due, namespaces, log, meta
-- ARGV  those of mutation.lua, and
--         if_revision     decimal text; absent = any
--         clear           true = removes all attributes first
--         remove          array of field names
--         set             array of field names and stored values
--         subject         stored value, empty = none; absent = keep
--         idle, absolute  ms, 0 = none; absent = keep
--         touch           true = counts as use
--         max_attributes, max_labels   count
--         max_payload     bytes of all attribute names and values, before compression
--         brief           true = answer without attributes
-- Reply {DONE, now, fields} | {NOT_FOUND, now} | {ENDED, now, cause} | {CORRUPT, now}
--     | {REVISION_MISMATCH, now, revision} | {REQUEST_ID_REUSED, now} | {SUBJECT_CHANGE, now}
--     | {TOO_MANY_ATTRIBUTES, now, count} | {TOO_MANY_LABELS, now, count} | {TOO_LARGE, now, bytes}

local found = find()
if not proves(found) then return {NOT_FOUND, now_us} end
local known = known_request(found.fixed.r)
local over = end_if_over(found)
if over then return {ENDED, now_us, over} end
if found.kind == 'none' then return {NOT_FOUND, now_us} end
if found.kind == 'tombstone' then return {ENDED, now_us, found.cause} end
if found.kind == 'corrupt' then return {CORRUPT, now_us} end
if known and not known.same then return {REQUEST_ID_REUSED, now_us} end
if known then return {DONE, now_us, told(found.flat, args.brief)} end
if args.if_revision and args.if_revision ~= string.format('%.0f', found.revision) then
  return {REVISION_MISMATCH, now_us, found.revision}
end
if args.subject and found.fixed.u and args.subject ~= '' and args.subject ~= found.fixed.u then
  return {SUBJECT_CHANGE, now_us}
end

-- The fields after the change, beside those before it.
local before, fields = {}, {}
for i = 1, #found.flat, 2 do
  local name, value = found.flat[i], found.flat[i + 1]
  before[name] = value
  if not (args.clear and name:find('^a:')) then fields[name] = value end
end
for _, name in ipairs(args.remove) do fields[name] = nil end
for i = 1, #args.set, 2 do fields[args.set[i]] = args.set[i + 1] end
if args.subject then fields.u = args.subject ~= '' and args.subject or nil end

local attributes, labels, payload = 0, 0, 0
local removed, written, changed, filter_changed = {}, {}, {}, false
local function note(name)
  if name:find('^a:') then changed[#changed + 1] = name:sub(3) end
  if name == 'u' or name:find('^l:') then filter_changed = true end
end
for name, value in pairs(fields) do
  if name:find('^l:') then labels = labels + 1 end
  if name:find('^a:') then
    attributes = attributes + 1
    -- Codec byte and checksum, then the value, or its length and the compressed value.
    local size = value:byte(1) == 0xF1 and #value >= 9 and struct.unpack('>I4', value, 6) or #value - 5
    payload = payload + #name - 2 + size
  end
  if before[name] ~= value then
    written[#written + 1] = name
    note(name)
  end
end
for name in pairs(before) do
  if not fields[name] then
    removed[#removed + 1] = name
    note(name)
  end
end
if #written > 0 then
  if attributes > args.max_attributes then return {TOO_MANY_ATTRIBUTES, now_us, attributes} end
  if labels > args.max_labels then return {TOO_MANY_LABELS, now_us, labels} end
  if payload > args.max_payload then return {TOO_LARGE, now_us, payload} end
end

local idle = args.idle or found.idle
local absolute = found.absolute
if args.absolute then absolute = args.absolute > 0 and found.created + args.absolute or 0 end
local logged = #written > 0 or #removed > 0 or idle ~= found.idle or absolute ~= found.absolute
local used = args.touch and (logged or touch_is_due(found))

local session = {
  revision = logged and revision or found.revision, created = found.created,
  accessed = used and now or found.accessed, idle = idle,
  idle_until = (used or args.idle) and from_now(idle) or found.idle_until, absolute = absolute,
  generation = found.generation, token = found.fixed.t,
}
local expires = earlier(session.idle_until, session.absolute)

if not logged and not args.request and expires == found.expires and not used then
  return {DONE, now_us, told(found.flat, args.brief)}
end
fields.m = pack_meta(session)
local requests = requests_with_this(found.fixed.r, 1)
local flat = {}
for name, value in pairs(fields) do
  flat[#flat + 1] = name
  flat[#flat + 1] = value
end
local after = told(flat)
if logged then append(UPDATED, 0, after, changed, filter_changed and told(found.flat, true) or nil) end
for _, name in ipairs(removed) do redis.call('HDEL', SESSION, name) end
for _, name in ipairs(written) do redis.call('HSET', SESSION, name, fields[name]) end
redis.call('HSET', SESSION, 'm', fields.m)
if requests and requests ~= found.fixed.r then redis.call('HSET', SESSION, 'r', requests) end
if expires ~= found.expires then schedule(expires) end
return {DONE, now_us, args.brief and told(flat, true) or after}
