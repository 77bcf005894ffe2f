//! End-to-end tests: whole clouds with real guests, in `tests/`, and the demonstration, in `src/bin/demo.rs`.
//!
//! **Owns:** the stories. Every one of them ends a world with the proof that nothing stays behind.
//!
//! **Does not know:** how a world is started or looked into: that is the `testkit`'s.
//!
//! **Start here:** `tests/lifecycle.rs`, then `tests/migrate.rs` and `tests/faults/table.rs`.

pub mod python;
