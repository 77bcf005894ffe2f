//! What is asked of every kind, and of the kinds beside VMs.

use std::path::PathBuf;

use api::kinds::JoinTokenBody;
use clap::{Args, Subcommand, ValueEnum};
use model::vm::{Firmware, SeedFormat};

use crate::units;

/// What can be asked of every kind.
#[derive(Debug, Subcommand)]
pub(crate) enum ReadCommand<G: Args = GetArgs, L: Args = ListArgs> {
    /// List all, or those that are chosen by labels and conditions
    List {
        /// Which ones.
        #[command(flatten)]
        which: L,
        /// By which fields, with - before one for downwards, as in name,-created_at [default: name]
        #[arg(long, value_name = "FIELD,-FIELD", allow_hyphen_values = true)]
        sort: Option<String>,
        /// Stay, and show the list anew when something changes
        #[arg(short, long)]
        watch: bool,
    },
    /// Show one
    Get(G),
    /// Show changes as they happen
    Watch(ListArgs),
    /// Show who changed what, and when
    History(HistoryArgs),
}

/// Which one.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Name or id
    pub(crate) name: String,
}

/// Whose history, and how much of it.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Name or id; one that is gone can be named too
    pub(crate) name: String,
    /// The last so many writes
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) limit: u16,
    /// Also what agents and servers reported
    #[arg(long)]
    pub(crate) reports: bool,
}

/// Which objects.
#[derive(Debug, Default, Args)]
pub(crate) struct ListArgs {
    /// Only those with this label; may be given several times
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Only those for which this holds, as in status.phase=running or spec.vcpus>=2; may be given several times
    #[arg(long = "filter", value_name = "CONDITION")]
    pub(crate) filters: Vec<String>,
}

/// What can be asked of the kinds that users change.
#[derive(Debug, Subcommand)]
pub(crate) enum WriteCommand<G: Args = GetArgs, L: Args = ListArgs> {
    /// What can be asked of every kind.
    #[command(flatten)]
    Read(ReadCommand<G, L>),
    /// Change labels and spec in $EDITOR
    Edit(EditArgs),
    /// Delete
    #[command(visible_alias = "remove")]
    Delete(DeleteArgs),
}

/// What to edit.
#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    /// Name or id
    pub(crate) name: String,
}

/// What to delete.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Which ones.
    #[command(flatten)]
    pub(crate) which: Selection,
    /// Check it and show what would be, and do nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Wait until it is gone
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Objects by their names, or by what they are labelled with.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Names or ids
    #[arg(value_name = "NAME", required_unless_present = "labels")]
    pub(crate) names: Vec<String>,
    /// All with this label, instead of NAME; may be given several times
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_parser = units::label)]
    #[arg(conflicts_with = "names")]
    pub(crate) labels: Vec<(String, String)>,
}

/// Whether to wait for the end.
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Wait for the end
    #[arg(long)]
    pub(crate) wait: bool,
}

/// What every new object has.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name
    pub(crate) name: String,
    /// A label; may be given several times
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Check it and show what it would be, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What can be asked of kinds that are only written down: profiles, networks, datastores.
#[derive(Debug, Subcommand)]
pub(crate) enum CatalogCommand<T: Args> {
    /// Create one
    Create(T),
    /// What can be asked of the kinds that users change.
    #[command(flatten)]
    Write(WriteCommand),
}

/// What can be asked of templates.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Create one
    Create(Box<TemplateArgs>),
    /// Show its versions: each change of what it gives makes one
    #[command(
        after_help = "Examples:\n  sterna template versions web\n  sterna vm create old --template web@2"
    )]
    Versions {
        /// Name or id
        name: String,
    },
    /// What can be asked of the kinds that users change.
    #[command(flatten)]
    Write(WriteCommand),
    /// Boot its newest version, run a script in it, and make that the next version
    Refresh(RefreshArgs),
    /// Keep it warm: VMs can start from the memory of one that was booted before
    Warm(WarmArgs),
}

/// How a template is made of a VM.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Instead of --image: the VM that it is made of. A copy of its disk is booted, forgets who it is, and becomes the image; the
    /// VM itself goes on. Sizes and networks are the VM's
    #[arg(long, value_name = "VM")]
    #[arg(conflicts_with_all = ["image", "profile", "memory", "vcpus", "disk", "networks", "firmware", "user_data", "vendor_data",
        "ssh_key_files", "seed", "labels"])]
    pub(crate) from_vm: Option<String>,
    /// With --from-vm: run in the copy before, as root; `-` for standard input
    #[arg(long, value_name = "FILE", requires = "from_vm")]
    pub(crate) script: Option<PathBuf>,
    /// With --from-vm: a network for the copy, which has none otherwise; may be given several times
    #[arg(long = "build-network", value_name = "NETWORK", requires = "from_vm")]
    pub(crate) build_networks: Vec<String>,
    /// With --from-vm: wait for the end
    #[arg(long, requires = "from_vm")]
    pub(crate) wait: bool,
}

/// What the next version is made of.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sterna template refresh web --script patch.sh --network default --wait
  sterna template refresh web --from-vm golden

\
    A VM is made of the newest version, WEB-build-1 and so on: it boots, runs the script as root, forgets who it is (machine id, \
    SSH host keys, what cloud-init keeps), is switched off, and its disk becomes the image of the next version. Then it is deleted. \
    VMs that are there stay as they are. A repeat while it is under way follows that; if a step fails, nothing is left, and the operation \
    says which.")]
pub(crate) struct RefreshArgs {
    /// Name or id
    pub(crate) name: String,
    /// Run in it, as root; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) script: Option<PathBuf>,
    /// Begin with a copy of this VM's disk, not with the newest version
    #[arg(long, value_name = "VM")]
    pub(crate) from_vm: Option<String>,
    /// A network for it, which has none otherwise; may be given several times
    #[arg(long = "network", value_name = "NETWORK")]
    pub(crate) networks: Vec<String>,
    /// Check it and show what it would be, and do nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// Which template is kept warm.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sterna template warm small --wait && sterna vm create quick --template small --start instant
  sterna template warm small --off

\
    A VM is made, SMALL-warm-1 and so on, which is booted once and then only read: its warm form. Another is made by itself when \
    the template changes, or the hosts' QEMU, and when one fails, ever more slowly, five times in a row; the ones before are deleted \
    when no VM needs them. `sterna template get` shows how it stands. All that start from its memory share what its programs had \
    drawn at random: keep no secrets in a warm template.")]
pub(crate) struct WarmArgs {
    /// Name or id
    pub(crate) name: String,
    /// Where the memory is kept; where it was, or in `default`, if left out
    #[arg(long)]
    pub(crate) datastore: Option<String>,
    /// Keep it warm no longer: what was made for that is deleted when no VM needs it
    #[arg(long, conflicts_with_all = ["datastore", "wait"])]
    pub(crate) off: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// What a template says.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna template create small --image tiny --memory 256MiB --vcpus 1 --disk 10GiB\n  \
    sterna template create web --image debian --profile large --user-data a.yaml --user-data b.sh\n  \
    sterna template create web --from-vm golden --script prepare.sh --wait"
)]
pub(crate) struct TemplateArgs {
    /// What every new object has.
    #[command(flatten)]
    pub(crate) create: CreateArgs,
    /// The image of the root disk
    #[arg(long, required_unless_present = "from_vm")]
    pub(crate) image: Option<String>,
    /// How it is made of a VM.
    #[command(flatten)]
    pub(crate) build: BuildArgs,
    /// The profile whose sizes it has, where no others are given here
    #[arg(long)]
    pub(crate) profile: Option<String>,
    /// Main memory, as in 256MiB or 2GiB
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib, allow_hyphen_values = true)]
    #[arg(required_unless_present_any = ["profile", "from_vm"])]
    pub(crate) memory: Option<u64>,
    /// Virtual processors; 1 if left out, and without a profile
    #[arg(long, value_name = "N")]
    pub(crate) vcpus: Option<u32>,
    /// The size of the root disk, as in 10GiB; the image's if left out
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, allow_hyphen_values = true)]
    pub(crate) disk: Option<u64>,
    /// A network to plug an interface into; may be given several times; `default` if left out
    #[arg(long = "network", value_name = "NETWORK")]
    pub(crate) networks: Vec<String>,
    /// Plug its VMs into no network
    #[arg(long, conflicts_with = "networks")]
    pub(crate) no_network: bool,
    /// What starts guests: bios, or uefi with variables of each VM's own; bios if left out
    #[arg(long, value_enum, value_name = "FIRMWARE", hide_possible_values = true)]
    pub(crate) firmware: Option<FirmwareArg>,
    /// What guests are told.
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
}

/// What starts a guest, as it is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FirmwareArg {
    /// The PC's first.
    Bios,
    /// Its successor.
    Uefi,
}

impl From<FirmwareArg> for Firmware {
    fn from(firmware: FirmwareArg) -> Self {
        match firmware {
            FirmwareArg::Bios => Self::Bios,
            FirmwareArg::Uefi => Self::Uefi,
        }
    }
}

/// What a profile says.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna profile create wide --vcpus 8 --memory 8GiB --disk 40GiB\n  \
    sterna profile create fast --vcpus 4 --memory 16GiB --host-label disk=ssd\n\n\
    There is a default family: small to 4xlarge, cpu-large to cpu-4xlarge, memory-large to memory-4xlarge. A profile of\n\
    your own with one of these names takes its place."
)]
pub(crate) struct ProfileArgs {
    /// What every new object has.
    #[command(flatten)]
    pub(crate) create: CreateArgs,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    pub(crate) vcpus: u32,
    /// Main memory, as in 256MiB or 2GiB
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib, allow_hyphen_values = true)]
    pub(crate) memory: u64,
    /// The size of the root disk, as in 10GiB; the template's or the image's if left out
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, allow_hyphen_values = true)]
    pub(crate) disk: Option<u64>,
    /// Such VMs run only on hosts with this label; may be given several times
    #[arg(long = "host-label", value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) host_labels: Vec<(String, String)>,
}

/// What guests are told.
#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// A file with ssh public keys, one a line; may be given several times
    #[arg(long = "ssh-key-file", value_name = "PATH")]
    pub(crate) ssh_key_files: Vec<PathBuf>,
    /// A file with a script that begins with #!, or with cloud-config; given several times, the guest gets all of them
    #[arg(long, value_name = "PATH")]
    pub(crate) user_data: Vec<PathBuf>,
    /// The same from the image's provider, which the guest carries out before the user's
    #[arg(long, value_name = "PATH")]
    pub(crate) vendor_data: Vec<PathBuf>,
    /// The form of the disk that tells the guest: nocloud, or configdrive as OpenStack has it [default: nocloud]
    #[arg(long, value_enum, value_name = "FORM", hide_possible_values = true)]
    pub(crate) seed: Option<SeedArg>,
}

/// The form of a seed as it is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SeedArg {
    /// As cloud-init's NoCloud has it.
    #[value(name = "nocloud")]
    NoCloud,
    /// As OpenStack's ConfigDrive has it.
    #[value(name = "configdrive")]
    ConfigDrive,
}

impl From<SeedArg> for SeedFormat {
    fn from(seed: SeedArg) -> Self {
        match seed {
            SeedArg::NoCloud => Self::NoCloud,
            SeedArg::ConfigDrive => Self::ConfigDrive,
        }
    }
}

/// What a network says.
#[derive(Debug, Args)]
#[command(after_help = "Example: sterna network create front --cidr 10.1.0.0/24")]
pub(crate) struct NetworkArgs {
    /// What every new object has.
    #[command(flatten)]
    pub(crate) create: CreateArgs,
    /// Its IPv4 addresses, as in 10.1.0.0/24
    #[arg(long)]
    pub(crate) cidr: String,
    /// Its VXLAN identifier; a free one if left out
    #[arg(long)]
    pub(crate) vni: Option<u32>,
}

/// What a datastore says.
#[derive(Debug, Args)]
#[command(after_help = "Example: sterna datastore create shared --path /srv/sterna --coherent")]
pub(crate) struct DatastoreArgs {
    /// What every new object has.
    #[command(flatten)]
    pub(crate) create: CreateArgs,
    /// The directory, which every host sees under this path
    #[arg(long, value_name = "DIR")]
    pub(crate) path: String,
    /// Hosts see each other's writes without going past their page caches
    #[arg(long)]
    pub(crate) coherent: bool,
}

/// What can be asked of images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Take a disk image from a file, or have the server take it from a URL; a repeat with the same is fine
    Import(ImportArgs),
    /// Make an image of a VM's disk, as that is at one instant; a repeat is fine, and tries again what failed
    Create(CaptureArgs),
    /// What can be asked of the kinds that users change.
    #[command(flatten)]
    Write(WriteCommand),
}

/// Which VM's disk.
#[derive(Debug, Args)]
#[command(after_help = "Example: sterna image create web-base --from-vm web --wait

The image has all that the VM's guest sees, and needs no other image. The VM goes on. If its guest's agent answers, its
file systems are frozen for the instant that the image is of; `sterna image get NAME` says under `copied` whether they
were. What is inside is the VM's: host keys, machine id, passwords.")]
pub(crate) struct CaptureArgs {
    /// The image's name
    pub(crate) name: String,
    /// The VM whose disk is copied
    #[arg(long, value_name = "VM")]
    pub(crate) from_vm: String,
    /// Wait until it can be used
    #[arg(long)]
    pub(crate) wait: bool,
    /// A label; may be given several times
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) labels: Vec<(String, String)>,
}

/// Which file, or which URL.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("from").required(true).args(["file", "url", "path"]))]
#[command(group = clap::ArgGroup::new("source").args(["url", "path"]))]
#[command(after_help = "Examples:
  sterna image import tiny --file guest.qcow2
  sterna image import appliance --file appliance-disk1.vmdk.gz
  sterna image import debian --url https://images.example/debian.qcow2 --sha256sums
  sterna image import appliance --path default:images/appliance.vmdk
  sterna image import trixie --url s3://images/trixie.qcow2 --endpoint https://s3.example --path-style

The credentials for an object store stay here: they sign a URL of this one object, with which the
server reads it for a day at most, until the import ends.

The server takes what a URL or path names, and goes on after broken connections and restarts. This
command may be left (Ctrl-C) meanwhile; given again, it waits on. A file whose sending broke off is
gone on with where it was.

What the file is, its content says, not its name. It is kept as qcow2 or raw; images that need other
files (a backing file, several extents) are refused.")]
pub(crate) struct ImportArgs {
    /// The image's name
    pub(crate) name: String,
    /// A disk image: qcow2, raw, VMDK, VHD, VHDX or VDI; also compressed with gzip, xz or zstd
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// Where the server takes the disk image from: http://, https://, ftp:// or nfs://, without a password, or s3://BUCKET/KEY
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// The object store that an s3:// URL is of, as in `https://s3.eu-west-1.amazonaws.com`
    #[arg(long, value_name = "URL", requires = "url")]
    pub(crate) endpoint: Option<String>,
    /// The object store's region
    #[arg(long, value_name = "NAME", requires = "endpoint", default_value = api::object_store::REGION)]
    pub(crate) region: String,
    /// The bucket stands in the path of its objects' URLs, and not before the object store's name
    #[arg(long, requires = "endpoint")]
    pub(crate) path_style: bool,
    /// A file with the credentials for the object store, as AWS' tools have it, or - for standard input; those in the
    /// environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) if it is left out
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    pub(crate) credentials: Option<PathBuf>,
    /// A file in a datastore, by its path in there: the server reads it, if it sees the datastore's directory
    #[arg(long, value_name = "DATASTORE:PATH", value_parser = units::place)]
    pub(crate) path: Option<String>,
    /// The digest of what the URL or path names, as 64 hexadecimal digits
    #[arg(long, value_name = "HEX", requires = "source", conflicts_with = "sha256sums")]
    pub(crate) sha256: Option<String>,
    /// A list with the digest of what the URL or path names; the file SHA256SUMS beside it if no URL is given
    #[arg(long, value_name = "URL", requires = "source", num_args = 0..=1, require_equals = true)]
    pub(crate) sha256sums: Option<Option<String>>,
    /// Do not wait until the server has taken it
    #[arg(long, requires = "source")]
    pub(crate) no_wait: bool,
    /// A label; may be given several times
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_parser = units::label)]
    pub(crate) labels: Vec<(String, String)>,
}

/// What can be asked of hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Make a token with which one host joins
    Token(TokenArgs),
    /// Place no new VM on it
    #[command(after_help = "Example: sterna host cordon h1")]
    Cordon(Selection),
    /// Place new VMs on it again, and end its drain
    #[command(after_help = "Example: sterna host uncordon h1")]
    Uncordon(Selection),
    /// Move its VMs to other hosts while they run, and place no new one on it
    Drain(DrainArgs),
    /// End a drain: moves that have begun go on, the others are not made
    #[command(after_help = "Example: sterna host undrain h1")]
    Undrain(Selection),
    /// Set labels, or with a dash behind the key remove them
    #[command(after_help = "Example: sterna host label h1 disk=ssd rack-")]
    Label(LabelArgs),
    /// Say that a silent host is off, so that its VMs can start elsewhere
    #[command(after_help = "Example: sterna host confirm-dead h1\n\n\
        Switch the machine off first: a VM that still runs there would run twice.")]
    ConfirmDead(Selection),
    /// What can be asked of the kinds that users change.
    #[command(flatten)]
    Write(WriteCommand),
}

/// Which labels.
#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    /// Name or id
    pub(crate) name: String,
    /// KEY=VALUE sets a label, KEY- removes it
    #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = units::label_change)]
    pub(crate) labels: Vec<(String, Option<String>)>,
}

/// What to drain, and how.
#[derive(Debug, Args)]
#[command(
    after_help = "Says first of each VM whether it can leave, and why not. A VM that cannot leave stays as it is, and is \
        looked at again when another host has room.\n\nExamples:\n  sterna host drain h1 --dry-run\n  \
        sterna host drain h1 --wait --parallel 4"
)]
pub(crate) struct DrainArgs {
    /// Which ones.
    #[command(flatten)]
    pub(crate) which: Selection,
    /// Say which VMs would leave and which could not, and do nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// How many VMs leave a host at a time, from 1 to 8 [default: 2]
    #[arg(long, value_name = "N")]
    pub(crate) parallel: Option<u32>,
    /// Whether to wait.
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// For whom the token is.
#[derive(Debug, Args)]
#[command(after_help = "Example: sterna host token --name h4")]
pub(crate) struct TokenArgs {
    /// The name that the host gets; its own choice if left out
    #[arg(long)]
    pub(crate) name: Option<String>,
}

impl From<TokenArgs> for JoinTokenBody {
    fn from(args: TokenArgs) -> Self {
        Self { name: args.name }
    }
}

/// What can be asked of migrations.
#[derive(Debug, Subcommand)]
pub(crate) enum MigrationCommand {
    /// Stop one that is under way, if it still can be: the VM goes on where it is
    #[command(after_help = "Example: sterna migration cancel web-m2 --wait")]
    Cancel {
        /// Which ones.
        #[command(flatten)]
        which: Selection,
        /// Whether to wait.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// What can be asked of the kinds that users change.
    #[command(flatten)]
    Write(WriteCommand),
}
