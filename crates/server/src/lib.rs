//! The HTTP server: authentication, requests in, objects and streams out.
//!
//! **Owns:** the routes that every kind has ([`routes`]), reading ([`lists`], [`watch`], [`places`]), what a request means for each kind ([`kinds`]), the
//! connections of agents ([`agents`], [`calls`]) and what is said on them ([`hosts`]), people at consoles ([`console`]), what is done in guests
//! that run ([`apply`]),
//! the cloud's CAs ([`pki`]), images' content ([`images`]), the store as a whole ([`backup`], [`compaction`], [`restored`]),
//! what is seen of it all from outside ([`metrics`], [`requests`]).
//!
//! **Does not know:** which store it runs on, and what happens on hosts. It writes what people want and what agents
//! report, each through the controller's commit; it decides nothing about VMs.
//!
//! What needs no connection ([`service`], [`kinds`], [`hosts`], [`contact`]) works on [`shared::Cloud`] alone, and so does the
//! simulator.
//!
//! **Start here:** [`service`] for how a request becomes a transaction, then [`kinds`].

pub mod agents;
pub mod answer;
pub mod apply;
pub mod auth;
pub mod backup;
pub mod calls;
pub mod check;
pub mod compaction;
pub mod console;
pub mod contact;
pub mod docs;
pub mod history;
pub mod hosts;
pub mod images;
pub mod kinds;
pub mod limits;
pub mod lists;
pub mod metrics;
pub mod pki;
pub mod places;
pub mod progress;
pub mod removal;
pub mod requests;
pub mod restored;
pub mod routes;
pub mod run;
pub mod servers;
pub mod service;
pub mod shared;
pub mod speakers;
pub mod tls;
pub mod tokens;
pub mod unread;
pub mod versions;
pub mod watch;

pub use images::import::outlet;
pub use images::import::{Addresses, Authorities, Range as AddressRange};
pub use limits::Rates;
pub use run::{CERTIFICATE_LIFE, Config, run};
