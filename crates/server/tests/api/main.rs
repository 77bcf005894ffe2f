//! The server over real TLS on the loopback interface: requests as clients and agents make them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agents;
mod any_bytes;
mod apply;
mod bad_input;
mod builds;
mod certificates;
mod clones;
mod console;
mod contents;
mod documents;
mod flatten;
mod full;
mod guests;
mod hosts;
mod images;
mod imports;
mod lists;
mod machines;
mod media;
mod metrics;
mod objects;
mod profiles;
mod programs;
mod removal;
mod speakers;
mod store;
mod tokens;
mod versions;
mod warm;
mod watch;
mod world;
