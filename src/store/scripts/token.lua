-- How a presented token stands. Stands after record.lua, before every session script.
--
-- KEYS  session, due, namespaces, log, absent, meta
-- ARGV  those of record.lua
-- Reply none of its own.

-- The tokens of a live record: the present one, and those before it, the oldest first.
local function tokens_of(found)
  local tokens = {old = {}}
  tokens.verifier, tokens.since, tokens.used = struct.unpack(TOKEN_FIELD, found.fixed.t)
  local packed = found.fixed.g or ''
  for at = 1, #packed, OLD_TOKEN_BYTES do
    local old = {}
    old.verifier, old.superseded, old.good_until, old.flags = struct.unpack(OLD_TOKEN, packed, at)
    tokens.old[#tokens.old + 1] = old
  end
  return tokens
end

-- Whether a token that came after the one at this place was ever presented.
local function successor_was_used(tokens, place)
  for n = place + 1, #tokens.old do
    if bit.band(tokens.old[n].flags, USED) ~= 0 then return true end
  end
  return tokens.used ~= 0
end

-- ms until when the presented token of a live record or a tombstone is, or was, good; 0 = no end.
local function good_until(found)
  if not found.place or found.place == 0 then return 0 end
  local _, _, till = struct.unpack(OLD_TOKEN, found.fixed.g, (found.place - 1) * OLD_TOKEN_BYTES + 1)
  return till
end

-- How the presented token of a live record stands, and whether this use of it has to be noted: it is the first one, or
-- the token is stolen.
local function standing(found, tokens)
  if not found.place then return NAMED, false end
  if found.place == 0 then
    local is_due = args.renewal and now - tokens.since >= args.renewal
    return is_due and ROTATION_DUE or CURRENT, tokens.used == 0
  end
  local old = tokens.old[found.place]
  if now < old.good_until then return SUPERSEDED, bit.band(old.flags, USED) == 0 end
  -- As long as the policy's grace runs, parallel tabs explain it. Where no successor was ever seen, a lost answer does.
  local is_stolen = now >= old.superseded + args.grace and successor_was_used(tokens, found.place)
  -- Told once of each token: whoever repeats it does not fill the log.
  local is_told = args.report and bit.band(old.flags, REPORTED) ~= 0
  return REFUSED, is_stolen and not is_told
end
