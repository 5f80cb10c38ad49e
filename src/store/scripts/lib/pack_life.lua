-- Packs life, seal and tokens after a change.
--
-- KEYS   none
-- ARGV   2 as in head.lua
-- Reads  the fields of the life; tokens
-- Sets   life

life = struct.pack(LIFE, created, accessed, idle, idle_until, absolute, generation, cause, left)
life = life .. redis.sha1hex(NAME .. life .. tokens):sub(1, SEAL_BYTES) .. tokens
