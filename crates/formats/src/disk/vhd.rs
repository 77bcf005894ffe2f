//! Microsoft's first format: a footer, of which one that grows has a copy at its head.

use super::Refusal;
use super::bytes::{be32, be64};

const MAGIC: &[u8] = b"conectix";
const SIZE_AT: usize = 48;
const TYPE_AT: usize = 60;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;

pub(super) fn is_footer(tail: &[u8]) -> bool {
    tail.starts_with(MAGIC)
}

pub(super) fn size(footer: &[u8]) -> Result<u64, Refusal> {
    let cut = || Refusal::Damaged("VHD", "it ends early");
    match be32(footer, TYPE_AT).ok_or_else(cut)? {
        FIXED | DYNAMIC => be64(footer, SIZE_AT).ok_or_else(cut),
        _ => Err(Refusal::OtherFiles(
            "it is a difference to another image",
            "merge it into its parent first",
        )),
    }
}
