//! New random numbers: for a guest whose memory is a copy of another's.

use std::fs::File;
use std::io::{Read as _, Write as _};

use rustix::ioctl::{NoArg, ioctl};

use crate::Outcome;

/// `RNDRESEEDCRNG`, of `linux/random.h`.
const RESEED: u32 = 0x5207;
/// What the kernel's generator is keyed with is half as long.
const SEED_BYTES_MIN: usize = 64;

/// Mixes what comes on standard input.
pub(crate) fn run() -> Outcome {
    let mut seed = Vec::new();
    std::io::stdin().read_to_end(&mut seed)?;
    mix(&seed)
}

/// Mixes bytes into the kernel's pool, and has its generator take a new key from there at once.
#[expect(unsafe_code, reason = "there is no safe way to make this call")]
pub(crate) fn mix(seed: &[u8]) -> Outcome {
    if seed.len() < SEED_BYTES_MIN {
        return Err(format!("{} bytes of entropy are too few", seed.len()).into());
    }
    let mut pool = File::options().write(true).open("/dev/urandom")?;
    pool.write_all(seed)?;
    // SAFETY: the call takes no argument.
    unsafe { ioctl(&pool, NoArg::<RESEED>::new()) }?;
    Ok(())
}
