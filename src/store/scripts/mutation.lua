-- What the scripts that write share; stands after token.lua.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of record.lua, and
--         nonce           decimal text, random, fresh for every send
--         channel         the partition's channel
--         tombstone       ms
--         touch_interval  ms; absent = min(60 s, idle timeout / 20)
--         request, fingerprint, retry_window   16 bytes, 8 bytes, ms; absent = no request id
--         durable         true = replicas are waited for
-- Reply none of its own.
--
-- Order: read and check everything, then XADD, then the rest, which can no longer fail: a script is no transaction,
-- what ran before an error stays.

-- Types of log entries; the numbers of sessiond.v1.EventType.
local CREATED, UPDATED, ROTATING, ENDING, TOKEN_REUSED = 1, 2, 3, 4, 7

local REQUEST = '>c16c8I6B'
local REQUESTS_KEPT = 16
local INLINE_EVENT_BYTES = 8192

local logged_bytes = tonumber(meta[3]) or 0

-- Replicas are waited for up to the connection's last write: this one, which changes nothing, where a repeat has none.
if args.durable then redis.call('HSET', META, 'last', meta[2]) end

-- Both raise before anything is written where a key is of another type.
local due_score = redis.call('ZSCORE', DUE, args.id)
local namespace_score = redis.call('ZSCORE', NAMESPACES, args.namespace)

local revision = math.max(tonumber(meta[2]:match('^%d+')) + 1, now_us)

-- A moment from now; 0 ms = never, as in every deadline.
local function from_now(ms)
  return ms > 0 and now + ms or 0
end

-- Whether a use now is to be written down: not where the last one is younger than the touch interval.
local function touch_is_due(found)
  local interval = args.touch_interval or (found.idle > 0 and math.min(60000, found.idle / 20) or 60000)
  return now - found.accessed >= interval
end

-- Meta of a session whose fields `t` and `g` stand in `fixed`.
local function pack_meta(s)
  local packed = struct.pack(META_FIELD, FORMAT, s.revision, s.created, s.accessed, s.idle, s.idle_until, s.absolute,
    s.generation)
  return packed .. seal(packed, s.fixed)
end

local function schedule(expires)
  local score = expires > 0 and expires or '+inf'
  redis.call('ZADD', DUE, score, args.id)
  if not namespace_score or tonumber(namespace_score) > (expires > 0 and expires or math.huge) then
    redis.call('ZADD', NAMESPACES, score, args.namespace)
  end
end

-- Appends the one entry that this script may append, and tells it. The entry is a MessagePack array:
-- format, position, position of the entry before, type, cause, namespace, id, fields after (or last fields) as told,
-- changed attribute names, fields before as told where the subject or a label changed.
local function append(kind, cause, fields, changed, before)
  local position = string.format('%.0f', revision) .. '-' .. args.nonce
  local entry = cmsgpack.pack({FORMAT, position, meta[2], kind, cause, args.namespace, args.id, fields,
    changed or {}, before or ''})
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

-- Ends what was found, for this cause: the one entry, then the tombstone.
local function finish(found, cause, outcome)
  append(ENDING, cause, told(found.flat))
  bury(found, cause, args.tombstone, outcome)
end

-- The reply where this call ended what was found: with its subject, whose index it is to leave.
local function ended_now(found, cause)
  return {ENDED, now_us, cause, found.fixed.u or ''}
end

local function pack_tokens(tokens, fixed)
  fixed.t = struct.pack(TOKEN_FIELD, tokens.verifier, tokens.since, tokens.used)
  local old = {}
  for n, token in ipairs(tokens.old) do
    old[n] = struct.pack(OLD_TOKEN, token.verifier, token.superseded, token.good_until, token.flags)
  end
  fixed.g = #old > 0 and table.concat(old) or nil
end

-- Sets the marks of tokens and, with them, the seal; after the entry, where there is one.
local function mark(found, tokens, entry)
  pack_tokens(tokens, found.fixed)
  found.flat[found.meta_at] = pack_meta(found)
  if entry then append(entry, 0, told({unpack(found.flat)})) end
  redis.call('HSET', SESSION, 't', found.fixed.t, 'm', found.flat[found.meta_at])
  if found.fixed.g then redis.call('HSET', SESSION, 'g', found.fixed.g) end
end

-- Takes a live session's presented token: notes its first use. Answers why it is not accepted, a stolen one after the
-- policy's consequence; nil = it is accepted.
local function refuse_token(found, tokens)
  local stands, is_news = standing(found, tokens)
  local old = found.place and tokens.old[found.place]
  if stands ~= REFUSED then
    if is_news then
      if old then old.flags = bit.bor(old.flags, USED) else tokens.used = 1 end
      mark(found, tokens)
    end
    return nil
  end
  if is_news and not args.report then
    finish(found, TOKEN_REUSE)
    return ended_now(found, TOKEN_REUSE)
  end
  if is_news then
    old.flags = bit.bor(old.flags, REPORTED)
    found.revision = revision
    mark(found, tokens, TOKEN_REUSED)
  end
  return {ROTATED, now_us}
end

-- What every mutation does first with a session that is over without having been ended: past its deadline, or gone
-- from Redis while its id is still due. Ends it and answers the reply; nil = nothing of the kind.
local function end_if_over(found)
  local cause
  if found.kind == 'live' and is_over(found) then
    cause = timeout_cause(found)
  elseif found.kind == 'none' and due_score then
    cause = now >= tonumber(due_score) and IDLE_TIMEOUT or OUT_OF_BAND
  end
  if not cause then return nil end
  finish(found, cause)
  return ended_now(found, cause)
end
