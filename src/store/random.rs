//! Random numbers of the operating system.

/// Random number.
#[expect(clippy::expect_used, reason = "the operating system's random source does not fail on supported platforms")]
pub(super) fn random_u64() -> u64 {
    getrandom::u64().expect("the operating system returns random bytes")
}

/// Random number that distinguishes changes with the same revision. Lua keeps it exactly.
pub(super) fn random_nonce() -> u64 {
    random_u64() >> 11
}
