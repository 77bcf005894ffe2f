//! The shell's own clock and chance: for names, pauses and what people read.
//!
//! **Owns:** every call to a real clock or generator in this crate. Cores get the time as an argument; nothing that is
//! drawn here reaches one but as such.
//!
//! **Does not know:** what it is used for.
//!
//! **Start here:** [`now`].

use model::Timestamp;
use rand::RngExt;
use uuid::Uuid;

/// The wall clock.
#[expect(
    clippy::disallowed_methods,
    reason = "the shell's clock, passed to cores as an argument"
)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// An id that no other host has: of the agent's session, of a temporary file.
#[expect(
    clippy::disallowed_methods,
    reason = "names sessions and temporary files, nothing that is decided"
)]
pub fn unique() -> Uuid {
    Uuid::now_v7()
}

/// What tells the answers on one connection from those on an earlier one.
#[expect(
    clippy::disallowed_methods,
    reason = "a mark on a connection, nothing that is decided"
)]
pub fn nonce() -> u32 {
    rand::random()
}

/// What a guest draws its random numbers from.
#[expect(
    clippy::disallowed_methods,
    reason = "a guest's entropy, nothing that is decided"
)]
pub fn entropy<const N: usize>() -> [u8; N]
where
    rand::distr::StandardUniform: rand::distr::Distribution<[u8; N]>,
{
    rand::random()
}

/// What keeps many hosts from trying in step: from a half to one.
#[expect(clippy::disallowed_methods, reason = "the length of a pause")]
pub fn jitter() -> f64 {
    rand::rng().random_range(0.5..1.0)
}
