//! What is asked of VMs.

use api::kinds::NicSpec;
use api::placement::PeersSpec;
use clap::{Args, Subcommand, ValueEnum};
use model::lifecycle::Phase;
use model::vm::{BootDevice, StartChoice};

use super::guest::GuestApplyArgs;
use super::kinds::{FirmwareArg, GetArgs, GuestArgs, ListArgs, Selection, WaitArgs, WriteCommand};
use crate::units;

/// What can be asked of VMs.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Create one, or several alike
    Create(Box<VmArgs>),
    /// Create one, or several, whose disk is a copy of another's, also of one that runs
    Clone(Box<CloneArgs>),
    /// Start: boot, or resume from a saved state
    #[command(after_help = "Example: sterna vm start web --wait=ready")]
    Start(ActionArgs),
    /// Ask the guest to shut down; pull the plug if it does not
    Shutdown(ShutdownArgs),
    /// Reboot the guest where it is: ask it, and reset it if it does not
    Reboot(RebootArgs),
    /// Try again what has failed
    #[command(after_help = "Example: sterna vm retry web --wait")]
    Retry(ActionArgs),
    /// Save the state to its host's disk and end
    #[command(after_help = "Example: sterna vm suspend web --wait")]
    Suspend(ActionArgs),
    /// Save the state into the datastore and free the host: it resumes on any
    #[command(after_help = "Example: sterna vm stop web --wait && sterna vm resume web --wait")]
    Stop(ActionArgs),
    /// Go on after a pause, or from a saved state
    #[command(after_help = "Example: sterna vm resume web --wait")]
    Resume(ActionArgs),
    /// Stop the processors; the memory stays
    #[command(after_help = "Example: sterna vm pause -l app=web")]
    Pause(ActionArgs),
    /// Do not place it until it is released
    #[command(after_help = "Example: sterna vm hold web")]
    Hold(ActionArgs),
    /// Place a held one
    #[command(after_help = "Example: sterna vm release web --wait")]
    Release(ActionArgs),
    /// Say why it is where it is, what is wrong, and what leads on
    #[command(after_help = "Example: sterna vm explain web")]
    Explain(Selection),
    /// Move it to another host while it runs
    Migrate(MigrateArgs),
    /// Make its disk whole, so that it needs neither its image nor a warm form any more
    Flatten(FlattenArgs),
    /// Sit down at its serial console; Ctrl-] leaves
    Console(ConsoleArgs),
    /// Run a script in its guest while it runs, or set files, a user, its keys there
    Apply(Box<GuestApplyArgs>),
    /// Change the medium in its drive, or what it boots from, also while it runs
    Media(MediaArgs),
    /// What can be asked of the kinds that users change.
    #[command(flatten)]
    Write(WriteCommand<VmGetArgs, VmListArgs>),
}

/// Which VM, and what of it.
#[derive(Debug, Args)]
pub(crate) struct VmGetArgs {
    /// Which one.
    #[command(flatten)]
    pub(crate) which: GetArgs,
    /// Show as a chart where the time of its start went
    #[arg(long)]
    pub(crate) timing: bool,
}

impl From<VmGetArgs> for GetArgs {
    fn from(args: VmGetArgs) -> Self {
        args.which
    }
}

/// Which VMs are listed.
#[derive(Debug, Args)]
pub(crate) struct VmListArgs {
    /// Which ones.
    #[command(flatten)]
    pub(crate) which: ListArgs,
    /// Also the warm forms of templates, which are left out unless labels or conditions are given
    #[arg(short, long)]
    pub(crate) all: bool,
}

impl From<VmListArgs> for ListArgs {
    fn from(args: VmListArgs) -> Self {
        let mut which = args.which;
        if !args.all && which.labels.is_empty() && which.filters.is_empty() {
            which.filters.push("spec.warms=null".to_owned());
        }
        which
    }
}

/// What the new VMs shall be.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna vm create web --template small --wait=ready\n  \
    sterna vm create worker --template small --count 3 -l tier=batch\n  \
    sterna vm create old --template small@2\n  \
    sterna vm create quick --template small --start instant --wait=ready\n  \
    sterna vm create spare --template small --off --wait\n  \
    sterna vm create worker --template small --count 3 -l app=w --anti-affinity vm:app=w\n  \
    sterna vm create db --image tiny --memory 1GiB --vcpus 2 --network front,address=10.1.0.7\n  \
    sterna vm create web --template small --user-data settings.yaml --user-data install.sh\n  \
    sterna vm create db --template web --profile memory-large --disk 100GiB\n  \
    sterna vm create new --iso installer --disk 20GiB --memory 2GiB --firmware uefi"
)]
pub(crate) struct VmArgs {
    /// Its name, or several; with --count, what the names begin with
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
    /// The template that it is made from: its newest version, or another as in web@2
    #[arg(long, required_unless_present_any = ["image", "iso"])]
    pub(crate) template: Option<String>,
    /// The profile whose sizes it has, where no others are given: `sterna profile list` shows all
    #[arg(long)]
    pub(crate) profile: Option<String>,
    /// The image of its root disk
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// The medium in its drive, to install from: an imported ISO file. With neither template nor image its disk is blank, of
    /// the size given with --disk
    #[arg(long, value_name = "IMAGE")]
    pub(crate) iso: Option<String>,
    /// What it boots from, the first choice first; the disk, and while that is blank the medium, if left out
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    pub(crate) boot: Option<Vec<Bootable>>,
    /// What starts its guest: bios, or uefi with variables of its own; the template's, or bios, if left out
    #[arg(long, value_enum, value_name = "FIRMWARE", hide_possible_values = true)]
    pub(crate) firmware: Option<FirmwareArg>,
    /// Main memory, as in 256MiB or 2GiB
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib, allow_hyphen_values = true)]
    #[arg(required_unless_present_any = ["template", "profile"])]
    pub(crate) memory: Option<u64>,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    pub(crate) vcpus: Option<u32>,
    /// The size of its root disk, as in 10GiB
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, allow_hyphen_values = true)]
    pub(crate) disk: Option<u64>,
    /// Where its volumes are kept
    #[arg(long)]
    pub(crate) datastore: Option<String>,
    /// Start on this host only
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Only on hosts with this label; may be given several times
    #[arg(long = "host-label", value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) host_labels: Vec<(String, String)>,
    /// Where it may run.
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
    /// A network to plug an interface into; may be given several times; the template's networks if left out, and without a template
    /// `default` if there is one
    #[arg(long = "network", value_name = "NETWORK[,address=IP][,mac=MAC]", value_parser = units::nic)]
    pub(crate) nics: Vec<NicSpec>,
    /// Plug it into no network
    #[arg(long, conflicts_with = "nics")]
    pub(crate) no_network: bool,
    /// The guest's host name; the VM's name if left out
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// What the guest is told.
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    /// A label; may be given several times
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) labels: Vec<(String, String)>,
    /// How it is started the first time: booted, or from its template's kept memory (`sterna template warm`). It is booted if
    /// left out
    #[arg(long, value_name = "HOW")]
    pub(crate) start: Option<StartHow>,
    /// Create so many, NAME-1 to NAME-N. Those of one call are all placed or, if they do not all fit, none; more than 24
    /// in parts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: Option<u32>,
    /// Do not place it until it is released
    #[arg(long)]
    pub(crate) hold: bool,
    /// Place it and make its disk, and do not boot it
    #[arg(long, conflicts_with = "hold")]
    pub(crate) off: bool,
    /// Check it and show what it would be, and do nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Whether and for what to wait.
    #[command(flatten)]
    pub(crate) wait: WaitStateArgs,
}

/// Which VM is copied, and what is other in the copies.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sterna vm clone web test --wait=ready\n  \
    sterna vm clone db copy --off --memory 4GiB --network lab --wait\n  \
    sterna vm clone db big --full --disk 40GiB --off\n  \
    sterna vm clone web worker --count 3\n\n\
    The source goes on. If its guest's agent answers, its file systems are frozen for the instant that the copy is of;\n\
    `sterna vm get NAME` says under `copied` whether they were.")]
pub(crate) struct CloneArgs {
    /// The VM that is copied: its disk, sizes, networks, and what its guest is told
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// The name of the new one, or several; with --count, what the names begin with
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
    /// Make so many, NAME-1 to NAME-N. If one of them is refused, none is made
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: Option<u32>,
    /// Copy all that the guest sees, so that the copy needs no image
    #[arg(long)]
    pub(crate) full: bool,
    /// The disk's size, as in 20GiB; the source's if left out, and never less
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, allow_hyphen_values = true)]
    pub(crate) disk: Option<u64>,
    /// Main memory, as in 256MiB or 2GiB; the source's if left out
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib, allow_hyphen_values = true)]
    pub(crate) memory: Option<u64>,
    /// Virtual processors; the source's if left out
    #[arg(long, value_name = "N")]
    pub(crate) vcpus: Option<u32>,
    /// Start on this host only
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Only on hosts with this label; may be given several times
    #[arg(long = "host-label", value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) host_labels: Vec<(String, String)>,
    /// Where it may run.
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
    /// A network to plug an interface into, instead of the source's; may be given several times
    #[arg(long = "network", value_name = "NETWORK[,address=IP][,mac=MAC]", value_parser = units::nic)]
    pub(crate) nics: Vec<NicSpec>,
    /// The guest's host name; the VM's name if left out
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// What the guest is told; what the source's is told, where nothing is given.
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    /// A label; may be given several times
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Neither copy nor place it until it is released
    #[arg(long)]
    pub(crate) hold: bool,
    /// Copy the disk, and do not boot it
    #[arg(long, conflicts_with = "hold")]
    pub(crate) off: bool,
    /// Check it and show what it would be, and do nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Whether and for what to wait.
    #[command(flatten)]
    pub(crate) wait: WaitStateArgs,
}

/// Rules about hosts and about other VMs; each may be given several times.
#[derive(Debug, Args)]
pub(crate) struct RuleArgs {
    /// Only where one of these is: vm:KEY=VALUE, host:NAME[,NAME…] or host-label:KEY=VALUE
    #[arg(long, value_name = "RULE", value_parser = units::peers)]
    pub(crate) affinity: Vec<PeersSpec>,
    /// Only where none of these is
    #[arg(long, value_name = "RULE", value_parser = units::peers)]
    pub(crate) anti_affinity: Vec<PeersSpec>,
    /// Where one of these is, if that is possible
    #[arg(long, value_name = "RULE", value_parser = units::peers)]
    pub(crate) prefer: Vec<PeersSpec>,
    /// Where none of these is, if that is possible
    #[arg(long, value_name = "RULE", value_parser = units::peers)]
    pub(crate) avoid: Vec<PeersSpec>,
    /// On the fullest host that fits, not on the emptiest
    #[arg(long)]
    pub(crate) pack: bool,
}

/// Which VMs, and whether to wait.
#[derive(Debug, Args)]
pub(crate) struct ActionArgs {
    /// Which ones.
    #[command(flatten)]
    pub(crate) which: Selection,
    /// Check it and show what would be, and do nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Whether and for what to wait.
    #[command(flatten)]
    pub(crate) wait: WaitStateArgs,
}

/// Which VMs, and how.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna vm shutdown web --wait --timeout 90s\n  sterna vm shutdown -l app=web --dry-run"
)]
pub(crate) struct ShutdownArgs {
    /// Which VMs, and whether to wait.
    #[command(flatten)]
    pub(crate) action: ActionArgs,
    /// Pull the plug at once
    #[arg(long)]
    pub(crate) force: bool,
}

/// Which VMs, and how.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sterna vm reboot web --wait=ready\n  sterna vm reboot web --force")]
pub(crate) struct RebootArgs {
    /// Which ones.
    #[command(flatten)]
    pub(crate) which: Selection,
    /// Reset the guest without asking it
    #[arg(long)]
    pub(crate) force: bool,
    /// Wait until it was rebooted, or until its guest's agent has answered again
    #[arg(long, value_name = "STATE", num_args = 0..=1, require_equals = true, ignore_case = true)]
    #[arg(conflicts_with = "dry_run")]
    pub(crate) wait: Option<Option<Rebooted>>,
    /// Check it and show what would be, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Which VMs, and how.
#[derive(Debug, Args)]
#[command(after_help = "Example: sterna vm flatten web --wait && sterna image delete debian")]
pub(crate) struct FlattenArgs {
    /// Which ones.
    #[command(flatten)]
    pub(crate) which: Selection,
    /// Wait until it is whole
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
    /// Check it and show what would be, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// How far a reboot is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rebooted {
    /// The guest begins anew
    Done,
    /// Its agent has answered
    Ready,
}

/// Which VMs, and where to.
#[derive(Debug, Args)]
#[command(after_help = "Example: sterna vm migrate web --to h2 --wait")]
pub(crate) struct MigrateArgs {
    /// Which ones.
    #[command(flatten)]
    pub(crate) which: Selection,
    /// The host to go to; chosen if left out
    #[arg(long, value_name = "HOST")]
    pub(crate) to: Option<String>,
    /// Check it, and do nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// Which VM.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna vm console web          press Enter for a prompt, Ctrl-] to leave\n  \
    sterna vm console web --log    what the guest wrote last, also when it does not run"
)]
pub(crate) struct ConsoleArgs {
    /// Name or id
    pub(crate) name: String,
    /// Print the last part of the console's log, and end
    #[arg(long)]
    pub(crate) log: bool,
}

/// Which VMs, and what of their drives.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("change").required(true).multiple(true),
    after_help = "Examples:\n  sterna vm media web --eject --wait\n  sterna vm media web --insert drivers --wait\n  \
    sterna vm media web --insert rescue --boot cdrom,disk && sterna vm reboot web"
)]
pub(crate) struct MediaArgs {
    /// Which ones.
    #[command(flatten)]
    pub(crate) which: Selection,
    /// Take the medium out
    #[arg(long, group = "change", conflicts_with = "insert")]
    pub(crate) eject: bool,
    /// Put this one in, in place of what is in the drive. A VM without a drive gets one, if it is off
    #[arg(long, value_name = "IMAGE", group = "change")]
    pub(crate) insert: Option<String>,
    /// What it boots from, from the next reset of the guest on, the first choice first
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', group = "change")]
    pub(crate) boot: Option<Vec<Bootable>>,
    /// Take a medium also from a guest that holds it, and does not give it when it is asked
    #[arg(long)]
    pub(crate) force: bool,
    /// Wait until the drive is so
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
    /// Check it and show what would be, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Something to boot from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bootable {
    /// The root disk
    Disk,
    /// The medium in the drive
    Cdrom,
}

impl From<Bootable> for BootDevice {
    fn from(device: Bootable) -> Self {
        match device {
            Bootable::Disk => Self::Disk,
            Bootable::Cdrom => Self::Cdrom,
        }
    }
}

/// Whether and for what to wait.
#[derive(Debug, Args)]
pub(crate) struct WaitStateArgs {
    /// Wait for what the command leads to, or for this state
    #[arg(long, value_name = "STATE", num_args = 0..=1, require_equals = true, ignore_case = true)]
    pub(crate) wait: Option<Option<WaitState>>,
}

impl WaitStateArgs {
    /// What to wait for, if at all.
    pub(crate) fn goal(&self, usual: WaitState) -> Option<WaitState> {
        self.wait.map(|state| state.unwrap_or(usual))
    }
}

/// How a new VM is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StartHow {
    /// From its template's kept memory; booted, which is said, if that turns out to be impossible
    Instant,
    /// Booted
    Boot,
    /// From its template's kept memory where there is one that fits
    Auto,
}

impl From<StartHow> for StartChoice {
    fn from(how: StartHow) -> Self {
        match how {
            StartHow::Instant => Self::AtOnce,
            StartHow::Boot => Self::Boot,
            StartHow::Auto => Self::Auto,
        }
    }
}

/// A state of a VM to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitState {
    /// Its guest executes
    Running,
    /// Its guest's agent has answered
    Ready,
    /// Its processors are stopped
    Paused,
    /// Its state is saved on its host
    Suspended,
    /// Its state is saved in its datastore
    Stopped,
    /// It is powered off
    Off,
    /// It is not placed until it is released
    Hold,
}

impl WaitState {
    /// The phase that is waited for.
    pub(crate) const fn phase(self) -> Phase {
        match self {
            Self::Running | Self::Ready => Phase::Running,
            Self::Paused => Phase::Paused,
            Self::Suspended => Phase::Suspended,
            Self::Stopped => Phase::Stopped,
            Self::Off => Phase::Off,
            Self::Hold => Phase::Hold,
        }
    }
}
