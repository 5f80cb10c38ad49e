-- Prelude of the scripts of one session: reads and checks the record. Follows gate.lua.
--
-- KEYS  1 session  2 due  3 namespaces  4 log  5 absent  6 meta   (all in the session's partition)
--       The key absent never exists. While the slot migrates to another node, Redis refuses a script that declares it
--       before the script begins. Without it Redis would stop the script in the middle, at a key that was just emptied.
-- ARGV  those of gate.lua, and
--         namespace, id
--         credential  16 bytes, verifier of the presented token; absent = the caller names the id
--         grace, renewal   ms: the policy's rotation_grace and renewal_timeout (absent = never); with a credential
--         report      true = token reuse is reported, absent = it ends the session; with a credential
-- Reply no reply: a prelude

local SESSION, DUE, NAMESPACES, LOG = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
assert(#KEYS == 6, 'arity')

-- Causes: the numbers of sessiond.v1.Cause.
local REVOKED, TOKEN_REUSE, IDLE_TIMEOUT, ABSOLUTE_TIMEOUT, OUT_OF_BAND = 2, 4, 5, 6, 7

-- States of a presented token; the first four are the numbers of sessiond.v1.TokenState.
local NOT_PRESENTED, CURRENT, ROTATION_DUE, SUPERSEDED, REFUSED = 0, 1, 2, 3, 4

local FORMAT = 1
local META_FIELD = '>BI8I8I8I8I8I8I4'
local TOKEN_FIELD = '>c16I8B'
-- A superseded token: verifier, superseded at, valid until, flags. Oldest first.
local OLD_TOKEN, OLD_TOKEN_BYTES, OLD_TOKENS_KEPT = '>c16I6I6B', 29, 16
local USED, ROTATED_AGAIN, REPORTED, GRACE_ENDED = 1, 2, 4, 8
local TOMBSTONE_FIELD = '>BBI8'
local REQUEST_BYTES = 31
-- Revision at which the session last lost its subject: reservations from before it are void.
local LEFT_FIELD = '>I8'

-- Checksum that detects a record that was cut, altered, or copied to the key of another session.
local function seal(packed, fixed)
  return redis.sha1hex(args.namespace .. ':' .. args.id .. packed .. (fixed.t or '') .. (fixed.g or '')):sub(1, 8)
end

-- Index of the token with this verifier: 0 = the current one, n = the n-th superseded one, nil = none.
local function token_index_of(verifier, token, old)
  if token:sub(1, 16) == verifier then return 0 end
  for at = 1, #(old or ''), OLD_TOKEN_BYTES do
    if old:sub(at, at + 15) == verifier then return (at - 1) / OLD_TOKEN_BYTES + 1 end
  end
  return nil
end

local function earlier(a, b)
  if a == 0 or b == 0 then return math.max(a, b) end
  return math.min(a, b)
end

-- Reads the record at SESSION: {kind = 'none' | 'wrong_token' | 'live' | 'tombstone' | 'corrupt', flat = all fields,
-- names and values in turn, fixed = the fields with a one-letter name, by name, and their unpacked values}. If a
-- credential matches no token the kind is 'wrong_token' whether or not the session exists: the cost is the same,
-- nothing more is read.
local function find()
  local token_index
  if args.credential then
    local tokens = redis.pcall('HMGET', SESSION, 't', 'g')
    token_index = tokens[1] and token_index_of(args.credential, tokens[1], tokens[2])
    if not token_index then return {kind = 'wrong_token', flat = {}, fixed = {}} end
  end
  local flat = redis.pcall('HGETALL', SESSION)
  if flat.err then return {kind = 'corrupt', flat = {}, fixed = {}} end
  if #flat == 0 then return {kind = 'none', flat = flat, fixed = {}} end
  local fixed = {}
  local found = {kind = 'corrupt', flat = flat, fixed = fixed, token_index = token_index}
  for i = 1, #flat, 2 do
    local name = flat[i]
    if #name == 1 then fixed[name] = flat[i + 1] end
    if name == 'm' then found.meta_at = i + 1 end
  end
  -- Drop truncated request ids: unpacking them must not fail after the log entry is written.
  local requests_are_whole = true
  if fixed.r and (fixed.r == '' or #fixed.r % REQUEST_BYTES ~= 0) then
    fixed.r, requests_are_whole = nil, false
  end
  if fixed.x then
    local packed = fixed.x:sub(1, 10)
    if #fixed.x == 18 and requests_are_whole and fixed.x:sub(11) == seal(packed, fixed) then
      local format
      format, found.cause, found.revision = struct.unpack(TOMBSTONE_FIELD, packed)
      if format == FORMAT and found.cause >= 1 and found.cause <= OUT_OF_BAND then found.kind = 'tombstone' end
    end
    return found
  end
  local m = fixed.m
  if not m or #m ~= 61 or not fixed.t or #fixed.t ~= 25 then return found end
  local packed = m:sub(1, 53)
  local format
  format, found.revision, found.created, found.accessed, found.idle, found.idle_until, found.absolute, found.generation =
    struct.unpack(META_FIELD, packed)
  found.expires = earlier(found.idle_until, found.absolute)
  found.left = fixed.o and #fixed.o == 8 and struct.unpack(LEFT_FIELD, fixed.o) or 0
  if format == FORMAT and requests_are_whole and m:sub(54) == seal(packed, fixed) then found.kind = 'live' end
  return found
end

local function is_expired(found)
  return found.expires > 0 and now >= found.expires
end

local function timeout_cause(found)
  return found.expires == found.absolute and ABSOLUTE_TIMEOUT or IDLE_TIMEOUT
end

-- Whether a session without a subject has a valid reservation, made at `since` in us; nil = no reservation.
local function is_reserved(found, since)
  return since and found.kind == 'live' and not found.fixed.u and since > found.left
end

-- Packs the fields that readers and watchers receive as one MessagePack array of names and values. Modifies `flat`.
local function pack_fields(flat, without_attributes)
  local i, n = 1, #flat
  while i < n do
    local name = flat[i]
    if name == 't' or name == 'g' or name == 'r' or name == 'x' or name == 'o'
      or without_attributes and name:find('^a:') then
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
