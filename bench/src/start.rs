//! How soon a server answers that is started on a large store.
//!
//! **Start here:** [`measure`].

use std::path::Path;

use model::vm::Power;

use crate::server::Server;
use crate::stats::Series;

/// Each has its name beside it, and what creating it leaves: an audit record and an event.
const VMS: usize = 50_000;

/// Prints a row.
pub(crate) async fn measure(root: &Path, runs: usize) -> anyhow::Result<()> {
    let dir = root.join("server");
    let server = Server::alone(&dir).await?;
    server.furnish().await?;
    server.create_vms(0..VMS, Power::Hold).await?;
    server.end().await?;
    let mut took = Series::default();
    for _ in 0..runs {
        let server = Server::alone(&dir).await?;
        took.push(server.started.as_secs_f64());
        server.end().await?;
    }
    println!("\n| what | s | asked for |\n|---|---|---|");
    println!("| from the start of a server with {VMS} VMs to its first answer | {took} | 2 |");
    Ok(())
}
