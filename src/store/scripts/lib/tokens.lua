-- Functions on the tokens of a session.
--
-- KEYS   those of head.lua
-- ARGV   those of head.lua
-- Reads  those of head.lua
-- Sets   ROTATION_GRACE, RENEWAL, REPORTS, the fields of the current token, the functions; salt: empty = the tokens have none

local ROTATION_GRACE, RENEWAL, _, _, _, REPORTS = struct.unpack(RULES, ARGV[3])
local since, used, salt = 0, 0, ''
if #tokens >= TOKEN_BYTES then
  _, since, used = struct.unpack(TOKEN, tokens)
  if used >= SALTED then used, salt = used - SALTED, tokens:sub(-#REMOVED_SALT) end
end

-- Index of the token with this verifier: 0 = the current one, n = the n-th superseded one, nil = none. Compares all
-- tokens in any case, so that the cost does not depend on the result.
local function token_index(wanted)
  local index, n = nil, 0
  if verifier == wanted then index = 0 end
  for at = TOKEN_BYTES + 1, #tokens - #salt, OLD_TOKEN_BYTES do
    n = n + 1
    if tokens:sub(at, at + 15) == wanted then index = n end
  end
  return index
end

-- The superseded tokens, oldest first.
local function unpack_old()
  local old = {}
  for at = TOKEN_BYTES + 1, #tokens - #salt, OLD_TOKEN_BYTES do
    local token, superseded, valid_until, flags = struct.unpack(OLD_TOKEN, tokens, at)
    old[#old + 1] = {verifier = token, superseded = superseded, valid_until = valid_until, flags = flags}
  end
  return old
end

-- Packs the fields of the current token, and the superseded ones.
local function pack_tokens(old)
  local parts = {struct.pack(TOKEN, verifier, since, used + (salt ~= '' and SALTED or 0))}
  for n, token in ipairs(old) do
    parts[n + 1] = struct.pack(OLD_TOKEN, token.verifier, token.superseded, token.valid_until, token.flags)
  end
  return table.concat(parts) .. salt
end

-- Whether the grace period of a superseded token is over. A login ends it for good, also if the clock is set back.
local function is_over(token)
  return now >= token.valid_until or bit.band(token.flags, GRACE_ENDED) ~= 0
end

-- State of the token at this index, and whether this use needs a write: it is the first use, or token reuse.
local function token_state(old, index)
  if index == 0 then return now - since >= RENEWAL and ROTATION_DUE or CURRENT, used == 0 end
  local token = old[index]
  if not is_over(token) then return SUPERSEDED, bit.band(token.flags, USED) == 0 end
  -- Within the policy's grace the cause may be parallel tabs. If no later token was ever presented, it may be a lost reply.
  local successor_was_used = used ~= 0
  for n = index + 1, #old do successor_was_used = successor_was_used or bit.band(old[n].flags, USED) ~= 0 end
  local is_reuse = now >= token.superseded + ROTATION_GRACE and successor_was_used
  -- Reported once per token, so that a client that repeats it does not fill the log.
  return REFUSED, is_reuse and not (REPORTS == 1 and bit.band(token.flags, REPORTED) ~= 0)
end

local function has_salt()
  return salt ~= '' and salt ~= REMOVED_SALT
end

-- Removes a salt with which no call receives the successor any more. Returns whether there was one. Its bytes stay, so that the
-- record is written in place.
local function drop_salt(old)
  local is_valid = #old > 0 and (not is_over(old[#old]) or now - since <= GUARANTEED and now >= since)
  if not has_salt() or is_valid then return false end
  salt = REMOVED_SALT
  return true
end
