-- Appends the only log entry of a script and publishes it.
--
-- KEYS   those of head.lua
-- ARGV   those of head.lua
-- Reads  entry_type; entry_cause; entry_head: head of the record after the change up to the seal, empty = the state is unknown;
--        changes: as Rust packed them; content, and `start`: position of `basic` in it, from 0; with 0 it is small
-- Sets   nothing
--
-- An entry with a small content is one text, in the log and on the channel. A larger one has two parts, so that the content
-- is not copied; above 64 KiB only its position and the previous one are published. If the publish fails, the message is
-- lost: readers find the entry in the log.

-- XADD is the first write. The script has to know that it may make the others.
require_right('HSET', META, 'f', 'v')
-- Format, type, cause, start; bytes of the parts that follow.
local position = string.format('%d-%d', new_revision, NONCE)
local entry = struct.pack('>BBBI2BBBBI4I4', FORMAT, entry_type, entry_cause, start, #position, #last, #entry_head, #NAME,
  #changes, #content) .. position .. last .. entry_head .. NAME .. changes .. (start == 0 and content or '')
local entry_bytes = #entry + (start == 0 and 0 or #content)
if start == 0 then
  redis.call('XADD', LOG, position, 'e', entry)
else
  redis.call('XADD', LOG, position, 'e', entry, 'c', content)
end
redis.call('HSET', META, 'last', position, 'bytes', string.format('%d', logged_bytes + entry_bytes))
if entry_bytes > 65536 then
  redis.pcall('SPUBLISH', CHANNEL, position .. ' ' .. last)
else
  redis.pcall('SPUBLISH', CHANNEL, entry)
  if start > 0 then redis.pcall('SPUBLISH', CHANNEL, content) end
end
