//! What a server takes when nobody asks anything.
//!
//! **Start here:** [`measure`].

use std::path::Path;

use model::vm::Power;

use crate::server::Server;

const VMS: usize = 10_000;
const IDLE_S: u64 = 20;

/// Prints rows: of a server that was just started on a store with many VMs.
pub(crate) async fn measure(root: &Path) -> anyhow::Result<()> {
    let dir = root.join("server");
    let server = Server::alone(&dir).await?;
    server.furnish().await?;
    server.create_vms(0..VMS, Power::Hold).await?;
    let made = server.resident_mib()?;
    server.end().await?;
    let server = Server::alone(&dir).await?;
    let idle = server.idle_percent(IDLE_S).await?;
    let resident = server.resident_mib()?;
    println!("\n| what | measured | asked for |\n|---|---|---|");
    println!("| resident memory of a server, {VMS} VMs, after its start, MiB | {resident:.0} | 60 |");
    println!("| the same, after it has created them, MiB | {made:.0} | – |");
    println!("| what it takes of a processor when idle, % | {idle:.2} | 1 |");
    server.end().await
}
