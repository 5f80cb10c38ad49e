-- Ends the script with the error of a command, unless it is that the key has another type.
--
-- KEYS   none
-- ARGV   none
-- Reads  reply: what redis.pcall returned
-- Sets   nothing

if reply and reply.err and not reply.err:find('^WRONGTYPE') then return reply end
