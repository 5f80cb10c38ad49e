-- The tokens and the request ids after an update, or the reply if they forbid it. First the token is checked, then the request
-- id: a token that is not accepted learns nothing from a known id.
--
-- KEYS   those of head.lua
-- ARGV   those of update.lua
-- Reads  those of update.lua, requests.lua, tokens.lua and refuse_token.lua
-- Sets   outcome, effect, new_tokens; changes_tokens: whether watchers receive it; new_requests; wait: ms until there is room
--        for the request id, -1 = the caller has laid out too little room

local salt_of_this = (ARGV[10] or ''):sub(17)
local had_removed_salt = salt == REMOVED_SALT
local index = credential ~= '' and token_index(credential) or nil
if credential ~= '' and not index then return {NOT_FOUND, now_us} end
local old, requests = unpack_old(), read_requests()

-- Whether the successor of this superseded token is the current one, which was not presented yet, and this call gets it.
local function is_issued()
  if index ~= #old or used ~= 0 then return false end
  if salt_of_this == '' then return verifier == successor end
  return has_salt()
end

local known = known_request(requests)
if known then
  -- include answer_retry
end

if index then
  local refused = refuse_token(old, index)
  if refused then return refused end
end
local drops_salt = drop_salt(old)
new_tokens = drops_salt and pack_tokens(old) or tokens
local is_superseded = index and index > 0
if is_superseded and successor ~= '' and is_issued() then outcome = SHARED end
if is_superseded and (login == 1 or successor ~= '' and outcome ~= SHARED) then
  -- include write_mark
  return {ROTATED, now_us}
end
local rotates = successor ~= '' and outcome ~= SHARED
-- The caller lays the record out by the same rule.
if had_removed_salt and not rotates and (changes_content or REQUEST_ID ~= '') then
  salt = ''
  new_tokens = pack_tokens(old)
end
if rotates and token_index(successor) then
  -- include write_mark
  return {TOKEN_KNOWN, now_us}
end

-- include rotate
changes_tokens = rotates or ends_grace
if changes_tokens or login == 1 and changes_content then new_tokens = pack_tokens(old) end

local count = count_kept(requests)
if changes_content then count = select(3, struct.unpack(LAYOUT, ARGV[6], EXPECTED_BYTES + 1)) / REQUEST_BYTES end
if REQUEST_ID ~= '' or changes_content or rotates then new_requests = with_this_request(requests, effect, count) end
if REQUEST_ID ~= '' then wait = wait_for_room(requests, MAX_REQUESTS - 1) end
if wait == 0 and wait_for_room(requests, count - (REQUEST_ID ~= '' and 1 or 0)) > 0 then wait = -1 end
