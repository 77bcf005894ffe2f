//! Files from elsewhere: what they are, and whether they can be taken.
//!
//! **Owns:** telling a disk image from its bytes ([`disk`]), what it is compressed with ([`compression`]), what of it need not
//! be written ([`sparse`]), and what its digest should be ([`sums`]).
//!
//! **Does not know:** where the bytes come from, and who converts them.
//!
//! **Start here:** [`disk::recognise`].
//!
//! Whoever sends a file chose every byte of it. So a file's name says nothing here, every number is checked before it is
//! used, and what would have a converter open *another* file is refused before any converter sees it.

pub mod compression;
pub mod disk;
pub mod sparse;
pub mod sums;
