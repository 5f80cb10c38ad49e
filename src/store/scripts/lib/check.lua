-- Check of the head of the content.
--
-- KEYS   none
-- ARGV   none
-- Reads  the fields of the head of the content; tokens
-- Sets   check

check = (kind + revision % MODULUS * 3 + nonce % MODULUS * 5 + content_revision % MODULUS * 7 + content_nonce % MODULUS * 11
  + turn % MODULUS * 13 + turn_until % MODULUS * 17 + #tokens * 19 + basic_bytes * 23 + attribute_bytes * 29
  + request_bytes * 31) % MODULUS
