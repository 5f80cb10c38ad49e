-- Replaces the current token, if the call rotates it; ends every grace period, if the call is a login.
--
-- KEYS   none
-- ARGV   those of update.lua
-- Reads  those of tokens_after.lua
-- Sets   effect, verifier, since, used, salt; the entries of old; ends_grace: whether a grace period ended

if rotates then
  effect = ROTATED_IT
  old[#old + 1] = {verifier = verifier, superseded = now, valid_until = now + grace, flags = used ~= 0 and USED or 0}
  if #old > MAX_OLD_TOKENS then table.remove(old, 1) end
  -- Without a grace period only a retry may receive the successor again.
  local keeps_salt = salt_of_this ~= '' and (grace > 0 or REQUEST_ID ~= '')
  verifier, since, used, salt = successor, now, 0, keeps_salt and salt_of_this or ''
end
local ends_grace = false
if login == 1 then
  for _, token in ipairs(old) do
    ends_grace = ends_grace or not is_over(token)
    token.valid_until, token.flags = math.min(token.valid_until, now), bit.bor(token.flags, GRACE_ENDED)
  end
end
