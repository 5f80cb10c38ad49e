-- Packs life, seal and tokens after a change.
--
-- KEYS   none
-- ARGV   2 as in head.lua
-- Reads  the fields of the life; tokens
-- Sets   life_and_tokens

life_and_tokens = struct.pack(LIFE, created, accessed, idle, idle_until, absolute, generation, cause, left)
life_and_tokens = life_and_tokens .. redis.sha1hex(NAME .. life_and_tokens .. tokens):sub(1, SEAL_BYTES) .. tokens
