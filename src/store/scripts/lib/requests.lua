-- Functions on the request ids of a session.
--
-- KEYS   those of head.lua
-- ARGV   those of head.lua
-- Reads  those of head.lua; REQUEST_ID: id and fingerprint of the request, 16 and 8 bytes, empty = none
-- Sets   RETRY_WINDOW, the functions

local RETRY_WINDOW = select(5, struct.unpack(RULES, ARGV[3]))

-- Entries of the request ids, oldest first; empty if there are none or they cannot be read.
local function read_requests()
  if kind ~= LIVE and kind ~= TOMBSTONE or request_bytes == 0 then return '' end
  local found = redis.call('GETRANGE', SESSION, HEAD_BYTES + token_bytes + basic_bytes + attribute_bytes, -1)
  return #found == request_bytes and #found % REQUEST_BYTES == 0 and found or ''
end

-- Entry of this call's request id: whether the request was the same, its time, and its effect; nil = unknown.
local function known_request(requests)
  for at = #requests - REQUEST_BYTES + 1, 1, -REQUEST_BYTES do
    if REQUEST_ID ~= '' and requests:sub(at, at + 15) == REQUEST_ID:sub(1, 16) then
      local request, seen_at, effect = struct.unpack(REQUEST, requests, at)
      if now - seen_at > RETRY_WINDOW then return nil end
      return {is_same = request == REQUEST_ID, seen_at = seen_at, effect = effect}
    end
  end
  return nil
end

-- Time in ms until the list may keep only its newest entries, this many; 0 = now. A time ahead of the clock is from
-- before the clock was set back.
local function wait_for_room(requests, kept)
  local at = #requests - (kept + 1) * REQUEST_BYTES + 1
  if at < 1 then return 0 end
  local _, seen_at = struct.unpack(REQUEST, requests, at)
  local wait = seen_at + math.min(RETRY_WINDOW, GUARANTEED) - now
  return seen_at <= now and wait > 0 and wait or 0
end

-- Number of entries after this call: those that are still known, and the one of this call.
local function count_kept(requests)
  local count = #requests / REQUEST_BYTES
  for at = 1, #requests, REQUEST_BYTES do
    local _, seen_at = struct.unpack(REQUEST, requests, at)
    if now - seen_at <= RETRY_WINDOW then break end
    count = count - 1
  end
  return math.min(count + (REQUEST_ID ~= '' and 1 or 0), MAX_REQUESTS)
end

-- The newest entries, this many, with the id of this call as the last one.
local function with_this_request(requests, effect, count)
  local this = REQUEST_ID == '' and '' or struct.pack(REQUEST, REQUEST_ID, now, effect)
  local kept = math.max(0, count * REQUEST_BYTES - #this)
  return (kept == 0 and '' or requests:sub(-kept)) .. this
end
