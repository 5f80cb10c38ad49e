-- Packs the head of the content after a change.
--
-- KEYS   none
-- ARGV   none
-- Reads  the fields of the head of the content; tokens
-- Sets   content_head

local check
-- include check
content_head = struct.pack(CONTENT_HEAD, FORMAT, kind, revision, nonce, content_revision, content_nonce, turn, turn_until,
  #tokens, basic_bytes, attribute_bytes, request_bytes, basic_crc, attribute_crc, check)
