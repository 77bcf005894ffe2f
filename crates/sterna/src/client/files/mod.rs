//! Objects in files: what files describe is made so, and what there is is written as files.
//!
//! **Owns:** reading documents with their places ([`document`]), applying them ([`apply`]), writing them ([`export`]).
//!
//! **Does not know:** whether a document can be written: the server is asked about all before the first is.
//!
//! **Start here:** [`apply`].

pub(super) mod apply;
mod diff;
mod document;
pub(super) mod export;

/// Does the same for the type of each kind.
macro_rules! of_kind {
    ($kind:expr, $call:ident($($argument:expr),*) $($after:tt)*) => {
        match $kind {
            model::Kind::Vm => $call::<api::kinds::Vm>($($argument),*) $($after)*,
            model::Kind::Host => $call::<api::kinds::Host>($($argument),*) $($after)*,
            model::Kind::Image => $call::<api::kinds::Image>($($argument),*) $($after)*,
            model::Kind::Template => $call::<api::kinds::Template>($($argument),*) $($after)*,
            model::Kind::Profile => $call::<api::kinds::Profile>($($argument),*) $($after)*,
            model::Kind::Network => $call::<api::kinds::Network>($($argument),*) $($after)*,
            model::Kind::Datastore => $call::<api::kinds::Datastore>($($argument),*) $($after)*,
            model::Kind::Migration => $call::<api::kinds::Migration>($($argument),*) $($after)*,
            model::Kind::Operation => $call::<api::kinds::Operation>($($argument),*) $($after)*,
            model::Kind::Event => $call::<api::kinds::Event>($($argument),*) $($after)*,
        }
    };
}
pub(super) use of_kind;
