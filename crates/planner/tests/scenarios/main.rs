//! Scenarios: a store in memory, every plan committed as the controller commits it, agents that report what a scenario
//! says, and the invariants checked after every single write.

mod invariants;
mod migration;
mod random;
mod vm;
mod world;
