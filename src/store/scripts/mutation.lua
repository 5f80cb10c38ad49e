-- Prelude of the scripts that write a session; follows token.lua.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of record.lua, and
--         nonce           decimal text, random, new for every send
--         channel         the partition's channel
--         tombstone       ms
--         touch_interval  ms; absent = min(60 s, idle timeout / 20)
--         request, fingerprint, retry_window   16 bytes, 8 bytes, ms; absent = no request id
--         durable         true = the caller waits for replicas
-- Reply no reply: a prelude
--
-- Order: read and check everything, also the rights, then XADD, then the other writes, which cannot fail. A script is
-- not a transaction: Redis keeps what a script wrote before an error.

-- Types of log entries: the numbers of sessiond.v1.EventType.
local CREATED, UPDATED, ROTATING, ENDING, TOKEN_REUSED = 1, 2, 3, 4, 7

local REQUEST = '>c16c8I6B'
local REQUESTS_KEPT = 16
local INLINE_EVENT_BYTES = 8192

local logged_bytes = tonumber(meta[3]) or 0

-- WAIT counts from the last write of its connection: this write changes no value, so that a retry has one too.
if args.durable then redis.call('HSET', META, 'last', meta[2]) end

-- If one of these keys has another type, the command raises an error here, before any write.
local due_score = redis.call('ZSCORE', DUE, args.id)
local namespace_score = redis.call('ZSCORE', NAMESPACES, args.namespace)

local revision = math.max(tonumber(meta[2]:match('^%d+')) + 1, now_us)

-- Deadline in ms after now; 0 ms returns 0 = never.
local function from_now(ms)
  return ms > 0 and now + ms or 0
end

-- Whether a touch must be written: the last one is at least the touch interval ago.
local function touch_is_due(found)
  local interval = args.touch_interval or (found.idle > 0 and math.min(60000, found.idle / 20) or 60000)
  return now - found.accessed >= interval
end

-- Packs field `m`; the seal covers the fields `t` and `g` in `fixed`.
local function pack_meta(s)
  local packed = struct.pack(META_FIELD, FORMAT, s.revision, s.created, s.accessed, s.idle, s.idle_until, s.absolute,
    s.generation)
  return packed .. seal(packed, s.fixed)
end

-- Sets the deadline of the session in the due set. If the set of namespaces lacks the namespace, its bound is the
-- earliest deadline of all its sessions: the set may have been lost.
local function schedule(expires)
  redis.call('ZADD', DUE, expires > 0 and expires or '+inf', args.id)
  if not namespace_score or tonumber(namespace_score) > (expires > 0 and expires or math.huge) then
    redis.call('ZADD', NAMESPACES, redis.call('ZRANGE', DUE, 0, 0, 'WITHSCORES')[2], args.namespace)
  end
end

-- Fails if the user may not run one of the commands that follow. Redis checks that command by command, and keeps what a
-- script wrote before an error, so a right that was taken has to stop the script before its first write.
local function require_rights()
  local may = redis.acl_check_cmd
  if may('XADD', LOG, '*', 'f', 'v') and may('HSET', SESSION, 'f', 'v') and may('HDEL', SESSION, 'f')
    and may('DEL', SESSION) and may('PEXPIRE', SESSION, 1) and may('ZADD', DUE, 0, 'm') and may('ZREM', DUE, 'm')
    and may('ZRANGE', DUE, 0, 0) and may('ZCARD', DUE) then
    return
  end
  error({err = 'NOPERM the Redis user lacks a right that the scripts need'})
end

-- Appends the only log entry of this script and publishes it. The entry is a MessagePack array: format, position,
-- previous position, type, cause, namespace, id, packed fields after the change (of an end: the last ones), names of
-- changed attributes, packed fields before the change if the subject or a label changed.
local function append(kind, cause, fields, changed, before)
  require_rights()
  local position = string.format('%.0f', revision) .. '-' .. args.nonce
  local entry = cmsgpack.pack({FORMAT, position, meta[2], kind, cause, args.namespace, args.id, fields,
    changed or {}, before or ''})
  redis.call('XADD', LOG, position, 'e', entry)
  redis.call('HSET', META, 'last', position, 'bytes', string.format('%.0f', logged_bytes + #entry))
  -- A large entry is announced by its position and the previous one. If the publish fails the message is lost: readers
  -- find the entry in the log.
  local message = #entry <= INLINE_EVENT_BYTES and entry or position .. ' ' .. meta[2]
  redis.pcall('SPUBLISH', args.channel, message)
end

-- Field `r` with the request id of this call appended and expired ones dropped; unchanged if the call has no request
-- id.
local function requests_with_this(kept, outcome)
  if not args.request then return kept end
  local list, oldest = {}, now - args.retry_window
  for at = 1, #(kept or ''), REQUEST_BYTES do
    local entry = kept:sub(at, at + REQUEST_BYTES - 1)
    local _, _, seen_at = struct.unpack(REQUEST, entry)
    if seen_at >= oldest then list[#list + 1] = entry end
  end
  list[#list + 1] = struct.pack(REQUEST, args.request, args.fingerprint, now, outcome)
  return table.concat(list, '', math.max(1, #list - REQUESTS_KEPT + 1))
end

-- The stored entry of this call's request id: whether the request was the same, and its outcome; nil = unknown id.
local function known_request(kept)
  if not args.request or not kept then return nil end
  for at = 1, #kept - REQUEST_BYTES + 1, REQUEST_BYTES do
    local id, fingerprint, seen_at, outcome = struct.unpack(REQUEST, kept, at)
    if id == args.request and seen_at >= now - args.retry_window then
      return {same = fingerprint == args.fingerprint, outcome = outcome}
    end
  end
  return nil
end

-- Replaces the session by a tombstone. Called only if the key holds no readable tombstone.
local function write_tombstone(found, cause, ms, outcome)
  local requests = requests_with_this(found.fixed.r, outcome or 0)
  redis.call('DEL', SESSION)
  local packed = struct.pack(TOMBSTONE_FIELD, FORMAT, cause, revision)
  redis.call('HSET', SESSION, 'x', packed .. seal(packed, found.fixed))
  if found.fixed.t then redis.call('HSET', SESSION, 't', found.fixed.t) end
  if found.fixed.g then redis.call('HSET', SESSION, 'g', found.fixed.g) end
  if requests then redis.call('HSET', SESSION, 'r', requests) end
  redis.call('PEXPIRE', SESSION, ms)
  redis.call('ZREM', DUE, args.id)
  if redis.call('ZCARD', DUE) == 0 then redis.call('ZREM', NAMESPACES, args.namespace) end
end

-- Ends a session with this cause: appends the entry, then writes the tombstone.
local function end_session(found, cause, outcome)
  append(ENDING, cause, pack_fields(found.flat))
  write_tombstone(found, cause, args.tombstone, outcome)
end

-- The reply if this call ended the session: with the subject, from whose index the caller removes the id.
local function ended_now(found, cause)
  return {ENDED, now_us, cause, found.fixed.u or ''}
end

local function pack_tokens(tokens, fixed)
  fixed.t = struct.pack(TOKEN_FIELD, tokens.verifier, tokens.since, tokens.used)
  local old = {}
  for n, token in ipairs(tokens.old) do
    old[n] = struct.pack(OLD_TOKEN, token.verifier, token.superseded, token.valid_until, token.flags)
  end
  fixed.g = #old > 0 and table.concat(old) or nil
end

-- Writes the token flags and the new seal. With an entry type: appends that entry first.
local function save_token_flags(found, tokens, entry)
  pack_tokens(tokens, found.fixed)
  found.flat[found.meta_at] = pack_meta(found)
  if entry then append(entry, 0, pack_fields({unpack(found.flat)})) end
  redis.call('HSET', SESSION, 't', found.fixed.t, 'm', found.flat[found.meta_at])
  if found.fixed.g then redis.call('HSET', SESSION, 'g', found.fixed.g) end
end

-- Checks the presented token of a live session and records its first use. Returns the reply if the token is not
-- accepted; nil = accepted. Token reuse ends the session or is reported, as the policy says.
local function refuse_token(found, tokens)
  local state, needs_write = token_state(found, tokens)
  local old = found.token_index and tokens.old[found.token_index]
  if state ~= REFUSED then
    if needs_write then
      if old then old.flags = bit.bor(old.flags, USED) else tokens.used = 1 end
      save_token_flags(found, tokens)
    end
    return nil
  end
  if needs_write and not args.report then
    end_session(found, TOKEN_REUSE)
    return ended_now(found, TOKEN_REUSE)
  end
  if needs_write then
    old.flags = bit.bor(old.flags, REPORTED)
    found.revision = revision
    save_token_flags(found, tokens, TOKEN_REUSED)
  end
  return {ROTATED, now_us}
end

-- Ends a session that is past its deadline, or whose key is missing although its id is still in the due set. Every
-- mutation calls this first. Returns the reply; nil = the session did not expire.
local function end_if_expired(found)
  local cause
  if found.kind == 'live' and is_expired(found) then
    cause = timeout_cause(found)
  elseif found.kind == 'none' and due_score then
    cause = now >= tonumber(due_score) and IDLE_TIMEOUT or OUT_OF_BAND
  end
  if not cause then return nil end
  end_session(found, cause)
  return ended_now(found, cause)
end
