//! What is seen from outside of a cloud that works: one id from a request to QEMU, and no secret anywhere but where it
//! belongs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use api::apply::{ApplyBody, ApplyFile, ApplyUser, Secret};
use api::client::{Client, ObjectOf};
use api::kinds::{GuestSpec, Host, JoinToken, JoinTokenBody, Operation};
use api::token::TokenBody;
use model::host::QemuUserName;
use model::migration::MigrationPhase;
use model::operation::OperationPhase;
use model::token::Role;
use model::user_data::UserData;
use model::vm::SeedFormat;
use serde_json::Value;
use testkit::vms::{self, VmObject};
use testkit::wait::{self, Verdict};
use testkit::world::World;
use tokio::process::Command;

/// Server and agents log all that they have to say.
const TALKATIVE: &[(&str, &str)] = &[("STERNA_LOG", "debug"), ("STERNA_LOG_FORMAT", "json")];
const NAME: &str = "web";
/// What is planted in user data, and the key that is planted beside it.
const PASSWORD: &str = "planted-password-5ae1c9";
const SECOND: &str = "planted-in-a-second-part-77b0d2";
const VENDOR: &str = "planted-by-the-vendor-13f4aa";
/// What is planted in what is done in the guest when it runs. Only the guest may keep it.
const SCRIPT: &str = "planted-in-a-script-8c02d7";
const FILE: &str = "planted-in-a-file-40be6a";
const APPLIED_PASSWORD: &str = "planted-as-a-password-d1907e";
/// What the script prints: those who may change things see it.
const PRINTED: &str = "planted-in-the-output-e65f13";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPlantedKeyPlantedKeyPlantedKeyPlantedKeyx planted";
const KEY_MARK: &str = "IPlantedKeyPlantedKey";

#[tokio::test]
async fn one_id_leads_from_a_request_to_qemu_and_secrets_stay_where_they_belong() -> anyhow::Result<()> {
    let world = World::up_with(2, TALKATIVE).await?;
    world.make_template(192).await?;
    let secrets = plant(&world).await?;
    let vm = world.until_ready(NAME).await?;
    configured(&world, &vm).await?;
    applied(&world).await?;
    let source = vm.status.host.clone().context("a VM that runs has a host")?;
    let target = if source == "h1" { "h2" } else { "h1" };
    let moved = world.migrate(NAME, target).await?;
    let moved = world.until_migration_ended(&moved.name).await?;
    ensure!(moved.status.phase == MigrationPhase::Done, "{moved:?}");
    let mut all = seen(&world).await?;
    all.insert("a reader's list".to_owned(), read(&world, &secrets).await?);
    // Guests' processes are there to be looked at; what is refused is too.
    all.insert("refusals".to_owned(), refusals(&world, &secrets).await?);
    all.insert("bundle".to_owned(), bundle(&world).await?);
    for (place, text) in &all {
        for (what, secret) in &secrets {
            let at = text.find(secret.as_str());
            let around = at
                .map(|at| String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(200)..at]).into_owned());
            ensure!(at.is_none(), "{what} is in {place}, after {around:?}");
        }
    }
    // Beside the runtime, which keeps connections alive meanwhile.
    let root = world.directory();
    tokio::task::spawn_blocking(move || files(&root, &secrets)).await??;
    one_id(&world, &vm.id.to_string()).await?;
    sandboxed(&world, &vm).await?;
    world.down().await
}

/// Plants one secret of each sort, and starts a VM with two of them by a request with an id.
async fn plant(world: &World) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let join: JoinToken = world
        .client()
        .post("/v1/join-tokens", &JoinTokenBody::default())
        .await?;
    let body = TokenBody {
        name: "planted".to_owned(),
        role: Role::Reader,
        expires_at: None,
    };
    let token = world.client().create_token(&body).await?;
    let mut spec = vms::spec(None, "");
    let parts = [
        format!("#!/bin/sh\n# {PASSWORD}\nprobe tick &\n"),
        format!("#!/bin/sh\n# {SECOND}\necho second part\n"),
    ];
    spec.guest = Some(GuestSpec {
        ssh_keys: vec![KEY.to_owned()],
        user_data: Some(UserData::Parts(parts.to_vec())),
        vendor_data: Some(format!("#cloud-config\n# {VENDOR}\n").into()),
        seed: Some(SeedFormat::ConfigDrive),
        ..GuestSpec::default()
    });
    world.create_vm(NAME, spec).await?;
    let environment = world.environment()?;
    let own = environment.get("STERNA_TOKEN").context("there is a token")?;
    Ok(BTreeMap::from([
        ("a join token", join.token),
        ("a token", token.secret),
        ("the administrator's token", own.clone()),
        ("a password in user data", PASSWORD.to_owned()),
        ("a password in the second part", SECOND.to_owned()),
        ("a password in vendor data", VENDOR.to_owned()),
        ("a guest's key", KEY_MARK.to_owned()),
        ("a script", SCRIPT.to_owned()),
        ("a file for a guest", FILE.to_owned()),
        ("a password of a guest's user", APPLIED_PASSWORD.to_owned()),
        ("what a guest printed", PRINTED.to_owned()),
    ]))
}

/// Has something done in the guest: what can be done in this one, and then a password, which this one cannot set.
async fn applied(world: &World) -> anyhow::Result<()> {
    let secret = |text: &str| Secret(text.to_owned());
    let done = ApplyBody {
        files: vec![ApplyFile {
            path: "/srv/planted".to_owned(),
            content: secret(FILE),
            ..ApplyFile::default()
        }],
        script: Some(secret(&format!("# {SCRIPT}\necho {PRINTED}\n"))),
        ..ApplyBody::default()
    };
    let failed = ApplyBody {
        users: vec![ApplyUser {
            name: "root".to_owned(),
            password: Some(secret(APPLIED_PASSWORD)),
            ssh_keys: Vec::new(),
        }],
        ..ApplyBody::default()
    };
    for (body, phase) in [(done, OperationPhase::Done), (failed, OperationPhase::Failed)] {
        let asked = world
            .client()
            .apply(NAME, &body, Some(&format!("planted-{phase:?}")))
            .await?;
        let judge = |one: &ObjectOf<Operation>| Verdict::from(one.status.ended_at.is_some());
        let ended =
            wait::until::<Operation>(world.client(), &asked.name, "ended", vms::PATIENCE, judge).await?;
        ensure!(ended.status.phase == phase, "{ended:?}");
        let output = ended.status.applied.context("it has ended")?.output;
        ensure!(
            output.contains(PRINTED) == (phase == OperationPhase::Done),
            "{output}"
        );
    }
    Ok(())
}

/// What somebody sees of operations who only reads.
async fn read(world: &World, secrets: &BTreeMap<&'static str, String>) -> anyhow::Result<String> {
    let environment = world.environment()?;
    let variable = |name: &str| environment.get(name).with_context(|| format!("{name} is set"));
    let ca = fs::read_to_string(variable("STERNA_CACERT")?)?;
    let token = secrets.get("a token").context("it was planted")?;
    let reader = Client::new(variable("STERNA_SERVER")?, token, &ca)?;
    let seen = reader.text("/v1/operations").await?;
    ensure!(
        seen.contains("[not shown]") && seen.contains("file /srv/planted"),
        "{seen}"
    );
    Ok(seen)
}

/// The guest has found its seed, a ConfigDrive, and carried out both parts.
async fn configured(world: &World, vm: &VmObject) -> anyhow::Result<()> {
    let host = vm.status.host.as_deref().context("a VM that runs has a host")?;
    let mut console = world.console(host, vms::id(vm));
    for said in ["second part", &format!("ready: {NAME}")] {
        let is_it = |line: &str| line.contains(said).then_some(());
        console.until(said, vms::BOOT_PATIENCE, is_it).await?;
    }
    let given = vms::address(vm)?.parse()?;
    world
        .until_vm(NAME, "at its address", |vm| {
            Verdict::from(vm.status.addresses.contains(&given))
        })
        .await?;
    Ok(())
}

/// Logs, argument lists and events, by where they are.
async fn seen(world: &World) -> anyhow::Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for path in below(&world.directory()) {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.ends_with(".log") || name.starts_with("console.log") || name == "journal" {
            let bytes = fs::read(&path).unwrap_or_default();
            all.insert(
                path.display().to_string(),
                String::from_utf8_lossy(&bytes).into_owned(),
            );
        }
    }
    ensure!(all.len() >= 6, "there are few logs: {:?}", all.keys());
    let mut qemus = 0;
    for process in testkit::process::all() {
        let line = process.command_line.join(" ");
        if process.concerns(&world.directory()) || process.parent == world.up_pid() {
            qemus += usize::from(line.contains("qemu-system"));
            all.insert(format!("the argument list of {}", process.id.pid), line);
        }
    }
    ensure!(qemus >= 1, "no QEMU was looked at");
    for path in [
        "/v1/events",
        "/v1/operations?fields=name,spec,status.phase,status.reason",
        "/v1/migrations",
        "/v1/tokens",
        "/v1/hosts",
        "/metrics",
    ] {
        all.insert(path.to_owned(), world.client().text(path).await?);
    }
    Ok(all)
}

/// What is said to those whose requests have a secret in them.
async fn refusals(world: &World, secrets: &BTreeMap<&'static str, String>) -> anyhow::Result<String> {
    let mut said = String::new();
    let mut spec = vms::spec(None, &format!("# {PASSWORD}"));
    let mut guest = spec.guest.take().unwrap_or_default();
    guest.ssh_keys = vec![format!("{KEY}\nand another line")];
    spec.guest = Some(guest);
    let refused = world.create_vm("refused", spec).await;
    said += &format!("{:#}", refused.err().context("a key of two lines was taken")?);
    for words in [["vm", "list"], ["token", "list"]] {
        let mut command = world.command(&words)?;
        command.env("STERNA_SERVER", "https://127.0.0.1:1");
        let ended = command.output().await?;
        ensure!(!ended.status.success(), "nobody listens there");
        said += &String::from_utf8_lossy(&ended.stderr);
    }
    let mut wrong = world.command(&["vm", "list"])?;
    let join = secrets.get("a join token").context("it was planted")?;
    let ended = wrong.env("STERNA_TOKEN", join).output().await?;
    said += &String::from_utf8_lossy(&ended.stderr);
    Ok(said)
}

/// The support bundle, unpacked.
async fn bundle(world: &World) -> anyhow::Result<String> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("fault.tar.gz");
    let log = world.directory().join("log");
    let words = [
        "support",
        "bundle",
        &file.to_string_lossy(),
        "--logs",
        &log.to_string_lossy(),
    ];
    let made = world.command(&words)?.output().await?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    ensure!(
        fs::metadata(&file)?.permissions().mode() & 0o077 == 0,
        "others may read the bundle"
    );
    let unpacked = Command::new("tar").arg("-xzOf").arg(&file).output().await?;
    let listed = Command::new("tar").arg("-tzf").arg(&file).output().await?;
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    for expected in [
        "versions.json",
        "objects/vms.json",
        "objects/events.json",
        "metrics.txt",
        "logs/server.log",
        "logs/h1.log",
        "missing.txt",
    ] {
        ensure!(names.contains(expected), "{expected} is not in {names}");
    }
    let text = String::from_utf8_lossy(&unpacked.stdout).into_owned();
    ensure!(
        text.contains("\"user_data\": \"[removed]\"") && text.contains("\"vendor_data\": \"[removed]\""),
        "the VM is not in the bundle"
    );
    Ok(text)
}

/// Files that have a secret are for their owner's eyes only.
fn files(root: &Path, secrets: &BTreeMap<&'static str, String>) -> anyhow::Result<()> {
    for path in below(root) {
        let bytes = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let is_guests = path.starts_with(root.join("datastore").join("volumes"));
        for (what, secret) in secrets {
            if text.contains(secret.as_str()) {
                let is_kept = ![SCRIPT, FILE, APPLIED_PASSWORD].contains(&secret.as_str());
                ensure!(is_kept || is_guests, "{what} is kept, in {}", path.display());
                ensure!(
                    is_private(root, &path),
                    "others may read {what} in {}",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

/// Whether the file, or a directory on the way to it, is closed to others.
fn is_private(root: &Path, path: &Path) -> bool {
    let way = path.ancestors().take_while(|at| *at != root);
    way.filter_map(|at| fs::metadata(at).ok())
        .any(|metadata| metadata.permissions().mode() & 0o077 == 0)
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let parts = paths.flat_map(|path| match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => below(&path),
        Ok(metadata) if metadata.is_file() => vec![path],
        _ => Vec::new(),
    });
    parts.collect()
}

/// The operation of the VM's start is in the server's log and in its host's, down to a command for QEMU.
async fn one_id(world: &World, vm: &str) -> anyhow::Result<()> {
    let operations: Value = serde_json::from_str(&world.client().text("/v1/operations").await?)?;
    let operations = operations["items"].as_array().cloned().unwrap_or_default();
    let start = operations
        .iter()
        .find(|operation| operation["spec"]["action"] == "start");
    let start = start.context("the start has a record")?;
    let id = start["id"].as_str().context("it has an id")?;
    let request = start["spec"]["request_id"]
        .as_str()
        .context("it has its request's")?;
    let log = |name: &str| fs::read_to_string(world.directory().join("log").join(format!("{name}.log")));
    let server = log("server")?;
    let answered = |line: &&str| line.contains("\"answered\"") && line.contains(request);
    ensure!(
        server.lines().any(|line| answered(&line)),
        "the request is not in the server's log"
    );
    let committed =
        |line: &str| line.contains(id) && line.contains(request) && line.contains("controller::run");
    ensure!(server.lines().any(committed), "no commit is for the operation");
    let agents = format!("{}{}", log("h1")?, log("h2")?);
    let lines = agents
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let commands: Vec<Value> = lines
        .filter(|line| line["span"]["operation"] == id && line["span"]["request"] == request)
        .filter(|line| line["span"]["vm"] == vm && line["message"] == "qmp")
        .collect();
    let started = commands.iter().any(|line| line["command"] == "cont");
    ensure!(started, "no command for QEMU is for the operation: {commands:?}");
    Ok(())
}

/// QEMU has its seccomp filter, can gain no rights, and its user, where it has one of its own, can read nothing.
async fn sandboxed(world: &World, vm: &vms::VmObject) -> anyhow::Result<()> {
    for (host, _, pid) in world.living(vms::id(vm)) {
        let said = world.client().get::<Host>(&host).await?.status.qemu_user;
        let said = said.context("a host says as whom its QEMUs run")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        ensure!(
            field("Seccomp:") == Some("2"),
            "QEMU on {host} has no filter: {status}"
        );
        ensure!(
            field("NoNewPrivs:") == Some("1"),
            "QEMU on {host} may gain rights: {status}"
        );
        let uid = field("Uid:").and_then(|uids| uids.split_whitespace().next());
        let uid: u32 = uid.context("it has a user")?.parse()?;
        let is_own = uid != rustix::process::geteuid().as_raw();
        ensure!(
            is_own == (said.name != QemuUserName::Agent),
            "{host} says {said:?}, and its QEMU runs as {uid}"
        );
        if is_own {
            ensure!(
                field("CapPrm:") == Some("0000000000000000"),
                "it has rights: {status}"
            );
            reads_nothing(world, uid, pid).await?;
        }
    }
    Ok(())
}

/// Has a QEMU's user open all files there are, by their full paths and as from the directory that the QEMU works in.
async fn reads_nothing(world: &World, uid: u32, pid: i32) -> anyhow::Result<()> {
    /// Which shows that something would be seen.
    const PUBLIC: &str = "/etc/passwd";
    let root = world.directory();
    let works_in = fs::read_link(format!("/proc/{pid}/cwd"))?;
    let up = "../".repeat(works_in.strip_prefix(&root)?.components().count());
    let mut files = vec![PUBLIC.into(), "seed.img".into(), "../console.log".into()];
    for path in below(&root) {
        let own = path.strip_prefix(&root)?;
        let public = ["log", "up.lock", "datastore/images"];
        let is_public = public.iter().any(|name| own.starts_with(name));
        if !is_public {
            files.push(Path::new(&up).join(own));
            files.push(path);
        }
    }
    ensure!(files.len() > 50, "there are few files: {files:?}");
    let uid = uid.to_string();
    let script = "for file; do head -c1 -- \"$file\" >/dev/null 2>&1 && echo \"$file\"; done; true";
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
    command
        .args(["sh", "-c", script, "sh"])
        .args(files)
        .current_dir(works_in);
    let ended = command.output().await?;
    let read = String::from_utf8_lossy(&ended.stdout).into_owned();
    ensure!(read.trim_end() == PUBLIC, "QEMU's user reads {read}");
    Ok(())
}
