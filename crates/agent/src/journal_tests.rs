//! Tests of the journal's file: every cut, every flipped byte, groups, rewriting.

use super::*;

use driver::types::{Mark, Marks};
use model::{Incarnation, VmId};

fn vm(n: u128) -> VmId {
    VmId(uuid::Uuid::from_u128(n))
}

fn launched(n: u128, incarnation: u64) -> Entry {
    Entry::Mark {
        vm: vm(n),
        incarnation: Incarnation(incarnation),
        mark: Mark::Launched,
    }
}

fn groups() -> Vec<Vec<Entry>> {
    vec![
        vec![Entry::Document { revision: 7 }],
        vec![launched(1, 1), launched(2, 4)],
        vec![Entry::Mark {
            vm: vm(1),
            incarnation: Incarnation(1),
            mark: Mark::Sent { to: Incarnation(2) },
        }],
        (10..30).map(|n| launched(n, 1)).collect(),
        vec![Entry::Forget {
            vm: vm(2),
            incarnation: Incarnation(4),
        }],
    ]
}

fn lines() -> Vec<Vec<u8>> {
    groups()
        .iter()
        .enumerate()
        .map(|(at, group)| frame(at as u64, group).unwrap())
        .collect()
}

fn states() -> Vec<State> {
    let mut state = State::default();
    let mut all = vec![state.clone()];
    for group in groups() {
        group.into_iter().for_each(|entry| state.apply(entry));
        all.push(state.clone());
    }
    all
}

#[test]
fn a_file_cut_at_any_byte_keeps_every_whole_line() {
    let bytes = lines().concat();
    let ends: Vec<usize> = lines()
        .iter()
        .scan(0, |end, line| {
            *end += line.len();
            Some(*end)
        })
        .collect();
    for cut in 0..=bytes.len() {
        let whole = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(read(&bytes[..cut]).as_ref(), Ok(&states()[whole]), "cut at {cut}");
        let mut zeros = bytes[..cut].to_vec();
        zeros.resize(bytes.len() + 4096, 0);
        assert_eq!(read(&zeros).as_ref(), Ok(&states()[whole]), "zeros from {cut}");
    }
}

#[test]
fn a_flipped_byte_anywhere_is_damage() {
    let mut bytes = lines().concat();
    let used = bytes.len();
    bytes.resize(used + 4096, 0);
    for at in 0..used {
        for flip in [0x01, 0x10, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            assert!(read(&damaged).is_err(), "byte {at} flipped by {flip:#x}");
        }
    }
}

#[test]
fn a_lost_sector_of_the_last_line_is_a_torn_tail_and_of_an_earlier_one_damage() {
    let first = frame(0, &groups()[0]).unwrap();
    let long: Vec<Entry> = (0..40).map(|n| launched(n, 1)).collect();
    let mut bytes = [first.clone(), frame(1, &long).unwrap()].concat();
    bytes[1024..1536].fill(0);
    assert_eq!(read(&bytes), Ok(states()[1].clone()));
    bytes.extend(frame(2, &groups()[2]).unwrap());
    assert_eq!(read(&bytes), Err(Damaged { offset: first.len() }));
}

#[test]
fn the_forgotten_count_as_closed() {
    let state = states().pop().unwrap();
    assert!(state.marks_of(vm(2), Incarnation(4)).closed);
    assert!(state.marks_of(vm(2), Incarnation(3)).closed);
    assert_eq!(state.marks_of(vm(2), Incarnation(5)), Marks::default());
    assert!(state.marks_of(vm(1), Incarnation(1)).launched);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_appended_is_there_after_rewrites() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let (journal, state) = Journal::open(&path).unwrap();
    assert_eq!(state, State::default());
    let appends = (0..6000).map(|n| {
        let journal = journal.clone();
        async move { journal.append(launched(n % 200, 1 + n as u64 / 200)).await }
    });
    for result in futures_util::future::join_all(appends).await {
        result.unwrap();
    }
    drop(journal);
    let (_journal, state) = Journal::open(&path).unwrap();
    assert_eq!(state.marks.len(), 6000);
}

#[tokio::test]
async fn a_damaged_file_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut bytes = lines().concat();
    bytes[60] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(
        Journal::open(&path),
        Err(JournalError::Unreadable { .. })
    ));
}
