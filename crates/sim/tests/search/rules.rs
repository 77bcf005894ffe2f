//! What the search runs: the protocol as built, or with something taken away.

use driver::table::{self, Situation, Table};

use super::store::Keys;

/// A mark of the journal that a mutation loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    Launched,
    Ran,
    Closed,
    Sent,
    NoSwitch,
    Saving,
}

/// What is taken away; nothing by default.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rules {
    pub(crate) table: Table,
    /// Changes what the planner is shown.
    pub(crate) shown: Option<fn(&mut Keys)>,
    /// A mark that is said to be durable and is not.
    pub(crate) lost: Option<Lost>,
    /// Targets are started without `-S`.
    pub(crate) targets_start_running: bool,
    /// Plans are committed without their compares.
    pub(crate) commits_blindly: bool,
    /// Documents count by the order in which they come.
    pub(crate) takes_older_documents: bool,
    /// A restart of the agent leaves its document fresh.
    pub(crate) stays_fresh: bool,
}

impl Rules {
    /// The table as built, over another reading of the situation.
    pub(crate) fn reading(read: fn(Situation) -> Situation) -> Self {
        let row: &'static _ = Box::leak(Box::new(move |s: &Situation| table::row(&read(*s))));
        Self {
            table: Table::new(row),
            ..Self::default()
        }
    }

    /// The planner is shown something else.
    pub(crate) fn showing(shown: fn(&mut Keys)) -> Self {
        Self {
            shown: Some(shown),
            ..Self::default()
        }
    }
}

/// Changes a stored value where it is.
pub(crate) fn change<T>(keys: &mut Keys, key: &str, change: impl FnOnce(&mut T))
where
    T: model::record::Stored,
{
    if let Some(bytes) = keys.get_mut(key) {
        let mut value: T = model::record::decode(bytes).unwrap();
        change(&mut value);
        *bytes = model::record::encode(&value);
    }
}
