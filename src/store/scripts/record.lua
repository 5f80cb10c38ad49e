-- What the scripts of one session share: how a record is read. Stands after gate.lua, before each of them.
--
-- KEYS  1 session  2 due  3 namespaces  4 log  5 absent  6 meta   (all in the session's partition)
--       Nothing is ever at absent: while the slot is on its way to another server Redis refuses the script for it, before it
--       begins; later it would stop it wherever a key has just been emptied.
-- ARGV  those of gate.lua, and
--         namespace, id
--         proof       16 bytes, hash of the presented secret; absent = the caller names the id
--         grace, renewal   ms: the policy's rotation_grace and renewal_timeout (absent = never); with every proof
--         report      true = a stolen token is reported, absent = it ends the session; with every proof
-- Reply none of its own.

local SESSION, DUE, NAMESPACES, LOG = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
assert(#KEYS == 6, 'arity')


-- Causes; the numbers of sessiond.v1.Cause.
local REVOKED, TOKEN_REUSE, IDLE_TIMEOUT, ABSOLUTE_TIMEOUT, OUT_OF_BAND = 2, 4, 5, 6, 7

-- How a presented token stands; the first four are the numbers of sessiond.v1.TokenState.
local NAMED, CURRENT, ROTATION_DUE, SUPERSEDED, REFUSED = 0, 1, 2, 3, 4

local FORMAT = 1
local META_FIELD = '>BI8I8I8I8I8I8I4'
local TOKEN_FIELD = '>c16I8B'
-- The tokens before the present one, the oldest first: verifier, superseded at, good until, flags.
local OLD_TOKEN, OLD_TOKEN_BYTES, OLD_TOKENS_KEPT = '>c16I6I6B', 29, 16
local USED, ROTATED_AGAIN, REPORTED = 1, 2, 4
local TOMBSTONE_FIELD = '>BBI8'
local REQUEST_BYTES = 31
-- The revision that last took it from its subject: what was reserved before that is void.
local LEFT_FIELD = '>I8'

-- What keeps a record from being cut, altered, or read under another session's key.
local function seal(packed, fixed)
  return redis.sha1hex(args.namespace .. ':' .. args.id .. packed .. (fixed.t or '') .. (fixed.g or '')):sub(1, 8)
end

-- Which of a record's tokens has this verifier: 0 = the present one, n = the n-th of the old ones; nil = none.
local function place_of(verifier, token, old)
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

-- The record at SESSION: {kind = 'none' | 'stranger' | 'live' | 'tombstone' | 'corrupt', flat = all its fields, names and
-- values in turn, fixed = those that are no attribute and no label, by name, and what they say}. Who presents a secret that
-- is none of the session's is a stranger, whether there is a session or not: no more is read, and it takes as long.
local function find()
  local place
  if args.proof then
    local tokens = redis.pcall('HMGET', SESSION, 't', 'g')
    place = tokens[1] and place_of(args.proof, tokens[1], tokens[2])
    if not place then return {kind = 'stranger', flat = {}, fixed = {}} end
  end
  local flat = redis.pcall('HGETALL', SESSION)
  if flat.err then return {kind = 'corrupt', flat = {}, fixed = {}} end
  if #flat == 0 then return {kind = 'none', flat = flat, fixed = {}} end
  local fixed = {}
  local found = {kind = 'corrupt', flat = flat, fixed = fixed, place = place}
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
  if fixed.x then
    local packed, format = fixed.x:sub(1, 10), nil
    if #fixed.x == 18 and requests_are_whole and fixed.x:sub(11) == seal(packed, fixed) then
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

local function is_over(found)
  return found.expires > 0 and now >= found.expires
end

local function timeout_cause(found)
  return found.expires == found.absolute and ABSOLUTE_TIMEOUT or IDLE_TIMEOUT
end

-- Whether a session of no subject may be about to get one whose index has it since this moment, in us; nil = not any more.
local function is_joining(found, since)
  return since and found.kind == 'live' and not found.fixed.u and since > found.left
end

-- The fields that a reader or watcher is told, as one MessagePack array of names and values. Takes the list apart.
local function told(flat, without_attributes)
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
