//! Stories with real guests: each a cloud of its own from its start to its end. One binary, since what they are linked with
//! is compiled and linked once for each.

mod apply;
mod builds;
mod captures;
mod clones;
mod console;
mod container;
mod copies;
mod crowd;
mod debian;
mod demo;
mod disks;
mod drain;
mod flatten;
mod imports;
mod installation;
mod instant;
mod keep;
mod lifecycle;
mod migrate;
mod moves_at_rest;
mod ordinary_user;
mod python;
mod restore;
mod seen;
mod storm;
mod three_machines;
mod twice;
mod uefi;
mod unneeded;
