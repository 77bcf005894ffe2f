//! The next step of a host: keep what it is made of, then move its VMs away if it shall be empty.

use model::{HostId, Timestamp};
use uuid::Uuid;

use crate::plan::Decision;
use crate::view::View;
use crate::{drain, hardware};

/// What is to be done about a host now. `next_id` makes the ids of what is created.
pub fn plan(view: &View, id: HostId, now: Timestamp, next_id: &mut dyn FnMut() -> Uuid) -> Decision {
    let noted = view.hosts.get(&id).and_then(|host| hardware::plan(id, host));
    noted.map_or_else(|| drain::plan(view, id, now, next_id), Into::into)
}
