//! How a range is answered: from memory, from the file, or from both.
//!
//! Owns: the choice. What is asked of the current revision is in memory, but for values that are left in the file. Of a
//! revision that was a short while ago, memory has what has not changed since. Of an older one it is of no use.
//!
//! Does not know: how the file is read; `reader.rs` does.
//!
//! Start here: [`SqliteStore::read`].

use store::backend::State;
use store::{KeyValue, RangeRequest, RangeResponse, Revision, StoreError};

use crate::SqliteStore;
use crate::reader::Unchanged;

/// What of an answer is in memory.
enum Found {
    /// All of it.
    All(RangeResponse),
    /// All but the values of these items.
    Lacking(RangeResponse, Vec<usize>),
    /// What has not changed since the first revision, up to the second.
    Near(Revision, Revision, Unchanged),
    /// Nothing of use: it is of the first revision, and now is the second.
    Old(Revision, Revision),
}

impl SqliteStore {
    pub(crate) async fn read(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        request.check()?;
        self.check_open("range")?;
        loop {
            match self.look(&request)? {
                Found::All(answer) => return Ok(answer),
                // What was replaced and purged meanwhile is read again, as it is now.
                Found::Lacking(answer, to_fill) => {
                    if let Some(answer) = self.readers.fill(answer, to_fill).await? {
                        return Ok(answer);
                    }
                }
                Found::Near(at, current, unchanged) => {
                    return self.readers.range_near(request, at, current, unchanged).await;
                }
                Found::Old(at, current) => return self.readers.range(request, at, current).await,
            }
        }
    }

    /// What of an answer is in memory.
    fn look(&self, request: &RangeRequest) -> Result<Found, StoreError> {
        let state = self.shared.read();
        let (at, current) = (
            request.resolve(state.compacted(), state.revision())?,
            state.revision(),
        );
        if at == current {
            let answer = state.range(request);
            let to_fill = lacking(&state, request, &answer.items);
            return Ok(match to_fill.is_empty() {
                true => Found::All(answer),
                false => Found::Lacking(answer, to_fill),
            });
        }
        if current - at > self.shared.near_revisions {
            return Ok(Found::Old(at, current));
        }
        let found = state.unchanged_since(at, request);
        let to_fill = lacking(&state, request, &found);
        Ok(Found::Near(at, current, Unchanged { found, to_fill }))
    }
}

/// Which of the items that a request asks for lack the values that it asks for.
fn lacking(state: &State, request: &RangeRequest, items: &[KeyValue]) -> Vec<usize> {
    if request.keys_only {
        return Vec::new();
    }
    let items = items.iter().enumerate();
    let lacking = items.filter(|(_, kv)| state.is_elsewhere(kv));
    lacking.map(|(place, _)| place).collect()
}
