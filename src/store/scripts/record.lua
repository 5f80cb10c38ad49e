-- What the scripts of one session share: the call, the gate, and how a record is read. Stands before each of them.
--
-- KEYS  1 session  2 due  3 namespaces  4 log  5 meta   (all in the session's partition)
-- ARGV  1 a MessagePack map; every script's header names its fields. Of all:
--         store       store id the caller means
--         not_after   ms of Redis' clock; later this script writes nothing
--         namespace, id
--         proof       16 bytes, hash of the presented secret; absent = the caller names the id
-- Reply {outcome, now in us, …}: an integer stands first in every reply, whatever the session holds.

local SESSION, DUE, NAMESPACES, LOG, META = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
assert(#KEYS == 5 and #ARGV == 1, 'arity')

-- Outcomes; store/scripts.rs has the same list.
local STORE_CHANGED, TOO_LATE = -2, -1
local NOT_FOUND, DONE, ENDED, EXISTS, CORRUPT = 0, 1, 2, 3, 4
local REVISION_MISMATCH, REQUEST_ID_REUSED, SUBJECT_CHANGE = 5, 6, 7
local TOO_MANY_ATTRIBUTES, TOO_MANY_LABELS, TOO_LARGE, NOT_DUE = 8, 9, 10, 11

-- Causes; the numbers of sessiond.v1.Cause.
local IDLE_TIMEOUT, ABSOLUTE_TIMEOUT, OUT_OF_BAND = 5, 6, 7

local FORMAT = 1
local META_FIELD = '>BI8I8I8I8I8I8I4'
local TOKEN_FIELD = '>c16I8B'
local TOMBSTONE_FIELD = '>BBI8'
local REQUEST_BYTES = 31

local args = cmsgpack.unpack(ARGV[1])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- The gate: the store that the caller means, in time.
local meta = redis.pcall('HMGET', META, 'store', 'last', 'bytes')
if meta.err or meta[1] ~= args.store or not meta[2] then return {STORE_CHANGED, now_us} end
if args.not_after and now > args.not_after then return {TOO_LATE, now_us} end

-- What keeps a record from being cut, altered, or read under another session's key.
local function seal(packed, token)
  return redis.sha1hex(args.namespace .. ':' .. args.id .. packed .. token):sub(1, 8)
end

local function earlier(a, b)
  if a == 0 or b == 0 then return math.max(a, b) end
  return math.min(a, b)
end

-- The record at SESSION: {kind = 'none' | 'live' | 'tombstone' | 'corrupt', flat = all its fields, names and values in
-- turn, fixed = those that are no attribute and no label, by name, and what they say}.
local function find()
  local flat = redis.pcall('HGETALL', SESSION)
  if flat.err then return {kind = 'corrupt', flat = {}, fixed = {}} end
  if #flat == 0 then return {kind = 'none', flat = flat, fixed = {}} end
  local fixed = {}
  local found = {kind = 'corrupt', flat = flat, fixed = fixed}
  for i = 1, #flat, 2 do
    local name = flat[i]
    if #name == 1 then fixed[name] = flat[i + 1] end
    if name == 'm' then found.meta_at = i + 1 end
  end
  -- Request ids that are cut tell nothing, and reading them must not fail once the entry is written.
  local requests_are_whole = true
  if fixed.r and (fixed.r == '' or #fixed.r % REQUEST_BYTES ~= 0) then
    fixed.r, requests_are_whole = nil, false
  end
  local token = fixed.t
  if token and #token == 25 then
    found.verifier = struct.unpack(TOKEN_FIELD, token)
  end
  if fixed.x then
    local packed, format = fixed.x:sub(1, 10), nil
    if #fixed.x == 18 and requests_are_whole and fixed.x:sub(11) == seal(packed, token or '') then
      format, found.cause = struct.unpack(TOMBSTONE_FIELD, packed)
      if format == FORMAT and found.cause >= 1 and found.cause <= OUT_OF_BAND then found.kind = 'tombstone' end
    end
    return found
  end
  local m = fixed.m
  if not m or #m ~= 61 or not found.verifier then return found end
  local packed = m:sub(1, 53)
  local format
  format, found.revision, found.created, found.accessed, found.idle, found.idle_until, found.absolute, found.generation =
    struct.unpack(META_FIELD, packed)
  found.expires = earlier(found.idle_until, found.absolute)
  if format == FORMAT and requests_are_whole and m:sub(54) == seal(packed, token) then found.kind = 'live' end
  return found
end

-- Whether the caller may act on the record: it names the id, or holds the secret.
local function proves(found)
  return not args.proof or args.proof == found.verifier
end

local function is_over(found)
  return found.expires > 0 and now >= found.expires
end

local function timeout_cause(found)
  return found.expires == found.absolute and ABSOLUTE_TIMEOUT or IDLE_TIMEOUT
end

-- The fields that a reader or watcher is told, as one MessagePack array of names and values. Takes the list apart.
local function told(flat, without_attributes)
  local i, n = 1, #flat
  while i < n do
    local name = flat[i]
    if name == 't' or name == 'r' or name == 'x' or without_attributes and name:find('^a:') then
      local last_name, last_value = flat[n - 1], flat[n]
      flat[i], flat[i + 1] = last_name, last_value
      flat[n - 1], flat[n] = nil, nil
      n = n - 2
    else
      i = i + 2
    end
  end
  return cmsgpack.pack(flat)
end
