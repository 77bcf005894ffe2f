//! Owns: granting, keeping and ending leases.
//! Does not know: when to look for ended ones; the writer does.
//! Start here: [`Writer::end_lease`].

use std::time::Duration;

use rusqlite::params;
use store::backend::Draft;
use store::{Lease, LeaseId, Revision, StoreError};

use crate::Shared;
use crate::schema::signed;
use crate::writer::Writer;

/// Needs no write: after a start every lease has its full time again.
pub(crate) fn keep_alive(shared: &Shared, lease: LeaseId) -> Result<Lease, StoreError> {
    let now = (shared.clock)();
    shared.write().leases_mut().keep_alive(lease, now)
}

impl Writer {
    pub(crate) fn grant(&mut self, ttl: Duration) -> Result<Lease, StoreError> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        let id = self.write("grant lease", |tx| {
            tx.execute("INSERT INTO lease (ttl_ms) VALUES (?1)", [signed(ttl_ms)])?;
            Ok(tx.last_insert_rowid())
        })?;
        let lease = Lease {
            id: LeaseId(id.unsigned_abs()),
            ttl: Duration::from_millis(ttl_ms),
        };
        let now = (self.shared.clock)();
        self.shared.write().leases_mut().insert(lease, now);
        Ok(lease)
    }

    /// Deletes the lease's keys and the lease, in one commit. If that fails the lease stays ended, and is tried again.
    pub(crate) fn end_lease(&mut self, lease: LeaseId) -> Result<Revision, StoreError> {
        self.shared.write().leases_mut().begin_end(lease)?;
        let shared = self.shared.clone();
        let (revision, commits) = {
            let state = shared.read();
            let mut draft = Draft::new(&state);
            (draft.end_lease(&state, lease), draft.into_commits())
        };
        self.store("end lease", &commits, |tx| {
            tx.execute("DELETE FROM lease WHERE id = ?1", params![signed(lease.0)])?;
            Ok(())
        })?;
        self.shared.write().forget_lease(lease)?;
        Ok(revision)
    }

    pub(crate) fn end_due_leases(&mut self) {
        let now = (self.shared.clock)();
        let due = self.shared.read().leases().due(now);
        for lease in due {
            if let Err(error) = self.end_lease(lease) {
                tracing::warn!(%lease, %error, "a lease that ran out could not be ended yet");
            }
        }
    }
}
