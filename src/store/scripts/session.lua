-- What the scripts of one session share; it stands before each of them.
--
-- KEYS  1 session  2 due  3 namespaces  4 log  5 meta   (all in the session's partition)
-- ARGV  1 a MessagePack map; every script's header names its fields. Of all:
--         store       store id the caller means
--         not_after   ms of Redis' clock; later this script writes nothing
--         nonce       decimal text, random, fresh for every send
--         channel     the partition's channel
--         namespace, id
--         touch_interval  ms; absent = min(60 s, idle timeout / 20)
--         proof       16 bytes, hash of the presented secret; absent = the caller names the id
-- Reply {outcome, now in us, …}: an integer stands first in every reply, whatever the session holds.
--
-- Order: read and check everything, then XADD, then the rest, which can no longer fail: a script is no transaction,
-- what ran before an error stays.

local SESSION, DUE, NAMESPACES, LOG, META = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
assert(#KEYS == 5 and #ARGV == 1, 'arity')

-- Outcomes; store/scripts.rs has the same list.
local STORE_CHANGED, TOO_LATE = -2, -1
local NOT_FOUND, DONE, ENDED, EXISTS, CORRUPT = 0, 1, 2, 3, 4
local REVISION_MISMATCH, REQUEST_ID_REUSED, SUBJECT_CHANGE = 5, 6, 7
local TOO_MANY_ATTRIBUTES, TOO_MANY_LABELS, TOO_LARGE, NOT_DUE = 8, 9, 10, 11

-- Types of log entries, and causes; the numbers of sessiond.v1.EventType and Cause.
local CREATED, UPDATED, ENDING = 1, 2, 4
local IDLE_TIMEOUT, ABSOLUTE_TIMEOUT, OUT_OF_BAND = 5, 6, 7

local FORMAT = 1
local META_FIELD = '>BI8I8I8I8I8I8I4'
local TOKEN_FIELD = '>c16I8B'
local TOMBSTONE_FIELD = '>BBI8'
local REQUEST = '>c16c8I6B'
local REQUEST_BYTES, REQUESTS_KEPT = 31, 16
local INLINE_EVENT_BYTES = 8192

local args = cmsgpack.unpack(ARGV[1])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- The gate: the store that the caller means, in time.
local meta = redis.pcall('HMGET', META, 'store', 'last', 'bytes')
if meta.err or meta[1] ~= args.store or not meta[2] then return {STORE_CHANGED, now_us} end
if args.not_after and now > args.not_after then return {TOO_LATE, now_us} end

local logged_bytes = tonumber(meta[3]) or 0

-- Both raise before anything is written where a key is of another type.
local due_score = redis.call('ZSCORE', DUE, args.id)
local namespace_score = redis.call('ZSCORE', NAMESPACES, args.namespace)

local revision = math.max(tonumber(meta[2]:match('^%d+')) + 1, now_us)

-- What keeps a record from being cut, altered, or read under another session's key.
local function seal(packed, token)
  return redis.sha1hex(args.namespace .. ':' .. args.id .. packed .. token):sub(1, 8)
end

-- A moment from now; 0 ms = never, as in every deadline.
local function from_now(ms)
  return ms > 0 and now + ms or 0
end

local function earlier(a, b)
  if a == 0 or b == 0 then return math.max(a, b) end
  return math.min(a, b)
end

-- The record at SESSION: {kind = 'none' | 'live' | 'tombstone' | 'corrupt', fields = {name = value}, …}.
local function find()
  local flat = redis.pcall('HGETALL', SESSION)
  if flat.err then return {kind = 'corrupt', fields = {}} end
  if #flat == 0 then return {kind = 'none', fields = {}} end
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  local found = {kind = 'corrupt', fields = fields}
  -- Request ids that are cut tell nothing, and reading them must not fail once the entry is written.
  local requests = fields.r
  if requests and (requests == '' or #requests % REQUEST_BYTES ~= 0) then
    fields.r = nil
    requests = false
  end
  local token = fields.t
  if token and #token == 25 then
    found.verifier, found.token_since, found.token_used = struct.unpack(TOKEN_FIELD, token)
  end
  if fields.x then
    if #fields.x == 10 and requests ~= false then
      local format
      format, found.cause = struct.unpack(TOMBSTONE_FIELD, fields.x)
      if format == FORMAT and found.cause >= 1 and found.cause <= OUT_OF_BAND then found.kind = 'tombstone' end
    end
    return found
  end
  local m = fields.m
  if not m or #m ~= 61 or not found.verifier then return found end
  local packed = m:sub(1, 53)
  local format
  format, found.revision, found.created, found.accessed, found.idle, found.idle_until, found.absolute, found.generation =
    struct.unpack(META_FIELD, packed)
  found.expires = earlier(found.idle_until, found.absolute)
  if format == FORMAT and requests ~= false and m:sub(54) == seal(packed, token) then found.kind = 'live' end
  return found
end

-- Whether the caller may act on the record: it names the id, or holds the secret.
local function proves(found)
  return not args.proof or args.proof == found.verifier
end

local function is_over(found)
  return found.expires > 0 and now >= found.expires
end

-- Whether a use now is to be written down: not where the last one is younger than the touch interval.
local function touch_is_due(found)
  local interval = args.touch_interval or (found.idle > 0 and math.min(60000, found.idle / 20) or 60000)
  return now - found.accessed >= interval
end

local function timeout_cause(found)
  return found.expires == found.absolute and ABSOLUTE_TIMEOUT or IDLE_TIMEOUT
end

local function pack_meta(s)
  local packed = struct.pack(META_FIELD, FORMAT, s.revision, s.created, s.accessed, s.idle, s.idle_until, s.absolute,
    s.generation)
  return packed .. seal(packed, s.fields.t)
end

-- The fields that a reader or watcher is told, as one MessagePack array of names and values.
local function told(fields, without_attributes)
  local flat, n = {}, 0
  for name, value in pairs(fields) do
    if name ~= 't' and name ~= 'r' and name ~= 'x' and not (without_attributes and name:sub(1, 2) == 'a:') then
      flat[n + 1], flat[n + 2] = name, value
      n = n + 2
    end
  end
  return cmsgpack.pack(flat)
end

local function schedule(expires)
  local score = expires > 0 and expires or '+inf'
  redis.call('ZADD', DUE, score, args.id)
  if not namespace_score or tonumber(namespace_score) > (expires > 0 and expires or math.huge) then
    redis.call('ZADD', NAMESPACES, score, args.namespace)
  end
end

-- Appends the one entry that this script may append, and tells it. The entry is a MessagePack array:
-- format, position, position of the entry before, type, cause, namespace, id, fields after (or last fields),
-- changed attribute names, fields before where the subject or a label changed.
local function append(kind, cause, fields, changed, before)
  local position = string.format('%.0f', revision) .. '-' .. args.nonce
  local entry = cmsgpack.pack({FORMAT, position, meta[2], kind, cause, args.namespace, args.id, told(fields),
    changed or {}, before and told(before, true) or ''})
  redis.call('XADD', LOG, position, 'e', entry)
  redis.call('HSET', META, 'last', position, 'bytes', string.format('%.0f', logged_bytes + #entry))
  -- A refused message is a message lost: the watchers find the entry in the log.
  redis.pcall('SPUBLISH', args.channel, #entry <= INLINE_EVENT_BYTES and entry or position)
end

-- The request ids kept, with this call's at the end; nil = this call has none.
local function requests_with_this(kept, outcome)
  if not args.request then return kept end
  local list, oldest = {}, now - args.retry_window
  for at = 1, #(kept or ''), REQUEST_BYTES do
    local entry = kept:sub(at, at + REQUEST_BYTES - 1)
    local _, _, told_at = struct.unpack(REQUEST, entry)
    if told_at >= oldest then list[#list + 1] = entry end
  end
  list[#list + 1] = struct.pack(REQUEST, args.request, args.fingerprint, now, outcome)
  return table.concat(list, '', math.max(1, #list - REQUESTS_KEPT + 1))
end

-- Whether this call's request id is known: nil = no, else whether it was the same request, and its outcome.
local function known_request(kept)
  if not args.request or not kept then return nil end
  for at = 1, #kept - REQUEST_BYTES + 1, REQUEST_BYTES do
    local id, fingerprint, told_at, outcome = struct.unpack(REQUEST, kept, at)
    if id == args.request and told_at >= now - args.retry_window then
      return {same = fingerprint == args.fingerprint, outcome = outcome}
    end
  end
  return nil
end

-- Leaves a tombstone in the session's place; never replaces one, nor shortens it.
local function bury(found, cause, ms, outcome)
  local requests = requests_with_this(found.fields.r, outcome)
  redis.call('DEL', SESSION)
  redis.call('HSET', SESSION, 'x', struct.pack(TOMBSTONE_FIELD, FORMAT, cause, revision))
  if found.fields.t then redis.call('HSET', SESSION, 't', found.fields.t) end
  if requests then redis.call('HSET', SESSION, 'r', requests) end
  redis.call('PEXPIRE', SESSION, ms)
  redis.call('ZREM', DUE, args.id)
  if redis.call('ZCARD', DUE) == 0 then redis.call('ZREM', NAMESPACES, args.namespace) end
end

-- Ends what was found, for this cause: the one entry, then the tombstone.
local function finish(found, cause, outcome)
  append(ENDING, cause, found.fields)
  bury(found, cause, args.tombstone, outcome or 0)
end

-- What every mutation does first with a session that is over without having been ended: past its deadline, or gone
-- from Redis while its id is still due. Ends it and answers its cause; nil = nothing of the kind.
local function end_if_over(found)
  local cause
  if found.kind == 'live' and is_over(found) then
    cause = timeout_cause(found)
  elseif found.kind == 'none' and due_score then
    cause = now >= tonumber(due_score) and IDLE_TIMEOUT or OUT_OF_BAND
  end
  if cause then finish(found, cause) end
  return cause
end
