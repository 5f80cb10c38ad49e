-- Functions that end a session.
--
-- KEYS   those of head.lua
-- ARGV   those of head.lua
-- Reads  those of head.lua, change.lua and requests.lua
-- Sets   TOMBSTONE_MS, the functions

local TOMBSTONE_MS = select(4, struct.unpack(RULES, ARGV[3]))

-- Whether no session of the namespace is due without this one. Raises the errors for keys of other types and for missing rights:
-- they have to come before the first write.
local function is_last_due(id)
  require_right('SET', SESSION, 'v')
  require_right('ZREM', DUE, 'm')
  local due = redis.call('ZRANGE', DUE, '0', '1')
  local is_last = #due == 0 or #due == 1 and due[1] == id
  if is_last then redis.call('ZCARD', NAMESPACES) end
  return is_last
end

-- Replaces the session by a tombstone. It keeps the tokens, so that the token of an ended session is recognised.
local function write_tombstone(end_cause, ms, effect, is_last)
  local namespace, id = NAME:match('^([^:]*):(.*)$')
  if is_last == nil then is_last = is_last_due(id) end
  local requests = with_this_request(read_requests(), effect, MAX_REQUESTS)
  if kind ~= LIVE then tokens = '' end
  kind, revision, nonce, content_revision, content_nonce, turn, turn_until = TOMBSTONE, new_revision, NONCE, 0, 0, 0, 0
  basic_bytes, attribute_bytes, request_bytes, basic_crc, attribute_crc = 0, 0, #requests, 0, 0
  created, accessed, idle, idle_until, absolute, generation, cause, left = 0, 0, 0, 0, 0, 0, end_cause, 0
  local content_head, life_and_tokens
  -- include pack_head
  -- include pack_life
  redis.call('SET', SESSION, content_head .. life_and_tokens .. requests, 'PX', ms)
  redis.call('ZREM', DUE, id)
  if is_last then redis.call('ZREM', NAMESPACES, namespace) end
end

-- Ends a session with this cause: appends the entry with the last state, then writes the tombstone. Returns `basic`: the
-- index of its subject has the id.
local function end_session(end_cause, effect)
  local is_last = is_last_due(NAME:match(':(.*)$'))
  local entry_type, entry_cause, changes, entry_head, basic, content, start = ENDING, end_cause, '', '', '', '', 0
  if kind == LIVE then
    local zeros = 0
    -- include stored_content
    entry_head, basic = text:sub(1, LIFE_END), content:sub(start + 1, start + basic_bytes)
  end
  -- include append
  write_tombstone(end_cause, TOMBSTONE_MS, effect, is_last)
  return basic
end

-- Ends a session that is past its deadline, or whose key is missing although its id is still in the due set. Every
-- mutation calls this first. Returns the cause and `basic`; nil = the session did not expire.
local function end_if_expired()
  if kind == LIVE then
    if expires == 0 or now < expires then return nil end
    local timeout = expires == absolute and ABSOLUTE_TIMEOUT or IDLE_TIMEOUT
    return timeout, end_session(timeout, NO_EFFECT)
  end
  local score = kind == ABSENT and redis.call('ZSCORE', DUE, NAME:match(':(.*)$'))
  if not score then return nil end
  local missing = now >= tonumber(score) and IDLE_TIMEOUT or OUT_OF_BAND
  return missing, end_session(missing, NO_EFFECT)
end
