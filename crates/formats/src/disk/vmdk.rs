//! VMware's format: a header, then a text that says which files the disk is made of. Only a disk that is one file is taken.

use super::Refusal;
use super::bytes::{le32, le64};

const SECTOR_BYTES: u64 = 512;
const CAPACITY_AT: usize = 12;
const TEXT_AT: usize = 28;
const TEXT_SECTORS_AT: usize = 36;
/// The texts of real images have some 20 sectors.
const TEXT_SECTORS_MAX: u64 = 64;
const ONE_FILE: [&str; 2] = ["monolithicSparse", "streamOptimized"];

pub(super) fn size(head: &[u8]) -> Result<u64, Refusal> {
    if !head.starts_with(b"KDMV") {
        return Err(several_files());
    }
    let cut = || Refusal::Damaged("VMDK", "it ends early");
    if !matches!(le32(head, 4), Some(1..=3)) {
        return Err(Refusal::Unsupported("its VMDK version is unknown"));
    }
    let sectors = le64(head, CAPACITY_AT).ok_or_else(cut)?;
    let text_at = le64(head, TEXT_AT).ok_or_else(cut)?;
    let text_sectors = le64(head, TEXT_SECTORS_AT).ok_or_else(cut)?;
    // Without a capacity a reader takes the text for all there is; without a text it is a part of a disk.
    if sectors == 0 || text_at == 0 || !(1..=TEXT_SECTORS_MAX).contains(&text_sectors) {
        return Err(several_files());
    }
    let begin = text_at
        .checked_mul(SECTOR_BYTES)
        .and_then(|at| usize::try_from(at).ok());
    let bytes = usize::try_from(text_sectors * SECTOR_BYTES).map_err(|_| cut())?;
    let text = begin.and_then(|begin| head.get(begin..begin.checked_add(bytes)?));
    check_text(text.ok_or_else(cut)?)?;
    sectors.checked_mul(SECTOR_BYTES).ok_or(Refusal::Size(u64::MAX))
}

fn several_files() -> Refusal {
    Refusal::OtherFiles(
        "its data is in other files",
        "export it as one file (streamOptimized, or as an OVA's disk)",
    )
}

/// Which files the disk is made of: this one alone.
fn check_text(text: &[u8]) -> Result<(), Refusal> {
    let damaged = Refusal::Damaged("VMDK", "its description is no text");
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let text = text.get(..end).and_then(|text| str::from_utf8(text).ok());
    let lines = text.ok_or(damaged)?.lines().map(str::trim);
    let mut is_one_file = false;
    let mut extents = 0;
    for line in lines {
        match line.split_once('=') {
            Some((key, value)) => {
                let (key, value) = (key.trim(), value.trim().trim_matches('"'));
                match key {
                    "createType" => is_one_file = ONE_FILE.contains(&value),
                    "parentCID" if !value.eq_ignore_ascii_case("ffffffff") => return Err(has_parent()),
                    "parentFileNameHint" => return Err(has_parent()),
                    _ => {}
                }
            }
            None if is_extent(line) => extents += 1,
            None => {}
        }
    }
    if is_one_file && extents == 1 {
        return Ok(());
    }
    Err(several_files())
}

fn has_parent() -> Refusal {
    Refusal::OtherFiles("it is a difference to another image", "export it as one file")
}

/// As in `RW 16384 SPARSE "disk.vmdk"`.
fn is_extent(line: &str) -> bool {
    let access = line.split_whitespace().next();
    access.is_some_and(|word| ["RW", "RDONLY", "NOACCESS"].contains(&word))
}
