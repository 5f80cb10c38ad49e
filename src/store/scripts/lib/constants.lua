-- Numbers and layouts that scripts share with each other, with Rust and with the proto files.

-- Outcomes; the same list is in store/scripts.rs.
local STORE_CHANGED, TOO_LATE = -2, -1
local NOT_FOUND, DONE, ENDED, EXISTS, CORRUPT = 0, 1, 2, 3, 4
local REVISION_MISMATCH, REQUEST_ID_REUSED, REQUEST_ID_LIMIT = 5, 6, 7
local CONFLICT, BUSY, SHARED, NOT_DUE = 8, 9, 10, 11
local ROTATED, TOKEN_KNOWN, NOT_RESERVED, SUBJECT_FULL, SUBJECT_LIMIT = 12, 13, 14, 15, 16
local NOT_MEANT = 17

-- Causes: the numbers of sessiond.v1.Cause.
local REVOKED, TOKEN_REUSE, IDLE_TIMEOUT, ABSOLUTE_TIMEOUT, OUT_OF_BAND = 2, 4, 5, 6, 7

-- Types of log entries: the numbers of sessiond.v1.EventType.
local CREATED, UPDATED, ROTATING, ENDING, TOKEN_REUSED = 1, 2, 3, 4, 7

-- Kinds of records. A key that does not exist, and one that cannot be read, have no record.
local ABSENT, LIVE, TOMBSTONE, UNREADABLE = 0, 1, 2, 3

-- Parts of a record; docs/storage-format.md names the fields. The head of the content ends with a check of its own fields, the
-- life with the seal, which covers the tokens too. A change of the content leaves the life and the tokens as they are.
local FORMAT = 0xFA
local CONTENT_HEAD, CONTENT_HEAD_BYTES = '>BBI7I7I7I7I7I6I2I4I4I2I4I4I4', 67
local LIFE, LIFE_END, SEAL_BYTES, HEAD_BYTES = '>I6I6I6I6I6I4BI7', 109, 8, 117
-- Bytes of the content position: revision and nonce of the last change of the content.
local CONTENT_FROM, CONTENT_TO = 17, 30
-- Modulus of the check: the largest prime below 2^32, so that no flipped bit leaves it unchanged.
local MODULUS = 4294967291
-- The current token: verifier, valid since, and flags as its last byte. If the flags have SALTED, the tokens end with the salt of
-- the rotation that issued it; zero bytes = the salt was removed. The next write of the whole record leaves the zero bytes out.
local TOKEN, TOKEN_BYTES, SALTED = '>c16I6B', 23, 2
-- Last byte of head, current token and two superseded ones, from 0. A text, as all constant arguments of commands: Redis
-- formats a number with 17 digits, which costs up to a tenth of the command.
local FRONT_LAST = '197'
local REMOVED_SALT = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'

-- Superseded tokens, oldest first: verifier, superseded at, valid until, flags.
local OLD_TOKEN, OLD_TOKEN_BYTES, MAX_OLD_TOKENS = '>c16I6I6B', 29, 16
local USED, REPORTED, GRACE_ENDED = 1, 2, 4

-- States of a presented token; the first four are the numbers of sessiond.v1.TokenState.
local NOT_PRESENTED, CURRENT, ROTATION_DUE, SUPERSEDED, REFUSED = 0, 1, 2, 3, 4

-- Request ids, oldest first: id and fingerprint, time, effect of the call. A rotation superseded the token that the call
-- presented. For GUARANTEED ms an id is known in any case: longer than a call's deadline plus the timeout of a client.
local REQUEST, REQUEST_BYTES, MAX_REQUESTS, GUARANTEED = '>c24I6B', 31, 64, 15000
local NO_EFFECT, CHANGED, ENDED_IT, ROTATED_IT = 0, 1, 2, 3

-- The first argument of gated scripts: id of the store, time limit, nonce.
local GATE, GATE_BYTES = '>c32I8I8', 48

-- Rules of the policy: rotation grace, renewal timeout, touch interval, tombstone, retry window, in ms; 1 = token reuse is
-- reported, 0 = it ends the session; 1 = the caller waits for replicas.
local RULES = '>I8I8I8I8I8BB'

-- Layout of a new content: bytes of basic, of attributes and of request ids; checksums of basic and of attributes.
local LAYOUT = '>I4I4I2I4I4'

-- A content of up to this many bytes is copied in Lua where that saves a command. A larger one is a part of a text that is
-- written as it is: it follows zero bytes for head and tokens, over which those are written. The text begins with the nonce.
local MAX_SMALL = 2048
