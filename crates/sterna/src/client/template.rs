//! What only templates and profiles have, and what guests are told, which VMs have too.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use api::kinds::{GuestSpec, Profile, ProfileSpec, Template, TemplateSpec};
use model::user_data::UserData;

use super::{Context, build, kinds, versions, warm};
use crate::cli::{GuestArgs, ProfileArgs, ReadCommand, TemplateArgs, TemplateCommand, WriteCommand};

pub(super) async fn run(context: &Context, command: TemplateCommand) -> anyhow::Result<ExitCode> {
    match command {
        TemplateCommand::Create(args) => create(context, *args).await,
        TemplateCommand::Versions { name } => versions::list(context, &name).await,
        TemplateCommand::Write(WriteCommand::Read(ReadCommand::Get(args))) if args.name.contains('@') => {
            versions::get(context, &args.name).await
        }
        TemplateCommand::Write(WriteCommand::Delete(args))
            if args.which.names.iter().any(|name| name.contains('@')) =>
        {
            versions::delete(context, args).await
        }
        TemplateCommand::Refresh(args) => build::refresh(context, args).await,
        TemplateCommand::Warm(args) => warm::warm(context, args).await,
        TemplateCommand::Write(command) => kinds::write::<Template>(context, command).await,
    }
}

async fn create(context: &Context, args: TemplateArgs) -> anyhow::Result<ExitCode> {
    let Some(image) = args.image else {
        return build::create(context, args.create.name, args.create.dry_run, args.build).await;
    };
    let spec = TemplateSpec {
        image,
        profile: args.profile,
        vcpus: args.vcpus,
        memory_mib: args.memory,
        disk_bytes: args.disk,
        networks: (args.no_network || !args.networks.is_empty()).then_some(args.networks),
        guest: guest(&args.guest, None)?.unwrap_or_default(),
        firmware: args.firmware.map(Into::into),
        keep_warm: None,
    };
    kinds::create::<Template>(context, args.create, spec).await
}

pub(super) async fn create_profile(context: &Context, args: ProfileArgs) -> anyhow::Result<ExitCode> {
    let spec = ProfileSpec {
        vcpus: args.vcpus,
        memory_mib: args.memory,
        disk_bytes: args.disk,
        host_labels: args.host_labels.into_iter().collect(),
    };
    kinds::create::<Profile>(context, args.create, spec).await
}

/// What the guest is told; `None` if nothing was given.
pub(super) fn guest(args: &GuestArgs, hostname: Option<String>) -> anyhow::Result<Option<GuestSpec>> {
    let guest = GuestSpec {
        hostname,
        ssh_keys: keys_in(&args.ssh_key_files)?,
        user_data: texts(&args.user_data, "the user data")?,
        vendor_data: texts(&args.vendor_data, "the vendor data")?,
        seed: args.seed.map(Into::into),
    };
    Ok((guest != GuestSpec::default()).then_some(guest))
}

/// The keys in these files.
pub(super) fn keys_in(paths: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for path in paths {
        all.extend(keys(&read(path, "the ssh keys")?));
    }
    Ok(all)
}

fn texts(paths: &[PathBuf], what: &str) -> anyhow::Result<Option<UserData>> {
    let parts: anyhow::Result<_> = paths.iter().map(|path| read(path, what)).collect();
    Ok(UserData::Parts(parts?).normal())
}

fn read(path: &Path, what: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {what} from {}", path.display()))
}

/// The keys in a file: one a line, comments left out.
fn keys(text: &str) -> impl Iterator<Item = String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_one_a_line() {
        let text = "# mine\nssh-ed25519 AAAA me\n\n  ssh-rsa BBBB you \r\n";
        assert_eq!(
            keys(text).collect::<Vec<_>>(),
            ["ssh-ed25519 AAAA me", "ssh-rsa BBBB you"]
        );
    }
}
