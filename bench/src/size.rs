//! What a server and an agent take when nobody asks anything.
//!
//! **Start here:** [`measure`].

use std::path::Path;

use model::vm::Power;
use testkit::world::World;

use crate::process::Process;
use crate::server::Server;
use crate::sterna::{create, plain};

const VMS: usize = 10_000;
/// How many guests the agent has, and how large each is.
const GUESTS: usize = 10;
const GUEST_MIB: u64 = 128;
const IDLE_S: u64 = 20;

/// Prints rows: of a server that was just started on a store with many VMs.
pub(crate) async fn measure(root: &Path) -> anyhow::Result<()> {
    let dir = root.join("server");
    let server = Server::alone(&dir).await?;
    server.furnish().await?;
    server.create_vms(0..VMS, Power::Hold).await?;
    let made = server.process()?.resident_mib()?;
    server.end().await?;
    let server = Server::alone(&dir).await?;
    let idle = server.process()?.idle_percent(IDLE_S).await?;
    let resident = server.process()?.resident_mib()?;
    println!("\n| what | measured | asked for |\n|---|---|---|");
    println!("| resident memory of a server, {VMS} VMs, after its start, MiB | {resident:.0} | 60 |");
    println!("| the same, after it has created them, MiB | {made:.0} | – |");
    println!("| what it takes of a processor when idle, % | {idle:.2} | 1 |");
    server.end().await?;
    agent().await
}

/// Rows of an agent whose guests have come up and do nothing.
async fn agent() -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(GUEST_MIB).await?;
    for number in 0..GUESTS {
        create(&world, &format!("idle-{number}"), plain("h1", GUEST_MIB, "")).await?;
    }
    let agent = Process(u32::try_from(world.agent_pid("h1")?)?);
    let idle = agent.idle_percent(IDLE_S).await?;
    let resident = agent.resident_mib()?;
    println!("| resident memory of an agent, {GUESTS} idle guests, MiB | {resident:.0} | 25 |");
    println!("| what it takes of a processor, % | {idle:.2} | 1 |");
    world.down().await
}
