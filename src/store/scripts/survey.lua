-- Returns the states of many sessions of one namespace. Has no effect: the caller runs another script on those that need one.
--
-- KEYS   due, namespaces, one session for each id, meta   (all in the sessions' partition)
-- ARGV   1 as in gate.lua  2 namespace  3… ids
-- Reply  {DONE, now, 1 = the set of namespaces has the namespace, [state, beginning of a live record or '', …]}: a pair for
--        each id, in order

assert(#KEYS >= 4 and #KEYS == #ARGV + 1, 'arity')
-- include constants
-- include gate
local DUE, NAMESPACES = KEYS[1], KEYS[2]
-- States; the same list is in store/survey.rs. Most records have head, tokens and subject within the beginning.
local MISSING, LIVE_NOW, OVERDUE, UNSCHEDULED, OTHER = 0, 1, 2, 3, 4
local BEGINNING = 512

local function state_of(record, deadline)
  if record == '' then return deadline and MISSING or OTHER end
  if type(record) ~= 'string' or #record < HEAD_BYTES or record:byte(1) ~= FORMAT or record:byte(2) ~= LIVE then
    return OTHER
  end
  if not deadline then return UNSCHEDULED end
  return now < deadline and LIVE_NOW or OVERDUE
end

local states = {}
for n = 1, #ARGV - 2 do
  -- A session key of another type is an unreadable record, as in head.lua.
  reply = redis.pcall('GETRANGE', KEYS[n + 2], 0, BEGINNING - 1)
  -- include unless_wrong_type
  local record = reply
  local state = state_of(record, tonumber(redis.call('ZSCORE', DUE, ARGV[n + 2])))
  states[2 * n - 1] = state
  states[2 * n] = (state == MISSING or state == OTHER) and '' or record
end
return {DONE, now_us, redis.call('ZSCORE', NAMESPACES, ARGV[2]) and 1 or 0, states}
