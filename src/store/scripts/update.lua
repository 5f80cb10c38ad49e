-- Changes parts of a session; fields are merged one by one. With a successor: rotates the token in the same step.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of mutation.lua, and
--         if_revision     decimal text; absent = any
--         clear           true = remove all attributes first
--         remove          array of field names
--         set             array of field names and stored values
--         subject         stored value, empty = none; absent = keep
--         login           true = the call sets subject or authentication: every grace period ends
--         reserved        us: time at which the subject index got the id; absent = it does not have it
--         successor       16 bytes, hash of the new token; absent = no rotation
--         grace_period    ms for which the old token stays accepted; with a successor
--         idle, absolute  ms, 0 = none; absent = keep
--         touch           true = touch the session
--         max_attributes, max_labels   count
--         max_payload     bytes of all attribute names and values, before compression
--         brief           true = reply without attributes
-- Reply {DONE, now, fields[, subject that the session lost, time in us]} | {NOT_FOUND, now}
--     | {ENDED, now, cause[, subject]} | {CORRUPT, now} | {ROTATED, now} | {TOKEN_KNOWN, now}
--     | {NOT_RESERVED, now, reservations up to this us are void}
--     | {REVISION_MISMATCH, now, revision} | {REQUEST_ID_REUSED, now} | {SUBJECT_CHANGE, now}
--     | {TOO_MANY_ATTRIBUTES, now, count} | {TOO_MANY_LABELS, now, count} | {TOO_LARGE, now, bytes}

local found = find()
if found.kind == 'wrong_token' then return {NOT_FOUND, now_us} end
local known = known_request(found.fixed.r)
local ended = end_if_expired(found)
if ended then return ended end
if found.kind == 'none' then return {NOT_FOUND, now_us} end
if found.kind == 'tombstone' then return {ENDED, now_us, found.cause} end
if found.kind == 'corrupt' then return {CORRUPT, now_us} end
if known and not known.same then return {REQUEST_ID_REUSED, now_us} end
if known then return {DONE, now_us, pack_fields(found.flat, args.brief)} end

local tokens = tokens_of(found)
local refused = refuse_token(found, tokens)
if refused then return refused end
local presented = found.token_index and tokens.old[found.token_index]
-- A superseded token may not log in. It may rotate once, if no token after it was ever presented: the reply was lost.
if presented and args.login then return {ROTATED, now_us} end
if presented and args.successor then
  if bit.band(presented.flags, ROTATED_AGAIN) ~= 0 or successor_was_used(tokens, found.token_index) then
    return {ROTATED, now_us}
  end
end
if args.successor and token_index_of(args.successor, found.fixed.t, found.fixed.g) then return {TOKEN_KNOWN, now_us} end
if args.if_revision and args.if_revision ~= string.format('%.0f', found.revision) then
  return {REVISION_MISMATCH, now_us, found.revision}
end
if args.subject and found.fixed.u and args.subject ~= '' and args.subject ~= found.fixed.u then
  return {SUBJECT_CHANGE, now_us}
end

-- The fields before and after the change.
local before, fields = {}, {}
for i = 1, #found.flat, 2 do
  local name, value = found.flat[i], found.flat[i + 1]
  before[name] = value
  if not (args.clear and name:find('^a:')) then fields[name] = value end
end
for _, name in ipairs(args.remove) do fields[name] = nil end
for i = 1, #args.set, 2 do fields[args.set[i]] = args.set[i + 1] end
if args.subject then fields.u = args.subject ~= '' and args.subject or nil end
if args.subject == '' and found.fixed.u then fields.o = struct.pack(LEFT_FIELD, revision) end

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
    -- Codec byte (0xF0 = raw) and checksum, then the value; if compressed, its length and the block.
    local size = value:byte(1) ~= 0xF0 and #value >= 9 and struct.unpack('>I4', value, 6) or #value - 5
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

if args.subject and args.subject ~= '' and not found.fixed.u and (args.reserved or 0) <= found.left then
  return {NOT_RESERVED, now_us, found.left}
end

-- The tokens after the change.
if args.successor then
  if presented then presented.flags = bit.bor(presented.flags, ROTATED_AGAIN) end
  tokens.old[#tokens.old + 1] = {
    verifier = tokens.verifier, superseded = now, valid_until = now + args.grace_period,
    flags = tokens.used ~= 0 and USED or 0,
  }
  if #tokens.old > OLD_TOKENS_KEPT then table.remove(tokens.old, 1) end
  tokens.verifier, tokens.since, tokens.used = args.successor, now, 0
end
local tokens_changed = args.successor
for _, old in ipairs(args.login and tokens.old or {}) do
  tokens_changed = tokens_changed or not is_over(old.valid_until, old.flags)
  old.valid_until, old.flags = math.min(old.valid_until, now), bit.bor(old.flags, GRACE_ENDED)
end

local idle = args.idle or found.idle
local absolute = found.absolute
if args.absolute then absolute = args.absolute > 0 and found.created + args.absolute or 0 end
local logged = #written > 0 or #removed > 0 or idle ~= found.idle or absolute ~= found.absolute or tokens_changed
-- Also of grace periods that are over: the clock may be set back.
if logged and args.login and #tokens.old > 0 then tokens_changed = true end
if tokens_changed then pack_tokens(tokens, found.fixed) end
local used = args.touch and (logged or touch_is_due(found))

local session = {
  revision = logged and revision or found.revision, created = found.created,
  accessed = used and now or found.accessed, idle = idle,
  idle_until = (used or args.idle) and from_now(idle) or found.idle_until, absolute = absolute,
  generation = found.generation + (args.successor and 1 or 0), fixed = found.fixed,
}
local expires = earlier(session.idle_until, session.absolute)

if not logged and not args.request and session.idle_until == found.idle_until and not used then
  return {DONE, now_us, pack_fields(found.flat, args.brief)}
end
fields.m = pack_meta(session)
local requests = requests_with_this(found.fixed.r, 1)
local flat = {}
for name, value in pairs(fields) do
  flat[#flat + 1] = name
  flat[#flat + 1] = value
end
local after = pack_fields(flat)
if logged then
  local fields_before = filter_changed and pack_fields(found.flat, true) or nil
  append(args.successor and ROTATING or UPDATED, 0, after, changed, fields_before)
end
for _, name in ipairs(removed) do redis.call('HDEL', SESSION, name) end
for _, name in ipairs(written) do redis.call('HSET', SESSION, name, fields[name]) end
redis.call('HSET', SESSION, 'm', fields.m)
if tokens_changed then redis.call('HSET', SESSION, 't', found.fixed.t, 'g', found.fixed.g) end
if requests and requests ~= found.fixed.r then redis.call('HSET', SESSION, 'r', requests) end
if expires ~= found.expires then schedule(expires) end
return {DONE, now_us, args.brief and pack_fields(flat, true) or after, not fields.u and before.u or nil, revision}
