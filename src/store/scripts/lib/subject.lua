-- Functions that compare the subject of a session, which is the first field of `basic`.
--
-- KEYS   those of head.lua
-- ARGV   those of head.lua
-- Reads  those of head.lua
-- Sets   the functions

local function has_subject(encoded)
  local from = HEAD_BYTES + token_bytes
  return #encoded <= basic_bytes and redis.call('GETRANGE', SESSION, from, from + #encoded - 1) == encoded
end

-- Whether a session without a subject has a valid reservation, made at `reserved_since` in us; empty = no reservation. The
-- first byte of an encoded subject is its field number and wire type.
local function has_reservation(reserved_since)
  return reserved_since ~= '' and tonumber(reserved_since) > left and not has_subject('\034')
end
