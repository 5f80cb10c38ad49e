-- Reads head and tokens of the record of a session.
--
-- KEYS   session, due, namespaces, log, absent, meta   (all in the session's partition)
--        The key absent never exists. While the slot migrates to another node, Redis refuses a script that declares it
--        before the script begins. Without it Redis would stop the script in the middle, at a key that was just emptied.
-- ARGV   1 as in gate.lua; then the verifier of the presented token, 16 bytes; without it, the caller names the id
--        2 namespace:id  3 rules of the policy, packed as RULES  4 the partition's channel
-- Reads  those of gate.lua; known_seal: seal of a record that the caller has verified, nil = none
-- Sets   credential, text (head and tokens), kind, the fields of the head, tokens, verifier, is_used, expires
--
-- If a check fails, the record is unreadable. Its current token is at a fixed place, so that a call with it gets CORRUPT.

local SESSION, DUE, NAMESPACES, LOG, NAME, CHANNEL = KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[4]
local credential = ARGV[1]:sub(GATE_BYTES + 1)
-- A key of another type is an unreadable record; its reply is a table, whose length is 0. Any other error ends the script.
reply = redis.pcall('GETRANGE', SESSION, '0', FRONT_LAST)
-- include unless_wrong_type
local text = reply
local has_head = #text >= HEAD_BYTES
local format, kind, revision, nonce, content_revision, content_nonce, turn, turn_until, token_bytes, basic_bytes,
  attribute_bytes, request_bytes, basic_crc, attribute_crc, stored_check =
  struct.unpack(CONTENT_HEAD, has_head and text or ('\0'):rep(CONTENT_HEAD_BYTES))
-- Superseded tokens follow the current one, up to byte 635 with the salt. For any other token they are always read, so that a
-- wrong token costs the same whether the session exists, was rotated, or has ended.
if credential ~= '' and (not has_head or text:sub(HEAD_BYTES + 1, HEAD_BYTES + 16) ~= credential) then
  text = redis.pcall('GETRANGE', SESSION, '0', '635')
elseif has_head and HEAD_BYTES + token_bytes > #text then
  text = redis.pcall('GETRANGE', SESSION, 0, HEAD_BYTES + token_bytes - 1)
end
if has_head then text = text:sub(1, HEAD_BYTES + token_bytes) end
local created, accessed, idle, idle_until, absolute, generation, cause, left = 0, 0, 0, 0, 0, 0, 0, 0
local verifier, is_used, tokens, expires = '', false, '', 0
if has_head then
  created, accessed, idle, idle_until, absolute, generation, cause, left = struct.unpack(LIFE, text, CONTENT_HEAD_BYTES + 1)
  tokens = text:sub(HEAD_BYTES + 1, HEAD_BYTES + token_bytes)
  verifier, is_used = tokens:sub(1, 16), (tokens:byte(TOKEN_BYTES) or 0) % 2 == USED
  expires = (idle_until == 0 or absolute == 0) and idle_until + absolute or math.min(idle_until, absolute)
  local check
  -- include check
  local seal = text:sub(LIFE_END + 1, HEAD_BYTES)
  if format ~= FORMAT or check ~= stored_check or #tokens ~= token_bytes or seal ~= known_seal
    and seal ~= redis.sha1hex(NAME .. text:sub(CONTENT_HEAD_BYTES + 1, LIFE_END) .. tokens):sub(1, SEAL_BYTES) then
    kind, verifier = UNREADABLE, text:sub(HEAD_BYTES + 1, HEAD_BYTES + 16)
  end
else
  kind = text == '' and ABSENT or UNREADABLE
end
