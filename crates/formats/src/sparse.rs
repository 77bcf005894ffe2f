//! What of a file's content has to be written: a new file reads as zeroes where nothing was.
//!
//! *Owns:* which blocks. *Does not know:* files. *Start here:* [`data`].

/// What is all zero in so large a block, at a multiple of it, is not written.
const BLOCK_BYTES: usize = 64 * 1024;

/// The blocks of a piece that begins at `at` which are not all zero, with their places. What is left out at the end needs
/// the file to be given its length.
pub fn data(piece: &[u8], at: u64) -> impl Iterator<Item = (u64, &[u8])> {
    let over = at % BLOCK_BYTES as u64;
    let to_boundary = usize::try_from(over).map_or(0, |over| (BLOCK_BYTES - over) % BLOCK_BYTES);
    let (first, rest) = piece.split_at(to_boundary.min(piece.len()));
    let blocks = std::iter::once(first).chain(rest.chunks(BLOCK_BYTES));
    let placed = blocks.scan(at, |place, block| {
        let here = *place;
        *place += block.len() as u64;
        Some((here, block))
    });
    placed.filter(|(_, block)| block.iter().any(|byte| *byte != 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeroes_are_left_out_by_whole_blocks() {
        let mut piece = vec![0; 4 * BLOCK_BYTES];
        piece[BLOCK_BYTES + 5] = 1;
        let places: Vec<u64> = data(&piece, 0).map(|(at, _)| at).collect();
        assert_eq!(places, [BLOCK_BYTES as u64]);
        // Blocks are the file's, not the piece's.
        let places: Vec<(u64, usize)> = data(&piece, 6).map(|(at, block)| (at, block.len())).collect();
        assert_eq!(places, [(BLOCK_BYTES as u64, BLOCK_BYTES)]);
        assert_eq!(data(&[], 9).count(), 0);
    }

    proptest! {
        #[test]
        fn nothing_else_is_left_out(
            at in 0..200_000_u64,
            pieces in prop::collection::vec((prop::bool::ANY, 1..100_000_usize), 0..5),
        ) {
            let pieces = pieces.into_iter().map(|(is_zero, bytes)| vec![u8::from(!is_zero); bytes]);
            let whole: Vec<u8> = pieces.flatten().collect();
            let mut written = vec![0; whole.len()];
            for (place, block) in data(&whole, at) {
                let begin = usize::try_from(place - at).unwrap();
                written[begin..begin + block.len()].copy_from_slice(block);
            }
            prop_assert_eq!(written, whole);
        }
    }
}
