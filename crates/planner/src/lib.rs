//! What shall be done: pure functions (view, now) → plan.
//!
//! **Owns:** the view of the store that decisions are made on ([`view`]), the next step of a VM ([`vm`]) and of a
//! migration ([`migration`]), of a host ([`host`]), the
//! copies of VMs' disks ([`copies`]), VMs that templates are made of ([`build`]), templates that are kept warm ([`keep_warm`]), how far long actions are ([`operation`]), the desired document of a
//! host ([`document`]) and whose may have changed ([`concern`]), which reports count ([`reports`]), when a restored store goes on ([`restored`]), whether what is
//! stored agrees with itself ([`integrity`]), which profiles there are ([`profiles`]) and which versions of templates
//! ([`versions`]), and what every write carries beside itself ([`admission`]).
//!
//! **Does not know:** the store's engine, the network, the clock. `now` is an argument; a plan names what it relies on,
//! and whoever commits it compares that.
//!
//! **Start here:** [`plan`], then [`vm`].

pub mod admission;
mod batch;
pub mod build;
pub mod concern;
pub mod copies;
pub mod document;
pub mod drain;
pub mod explain;
pub mod flatten;
pub mod hardware;
pub mod host;
pub mod integrity;
pub mod keep_warm;
pub mod migration;
pub mod operation;
pub mod placement;
pub mod plan;
pub mod profiles;
pub mod reports;
pub mod restored;
pub mod versions;
pub mod view;
pub mod vm;
pub mod warm;

pub use plan::{Decision, Plan};
pub use view::View;
