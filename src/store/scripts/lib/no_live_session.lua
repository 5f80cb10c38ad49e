-- Replies to an update without a live session: it is missing, unreadable, has ended, or ends now.
--
-- KEYS   those of head.lua
-- ARGV   those of head.lua
-- Reads  those of update.lua
-- Sets   nothing: it returns

-- include requests
-- include tokens
-- include end_session
if credential ~= '' and not token_index(credential) then return {NOT_FOUND, now_us} end
local ended, basic = end_if_expired()
if ended then return {ENDED, now_us, ended, basic} end
if kind == TOMBSTONE then return {ENDED, now_us, cause, ''} end
return {kind == ABSENT and NOT_FOUND or CORRUPT, now_us}
