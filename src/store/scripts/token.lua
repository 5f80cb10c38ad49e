-- Prelude that determines the state of a presented token; follows record.lua, precedes every session script.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of record.lua
-- Reply no reply: a prelude

-- The tokens of a live record: the current one, and the superseded ones, oldest first.
local function tokens_of(found)
  local tokens = {old = {}}
  tokens.verifier, tokens.since, tokens.used = struct.unpack(TOKEN_FIELD, found.fixed.t)
  local packed = found.fixed.g or ''
  for at = 1, #packed, OLD_TOKEN_BYTES do
    local old = {}
    old.verifier, old.superseded, old.valid_until, old.flags = struct.unpack(OLD_TOKEN, packed, at)
    tokens.old[#tokens.old + 1] = old
  end
  return tokens
end

-- Whether any token after the one at this index was ever presented.
local function successor_was_used(tokens, token_index)
  for n = token_index + 1, #tokens.old do
    if bit.band(tokens.old[n].flags, USED) ~= 0 then return true end
  end
  return tokens.used ~= 0
end

-- Whether the grace period of a superseded token is over. A login ends it for good, also if the clock is set back.
local function is_over(valid_until, flags)
  return now >= valid_until or bit.band(flags, GRACE_ENDED) ~= 0
end

-- Time in ms until which the presented token of a live record or a tombstone is, or was, accepted, 0 = no limit; and
-- 1 = that time is over.
local function validity(found)
  if not found.token_index or found.token_index == 0 then return 0, 0 end
  local at = (found.token_index - 1) * OLD_TOKEN_BYTES + 1
  local _, _, valid_until, flags = struct.unpack(OLD_TOKEN, found.fixed.g, at)
  return valid_until, is_over(valid_until, flags) and 1 or 0
end

-- State of the presented token of a live record, and whether this use needs a write: it is the first use, or token
-- reuse.
local function token_state(found, tokens)
  if not found.token_index then return NOT_PRESENTED, false end
  if found.token_index == 0 then
    local is_due = args.renewal and now - tokens.since >= args.renewal
    return is_due and ROTATION_DUE or CURRENT, tokens.used == 0
  end
  local old = tokens.old[found.token_index]
  if not is_over(old.valid_until, old.flags) then return SUPERSEDED, bit.band(old.flags, USED) == 0 end
  -- Within the policy's grace the cause may be parallel tabs. If no successor was ever presented, it may be a lost
  -- reply.
  local is_reuse = now >= old.superseded + args.grace and successor_was_used(tokens, found.token_index)
  -- Reported once per token, so that a client that repeats it does not fill the log.
  local is_reported = args.report and bit.band(old.flags, REPORTED) ~= 0
  return REFUSED, is_reuse and not is_reported
end
