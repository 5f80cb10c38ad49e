-- Touches a session, if the touch is due.
--
-- KEYS   those of head.lua
-- ARGV   those of head.lua
-- Reads  those of head.lua
-- Sets   accessed, idle_until, expires, tokens; reply_text: the new head and tokens

local _, _, touch_interval = struct.unpack(RULES, ARGV[3])
if now - accessed >= (idle > 0 and math.min(touch_interval, idle / 20) or touch_interval) then
  local expires_before, life_and_tokens = expires, nil
  if tokens:byte(TOKEN_BYTES) >= SALTED then
    -- include tokens
    local old = unpack_old()
    if drop_salt(old) then tokens = pack_tokens(old) end
  end
  accessed = now
  if idle > 0 then idle_until = math.max(idle_until, now + idle) end
  expires = (idle_until == 0 or absolute == 0) and idle_until + absolute or math.min(idle_until, absolute)
  if expires ~= expires_before then
    local namespace, id = NAME:match('^([^:]*):(.*)$')
    local namespace_score = redis.call('ZSCORE', NAMESPACES, namespace)
    -- include schedule
  end
  -- include pack_life
  redis.call('SETRANGE', SESSION, CONTENT_HEAD_BYTES, life_and_tokens)
  reply_text = text:sub(1, CONTENT_HEAD_BYTES) .. life_and_tokens
end
