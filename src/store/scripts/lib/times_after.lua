-- Timeouts, touch and deadlines after an update.
--
-- KEYS   none
-- ARGV   those of update.lua
-- Reads  those of update.lua
-- Sets   accessed, idle, idle_until, absolute; their values before; is_logged: whether the update makes a log entry

local accessed_before, absolute_before, idle_before, idle_until_before, expires_before =
  accessed, absolute, idle, idle_until, expires
if sets_idle == 1 then idle = new_idle end
if sets_absolute == 1 then absolute = new_absolute > 0 and created + new_absolute or 0 end
local is_logged = changes_content or changes_tokens or idle ~= idle_before or absolute ~= absolute_before
if touches == 1 and not is_logged then
  local _, _, touch_interval = struct.unpack(RULES, ARGV[3])
  if now - accessed < (idle > 0 and math.min(touch_interval, idle / 20) or touch_interval) then touches = 0 end
end
if touches == 1 then accessed = now end
if sets_idle == 1 then
  idle_until = idle > 0 and now + idle or 0
elseif touches == 1 and idle > 0 then
  -- Later: the clock was set back.
  idle_until = math.max(idle_until, now + idle)
end
