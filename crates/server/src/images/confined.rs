//! Programs that read what came from outside: unpackers, `qemu-img` and `nfs-cat`.
//!
//! **Owns:** their command lines and their bounds.
//!
//! **Does not know:** what the content is for.
//!
//! **Start here:** [`unpack`], [`convert`].
//!
//! A parser is where a file from outside turns into code. So it is a process of its own: without rights, as nobody where the
//! server is root, bounded in memory, processor time, output and files, and given open descriptors instead of paths.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use api::Problem;
use formats::compression::Compression;
use formats::disk::Format;
use tokio::process::{Child, Command};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;

use super::take::{A_WHOLE_ONE, disk_problem, unusable};

/// The program's standard input and output, opened once more.
const FROM: &str = "/proc/self/fd/0";
const TO: &str = "/proc/self/fd/1";
const NFS_CAT: &str = "nfs-cat";
const NOBODY: &str = "65534";
/// Enough for the tables of an image of 8 TiB, and for what xz and zstd remember of files that others can unpack.
const MEMORY_BYTES: u64 = 1 << 30;
const PROCESSOR_SECONDS: u32 = 3600;
const DEADLINE: Duration = Duration::from_secs(2 * 3600);
/// More at once would only take the disk from each other.
static TURNS: Semaphore = Semaphore::const_new(2);

/// What makes a child nobody, where this process may do that.
const AS_NOBODY: [&str; 7] = [
    "--reuid",
    NOBODY,
    "--regid",
    NOBODY,
    "--clear-groups",
    "--inh-caps",
    "-all",
];
static CAN_BE_NOBODY: OnceCell<bool> = OnceCell::const_new();

/// Found by trying: root may not in a namespace of few users, and need not be root elsewhere.
async fn can_be_nobody() -> bool {
    let mut command = Command::new("setpriv");
    command.args(AS_NOBODY).arg("true");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

/// A program's command line, behind the two that take its rights away.
async fn confined(program: &str, written_bytes_max: u64) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--no-new-privs");
    if *CAN_BE_NOBODY.get_or_init(can_be_nobody).await {
        command.args(AS_NOBODY);
    }
    let limits = [
        format!("--as={MEMORY_BYTES}"),
        format!("--cpu={PROCESSOR_SECONDS}"),
        format!("--fsize={written_bytes_max}"),
        "--core=0".to_owned(),
        "--nofile=64".to_owned(),
    ];
    command.arg("prlimit").args(limits).args(["--", program]);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    // Else the C library sets aside 64 MiB of what there is for each thread, and one in forty conversions got no more threads.
    command.env("MALLOC_ARENA_MAX", "1");
    command.current_dir("/").kill_on_drop(true).stderr(Stdio::piped());
    command
}

/// Starts what unpacks its standard input to its standard output.
pub(super) async fn unpack(compression: Compression) -> Result<Child, Problem> {
    // It writes to a pipe only, which whoever reads it bounds.
    let mut command = confined(compression.name(), 0).await;
    command.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped());
    command
        .spawn()
        .map_err(|error| not_started(compression.name(), &error))
}

/// Starts what reads a file of an NFS server that is reached by this port of loopback, and writes it to its standard output.
pub(super) async fn nfs_cat(port: u16, path: &str) -> Result<Child, Problem> {
    let mut command = confined(NFS_CAT, 0).await;
    command.arg(format!("nfs://127.0.0.1/{path}?version=4&nfsport={port}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
        .spawn()
        .map_err(|error| without_nfs_cat(&error.to_string()))
}

/// It is not there.
pub(super) fn without_nfs_cat(why: &str) -> Problem {
    let detail = format!(
        "the server cannot run {NFS_CAT}, which reads files of NFS servers ({why}): install the package libnfs-utils on the \
         server, and try again"
    );
    Problem::new(500, "image-tool-missing", detail)
}

/// Waits for an unpacker whose output has ended.
pub(super) async fn unpacked(child: Child, compression: Compression) -> Result<(), Problem> {
    let output = timeout(DEADLINE, child.wait_with_output()).await;
    succeeded(compression.name(), output)
}

/// Looks whether all that an image's tables lead to is there. A converter reads zeroes for what is not.
pub(super) async fn check(image: File, format: Format) -> Result<(), Problem> {
    let mut command = confined("qemu-img", 0).await;
    command.args(["check", "-q", "-f", word(format), FROM]);
    command.stdin(image).stdout(Stdio::null());
    run(command).await
}

/// Writes an image as qcow2 to an empty file.
pub(super) async fn convert(
    from: File,
    format: Format,
    to: File,
    written_bytes_max: u64,
) -> Result<(), Problem> {
    let mut command = confined("qemu-img", written_bytes_max).await;
    command.args(["convert", "-f", word(format), "-O", "qcow2", FROM, TO]);
    command.stdin(from).stdout(to);
    run(command).await
}

/// Lets it be opened once more by its descriptor, by whoever has that: the directory is closed to all but the server.
pub(super) fn open_to_holders(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o666))
}

async fn run(mut command: Command) -> Result<(), Problem> {
    let _turn = TURNS.acquire().await;
    let child = command.spawn().map_err(|error| not_started("qemu-img", &error))?;
    let output = timeout(DEADLINE, child.wait_with_output()).await;
    succeeded("qemu-img", output)
}

fn succeeded(
    program: &str,
    output: Result<io::Result<Output>, tokio::time::error::Elapsed>,
) -> Result<(), Problem> {
    let refuse = |why: String| Err(unusable(&why, A_WHOLE_ONE));
    match output {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        // The shells' number for a program that cannot be run: setpriv and prlimit take it over.
        Ok(Ok(output)) if output.status.code() == Some(127) => {
            let why = said(program, &output);
            Err(not_started(program, &io::Error::other(why)))
        }
        Ok(Ok(output)) if is_full(&output) => {
            Err(disk_problem("converting", &io::ErrorKind::StorageFull.into()))
        }
        Ok(Ok(output)) => refuse(format!("{program} says: {}", said(program, &output))),
        Ok(Err(error)) => Err(not_started(program, &error)),
        Err(_) => refuse(format!("{program} took longer than {} s", DEADLINE.as_secs())),
    }
}

/// Whether the server's disk was in the way, and not what was read.
fn is_full(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("No space left on device")
}

/// The last line that it printed, without its own name before it: the first ones may be warnings.
fn said(program: &str, output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    let unnamed = |line: &str| {
        let rest = line
            .strip_prefix(program)
            .and_then(|rest| rest.strip_prefix(": "));
        rest.unwrap_or(line).chars().take(200).collect()
    };
    last.map_or_else(|| output.status.to_string(), unnamed)
}

fn not_started(program: &str, error: &io::Error) -> Problem {
    let detail = format!(
        "the server cannot run {program}, which reads images from outside ({error}): install it on the server, and \
         try again"
    );
    Problem::new(500, "image-tool-missing", detail)
}

/// As QEMU calls it.
const fn word(format: Format) -> &'static str {
    match format {
        Format::Raw | Format::Iso => "raw",
        Format::Qcow2 => "qcow2",
        Format::Vmdk => "vmdk",
        Format::Vhd => "vpc",
        Format::Vhdx => "vhdx",
        Format::Vdi => "vdi",
    }
}
