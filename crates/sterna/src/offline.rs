//! What is done to the files of a store, without a server.
//!
//! **Owns:** where a store is in a data directory, backups as files, restoring, checking.
//!
//! **Does not know:** tables and pages: the store's crate does; what a stored value means: `planner::integrity` does.
//!
//! **Start here:** [`run`].

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use controller::Env;
use model::audit::{Actor, AuditRecord, Change};
use model::restored::{Restored, incarnation_floor, revision_floor};
use model::vm::VmIntent;
use model::{Timestamp, key, record};
use store::{RangeRequest, Store, Txn};
use store_sqlite::{DATABASE, Fault, Options, Restore, SqliteStore, check, stored};
use tempfile::NamedTempFile;

use crate::cli::{CheckArgs, RestoreArgs, StoreCommand};
use crate::daemon::{STORE_DIR, System, UP_LOCK, UP_SERVER_DIR};
use crate::units;

/// How many VMs are changed at once.
const PART: usize = 100;

/// Does one of the commands that need no server.
pub(crate) fn run(command: StoreCommand) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            StoreCommand::Backup(args) => {
                let data = args.data.context("a backup of files needs --data")?;
                backup(&args.file, args.force, &store_dir(&data)).await
            }
            StoreCommand::Restore(args) => restore(&args).await,
            StoreCommand::Check(args) => check_all(&args),
            StoreCommand::Status | StoreCommand::Resume(_) => bail!("this command asks a server"),
        }
    })
}

/// Where the store of a data directory is: a server's, or that of `sterna up`, which has a server's within it.
fn store_dir(data: &Path) -> PathBuf {
    if data.join(UP_LOCK).exists() {
        data.join(UP_SERVER_DIR).join(STORE_DIR)
    } else {
        data.join(STORE_DIR)
    }
}

/// A file that takes its place when it is whole.
pub(crate) struct NewFile {
    path: PathBuf,
    force: bool,
    file: NamedTempFile,
}

impl NewFile {
    /// Refuses a place that is taken, before anything is done for it.
    pub(crate) fn beside(path: &Path, force: bool) -> anyhow::Result<Self> {
        if !force && path.exists() {
            bail!(
                "{} exists: take another name, or replace it with --force",
                path.display()
            );
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let file = NamedTempFile::new_in(dir.unwrap_or(Path::new(".")));
        Ok(Self {
            path: path.to_owned(),
            force,
            file: file.with_context(|| format!("making a file beside {}", path.display()))?,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file in its place; how long it is.
    pub(crate) fn keep(self) -> anyhow::Result<u64> {
        let keeping = || format!("keeping {}", self.path.display());
        let file = self.file.as_file();
        file.set_permissions(PermissionsExt::from_mode(0o600))
            .with_context(keeping)?;
        file.sync_all().with_context(keeping)?;
        let bytes = file.metadata().with_context(keeping)?.len();
        let kept = if self.force {
            self.file.persist(&self.path)
        } else {
            self.file.persist_noclobber(&self.path)
        };
        let path = &self.path;
        kept.map_err(|error| error.error)
            .with_context(|| format!("keeping {}", path.display()))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let synced = File::open(dir.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all());
        synced.with_context(|| format!("keeping {}", path.display()))?;
        Ok(bytes)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Says that a backup was taken.
pub(crate) fn backed_up(path: &Path, revision: u64, bytes: u64) {
    eprintln!("{}: revision {revision}, {}", path.display(), units::size(bytes));
}

async fn backup(path: &Path, force: bool, store: &Path) -> anyhow::Result<ExitCode> {
    stored(&store.join(DATABASE))?;
    let mut file = NewFile::beside(path, force)?;
    let store = SqliteStore::open(Options::new(store))
        .context("if its server runs, take the backup from it: leave out --data")?;
    // The store makes the copy itself, and only where nothing is.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let work = tempfile::tempdir_in(dir.unwrap_or(Path::new(".")))?;
    let copy = work.path().join(DATABASE);
    let taken = store.backup(&copy).await?;
    std::io::copy(&mut File::open(&copy)?, &mut file)?;
    let bytes = file.keep()?;
    backed_up(path, taken.revision, bytes);
    Ok(ExitCode::SUCCESS)
}

async fn restore(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let dir = store_dir(&args.data);
    let now = System.now();
    let restore = Restore::begin(&args.file, &dir, |in_backup| revision_floor(in_backup, now))?;
    let from = restore.from;
    let store = restore.store()?;
    let unread = hold(&store, from, now).await?;
    drop(store);
    restore.finish()?;
    eprintln!("{}: restored from revision {from}", dir.display());
    for key in unread {
        eprintln!("warning: {key} cannot be read, and nothing will be decided about its VM");
    }
    eprintln!(
        "The store is held: start its server, see what hosts run with `sterna store status`, and let it go on with \
         `sterna store resume`."
    );
    Ok(ExitCode::SUCCESS)
}

/// Marks the store as restored, and lets every VM's incarnations go on far behind what may have been granted since. The
/// intents that cannot be read.
async fn hold(store: &SqliteStore, from_revision: u64, now: Timestamp) -> anyhow::Result<Vec<String>> {
    let vms = RangeRequest::prefix(key::kind_prefix(model::Kind::Vm));
    let mut unread = Vec::new();
    let mut leaps = Vec::new();
    for kv in store.range(vms).await?.items {
        if !matches!(key::parse(&kv.key), Some((_, _, key::Part::Intent))) {
            continue;
        }
        match record::decode::<VmIntent>(&kv.value) {
            Ok(mut intent) => {
                intent.last_incarnation.0 = incarnation_floor(intent.last_incarnation.0, now);
                leaps.push((kv.key.to_string(), record::encode(&intent)));
            }
            Err(_) => unread.push(kv.key.to_string()),
        }
    }
    for part in leaps.chunks(PART) {
        let txn = part
            .iter()
            .cloned()
            .fold(Txn::new(), |txn, (key, intent)| txn.put(key, intent));
        store.txn(txn).await?;
    }
    store.txn(mark(from_revision, now)?).await?;
    Ok(unread)
}

fn mark(from_revision: u64, now: Timestamp) -> anyhow::Result<Txn> {
    let restored = Restored {
        at: now,
        from_revision,
        ends_unknown: false,
        put_back: None,
    };
    let audit = AuditRecord {
        actor: Actor {
            name: "operator".to_owned(),
            from: None,
            request: None,
        },
        at: restored.at,
        action: format!("restore the store from a backup of revision {from_revision}"),
        changes: vec![Change {
            key: key::RESTORED.to_owned(),
            before: None,
            after: Some(serde_json::to_value(&restored)?),
        }],
    };
    Ok(Txn::new()
        .put(key::RESTORED, record::encode(&restored))
        .put(key::audit(System.next_id()), record::encode(&audit)))
}

/// Names what is broken.
fn check_all(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let database = match (&args.file, &args.data) {
        (Some(file), _) => file.clone(),
        (None, Some(data)) => store_dir(data).join(DATABASE),
        (None, None) => bail!("give a FILE, or --data DIR"),
    };
    let mut checked = check(&database)?;
    let read = checked.keys.iter().map(|kv| (kv.key.as_ref(), kv.value.as_ref()));
    let of_values = planner::integrity::faults(read);
    checked
        .faults
        .extend(of_values.into_iter().map(|(key, why)| Fault::new(key, why)));
    let mut out = std::io::stdout().lock();
    for fault in &checked.faults {
        writeln!(out, "{}: {}", fault.object, fault.detail)?;
    }
    let (keys, revision) = (checked.keys.len(), checked.revision);
    if checked.faults.is_empty() {
        writeln!(
            out,
            "{}: {keys} keys at revision {revision}, all is well",
            database.display()
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let count = checked.faults.len();
    bail!(
        "{}: {count} faults; {keys} keys at revision {revision} can be read. `sterna store restore` makes a store from a backup",
        database.display()
    )
}
