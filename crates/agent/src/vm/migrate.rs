//! Effects of a live migration: settings, streams, `go`.
//!
//! **Owns:** the order in which QEMU takes credentials, capabilities and parameters.
//!
//! **Does not know:** when to send, to switch over or to cancel.
//!
//! **Start here:** [`Vm::listen`] for the target, [`Vm::migrate`] for the source.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::agent::GoRequest;
use driver::passes::LIMITS_MS;
use driver::types::{Failure, Outcome};
use model::document::{MigrateTo, Order, Target};
use model::{HostId, Incarnation, Reason};
use qemu::migration_settings::{Side, capabilities, downtime_limit_parameter, parameters};
use qemu::migration_sockets::{bound_listener, bound_stream};
use qemu::migration_tls::{self as tls, OBJECT_IDS, TlsParameters};
use qemu::qmp::migration::{MigrationChannel, MigrationStatus};
use qemu::qmp::{Qmp, QmpError};
use qemu::spawn::QemuProcess;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::exec::{Vm, qmp_failure};
use super::retryable;
use crate::pki;

/// How long a transfer may take to notice that its connections are shut.
const FAIL_PATIENCE: Duration = Duration::from_millis(100);
/// How long QEMU may take to come out of a cancelled transfer. What it says then is seen by the next look.
const CANCEL_PATIENCE: Duration = Duration::from_secs(1);
/// How long the connection of a transfer may take to be there.
const STREAM_PATIENCE: Duration = Duration::from_secs(1);
/// Between looks for it.
const STREAM_LOOK: Duration = Duration::from_millis(5);
/// Between looks at one.
const CANCEL_LOOK: Duration = Duration::from_millis(5);

/// How long the answer to a `go` may come after the record's word that the target runs, or has closed.
const LATE_ANSWER: Duration = Duration::from_secs(1);

/// Where a VM's QEMU finds the host's credentials, in its working directory, which nobody else can get to.
const CREDENTIALS_DIR: &str = "tls";
/// The modes of the directory and of the files in it.
const LENT_TO_ANOTHER: [u32; 2] = [0o711, 0o644];
const LENT_TO_US: [u32; 2] = [0o700, 0o600];

/// Credentials that are taken back when this is dropped: no QEMU can read the host's key but while it begins a transfer.
struct Lent(PathBuf);

impl Lent {
    fn copy(&self, from: &Path, [directory_mode, file_mode]: [u32; 2]) -> io::Result<()> {
        // What an agent left that ended meanwhile.
        let _ = fs::remove_dir_all(&self.0);
        fs::create_dir(&self.0)?;
        fs::set_permissions(&self.0, Permissions::from_mode(directory_mode))?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let copy = self.0.join(entry.file_name());
            fs::copy(entry.path(), &copy)?;
            fs::set_permissions(&copy, Permissions::from_mode(file_mode))?;
        }
        Ok(())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "QEMU can still read the host's credentials for migrations");
        }
    }
}

impl Vm {
    fn migrate_order(&self) -> Result<MigrateTo, Failure> {
        match self.desired()?.order {
            Order::MigrateTo(order) => Ok(order),
            _ => Err(overtaken()),
        }
    }

    fn target_order(&self) -> Result<Target, Failure> {
        match self.desired()?.order {
            Order::Target(order) => Ok(order),
            _ => Err(overtaken()),
        }
    }

    /// Puts the host's credentials where the VM's QEMU can read them, which it does when they are added.
    fn lend_credentials(&self) -> Result<Lent, Failure> {
        let lent = Lent(self.run_dir().join(CREDENTIALS_DIR));
        let modes = match self.user()? {
            Some(_) => LENT_TO_ANOTHER,
            None => LENT_TO_US,
        };
        let copied = lent.copy(&self.host.dir.migration_pki(), modes);
        copied.map_err(|error| retryable("storage-failed", &error))?;
        Ok(lent)
    }

    pub(super) async fn listen(&self) -> Result<Outcome, Failure> {
        let order = self.target_order()?;
        let live = self.live().await?;
        if let Some(port) = live
            .qmp
            .query_migrate()
            .await
            .map_err(qmp_failure)?
            .listening_port()
        {
            return Ok(self.listening(port));
        }
        let _lent = self.lend_credentials()?;
        let objects = tls::target_objects(CREDENTIALS_DIR, &format!("CN={}", order.host_name));
        prepare(&live.qmp, objects, Side::Target, &tls::target_parameters()).await?;
        let any_port = MigrationChannel::Tcp(SocketAddr::new(self.host.underlay, 0));
        live.qmp.migrate_incoming(&any_port).await.map_err(qmp_failure)?;
        let port = live
            .qmp
            .query_migrate()
            .await
            .map_err(qmp_failure)?
            .listening_port();
        let port = port.ok_or_else(|| Failure {
            reason: Reason::new(
                "not-listening",
                "QEMU does not say on which port it takes the stream",
            ),
            is_retryable: true,
        })?;
        let address = SocketAddr::new(self.host.underlay, port);
        if let Err(error) = bound_listener(&live.process, address, self.host.migration_buffer) {
            tracing::debug!(%error, "the stream is as the kernel likes it");
        }
        Ok(self.listening(port))
    }

    fn listening(&self, port: u16) -> Outcome {
        Outcome::Listening {
            stream: format!("tcp:{}", SocketAddr::new(self.host.underlay, port)),
        }
    }

    pub(super) async fn migrate(&self, to: Incarnation) -> Result<(), Failure> {
        let order = self.migrate_order()?;
        let channel = order
            .stream
            .as_deref()
            .and_then(|stream| stream.strip_prefix("tcp:")?.parse().ok());
        let address: SocketAddr = channel.filter(|_| order.to == to).ok_or_else(overtaken)?;
        let channel = MigrationChannel::Tcp(address);
        let live = self.live().await?;
        self.warm_up(&order);
        let _lent = self.lend_credentials()?;
        let objects = tls::source_objects(CREDENTIALS_DIR);
        prepare(
            &live.qmp,
            objects,
            Side::Source,
            &tls::source_parameters(&pki::host_dns_name(order.host)),
        )
        .await?;
        live.note_downtime_limit(LIMITS_MS[0]);
        live.qmp.migrate(&channel).await.map_err(qmp_failure)?;
        let process = Arc::clone(&live.process);
        tokio::spawn(bound_when_connected(process, address, self.host.migration_buffer));
        Ok(())
    }

    /// Ends the transfer. Its connections are shut first: QEMU's own cancel says good-bye over TLS on each of them, and
    /// hangs, with its guest, on one whose peer has stopped reading. A transfer that notices fails by itself; one that
    /// waits for us does not, and is cancelled.
    pub(super) async fn cancel(&self) -> Result<(), Failure> {
        let live = self.live().await?;
        let ended = async {
            if let Err(error) = live.qmp.yank_migration().await {
                tracing::debug!(%error, "there is no connection to shut");
            }
            if timeout(FAIL_PATIENCE, ended(&live.qmp)).await.is_err() {
                live.qmp.migrate_cancel().await?;
            }
            ended(&live.qmp).await
        };
        let ended = timeout(CANCEL_PATIENCE, ended).await;
        ended.unwrap_or(Ok(())).map_err(qmp_failure)
    }

    /// Opens the connection that `go` will take, while the memory is sent.
    fn warm_up(&self, order: &MigrateTo) {
        let (peers, host, peer) = (self.host.peers.clone(), order.host, order.peer.clone());
        tokio::spawn(async move {
            if let Some(peer) = peer
                && let Err(error) = peers.warm_up(&peer, host).await
            {
                tracing::warn!(%peer, error = crate::link::chain(&error), "`go` will need a new connection");
            }
        });
    }

    pub(super) async fn set_downtime_limit(&self, ms: u64) -> Result<(), Failure> {
        let live = self.live().await?;
        let limit = downtime_limit_parameter(ms);
        live.qmp
            .migrate_set_parameters(limit)
            .await
            .map_err(qmp_failure)?;
        live.note_downtime_limit(ms);
        Ok(())
    }

    pub(super) async fn send_go(
        &self,
        to: Incarnation,
        host: HostId,
        peer: &str,
    ) -> Result<Outcome, Failure> {
        let request = GoRequest {
            vm: self.id.vm,
            from: self.id.incarnation,
            to,
        };
        let stands = |order: &Option<Order>| matches!(order, Some(Order::MigrateTo(order)) if order.to == to);
        let asked = self.host.peers.go(peer, host, &request);
        let answered = while_it_stands(self.order.subscribe(), stands, asked).await;
        let answered = answered.ok_or_else(overtaken)?;
        let running_for = answered.map_err(|error| retryable("go-not-answered", &error))?;
        // The process may be gone by now: the figure is lost then, and nothing else.
        let stopped_for = self.live().await.ok().and_then(|live| live.stopped_for());
        let stopped_for = stopped_for.map(|time| time.saturating_sub(running_for));
        let downtime_us = stopped_for.and_then(|time| u64::try_from(time.as_micros()).ok());
        Ok(Outcome::TargetRuns { downtime_us })
    }
}

/// Waits for an answer for as long as the order stands that it is for, and a little longer, since it may be on its way. What is
/// ordered next waits meanwhile.
async fn while_it_stands<T>(
    mut orders: watch::Receiver<Option<Order>>,
    stands: impl Fn(&Option<Order>) -> bool,
    answer: impl Future<Output = T>,
) -> Option<T> {
    let is_over = async {
        let _ = orders.wait_for(|order| !stands(order)).await;
        sleep(LATE_ANSWER).await;
    };
    tokio::select! {
        biased;
        answer = answer => Some(answer),
        () = is_over => None,
    }
}

/// Bounds a stream as soon as it is connected. One that is not bounded costs downtime, and most on a link that is cut.
async fn bound_when_connected(process: Arc<QemuProcess>, to: SocketAddr, bytes: Option<usize>) {
    let connected = async {
        while !bound_stream(&process, to, bytes)? {
            sleep(STREAM_LOOK).await;
        }
        Ok::<_, io::Error>(())
    };
    match timeout(STREAM_PATIENCE, connected).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(%error, "the stream is as the kernel likes it");
        }
        Err(_) => tracing::debug!(%to, "the stream has no connection"),
    }
}

/// Credentials first, since the parameters name them. What an earlier attempt left is replaced.
async fn prepare(qmp: &Qmp, objects: Vec<Value>, side: Side, tls: &TlsParameters) -> Result<(), Failure> {
    for id in OBJECT_IDS {
        if let Err(error) = qmp.object_del(id).await {
            tracing::trace!(%error, "no credentials of an earlier attempt");
        }
    }
    for object in objects {
        qmp.object_add(object).await.map_err(qmp_failure)?;
    }
    qmp.migrate_set_capabilities(capabilities(side))
        .await
        .map_err(qmp_failure)?;
    qmp.migrate_set_parameters(parameters(Some(tls), LIMITS_MS[0]))
        .await
        .map_err(qmp_failure)
}

/// Waits until nothing is under way.
async fn ended(qmp: &Qmp) -> Result<(), QmpError> {
    loop {
        let status = qmp.query_migrate().await?.status;
        if status.is_final() || status == MigrationStatus::None {
            return Ok(());
        }
        sleep(CANCEL_LOOK).await;
    }
}

fn overtaken() -> Failure {
    Failure {
        reason: Reason::new("order-overtaken", "a newer document asks for something else"),
        is_retryable: true,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use model::document::Stop;
    use tokio::time::Instant;

    use super::*;

    fn stands(order: &Option<Order>) -> bool {
        order.is_none()
    }

    async fn after(seconds: u64) -> u64 {
        sleep(Duration::from_secs(seconds)).await;
        seconds
    }

    /// With the link cut nobody answers, the record tells the target, and the source has other things to do.
    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_an_answer_that_matters_no_more() {
        let (orders, seen) = watch::channel(None);
        assert_eq!(while_it_stands(seen.clone(), stands, after(60)).await, Some(60));
        let begun = Instant::now();
        let waiting = tokio::spawn(while_it_stands(seen.clone(), stands, pending::<()>()));
        sleep(Duration::from_secs(5)).await;
        orders.send_replace(Some(Order::Stop(Stop::Release)));
        assert_eq!(waiting.await.unwrap(), None);
        assert_eq!(begun.elapsed(), Duration::from_secs(5) + LATE_ANSWER);
        // It was on its way.
        assert_eq!(while_it_stands(seen.clone(), stands, after(0)).await, Some(0));
        assert_eq!(while_it_stands(seen, stands, after(60)).await, None);
    }
}
