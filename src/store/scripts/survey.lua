-- Returns the states of many sessions of one namespace. Has no effect: the caller runs another script on those that need
-- one.
--
-- KEYS  due, namespaces, one session for each id, meta   (all in the sessions' partition)
-- ARGV  those of gate.lua, and
--         namespace
--         ids          array
-- Reply {DONE, now, 1 = the set of namespaces has the namespace, [state, subject or '', …]}: a pair for each id, in order

local DUE, NAMESPACES = KEYS[1], KEYS[2]
assert(#KEYS >= 4 and #KEYS == #args.ids + 3, 'arity')

-- States; the same list is in store/survey.rs.
local MISSING, LIVE, OVERDUE, UNSCHEDULED, OTHER = 0, 1, 2, 3, 4

local function state_of(session, record, deadline)
  if record.err or record[2] then return OTHER end
  if record[1] then
    if not deadline then return UNSCHEDULED end
    return now < deadline and LIVE or OVERDUE
  end
  return deadline and redis.call('EXISTS', session) == 0 and MISSING or OTHER
end

local states = {}
for n, id in ipairs(args.ids) do
  local session = KEYS[n + 2]
  -- A session key of another type is an unreadable record, as in record.lua.
  local record = redis.pcall('HMGET', session, 'm', 'x', 'u')
  states[2 * n - 1] = state_of(session, record, tonumber(redis.call('ZSCORE', DUE, id)))
  states[2 * n] = not record.err and record[3] or ''
end
return {DONE, now_us, redis.call('ZSCORE', NAMESPACES, args.namespace) and 1 or 0, states}
