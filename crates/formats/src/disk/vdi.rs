//! VirtualBox's format.

use super::Refusal;
use super::bytes::{le32, le64};

const MAGIC: u32 = 0xbeda_107f;
const MAGIC_AT: usize = 0x40;
const TYPE_AT: usize = 0x4c;
const DATA_AT: usize = 0x158;
const SIZE_AT: usize = 0x170;
const BLOCK_BYTES_AT: usize = 0x178;
const BLOCKS_AT: usize = 0x184;
/// Grows with what is written.
const DYNAMIC: u32 = 1;
/// All of it is there.
const FIXED: u32 = 2;

pub(super) fn is_header(head: &[u8]) -> bool {
    le32(head, MAGIC_AT) == Some(MAGIC)
}

pub(super) fn size(head: &[u8]) -> Result<u64, Refusal> {
    let cut = || Refusal::Damaged("VDI", "it ends early");
    match le32(head, TYPE_AT).ok_or_else(cut)? {
        DYNAMIC | FIXED => le64(head, SIZE_AT).ok_or_else(cut),
        _ => Err(Refusal::OtherFiles(
            "it is a difference to another image",
            "clone it to a full image first",
        )),
    }
}

/// How large a file is that has all the blocks which its header counts.
pub(super) fn bytes_min(head: &[u8]) -> Option<u64> {
    let number = |place| le32(head, place).map(u64::from);
    Some(number(DATA_AT)? + number(BLOCK_BYTES_AT)? * number(BLOCKS_AT)?)
}
