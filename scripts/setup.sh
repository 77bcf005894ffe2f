#!/bin/bash
# Installs what building and running Sterna needs on Debian 12 and 13, and nothing else.
#
#   scripts/setup.sh [run]     what `make build` and `make demo` need
#   scripts/setup.sh test      also the cargo tools and the Python that `make test` needs
#   scripts/setup.sh deb       also the cargo tool that `make deb` needs
#   scripts/setup.sh soak      what `make test` needs, and for `make soak` what makes a Debian guest
#
# It may be run any number of times: with nothing missing it asks no mirror and changes nothing. System packages need
# root; started through sudo, whatever belongs to the user (cargo tools, the guest's cache) is made as that user.
set -euo pipefail

root_dir=$(cd "$(dirname "$0")/.." && pwd)
min_qemu=10

# package | how its presence is told | why. A command is looked for rather than a package where something else may
# provide it just as well (a rustup toolchain's own linker, a QEMU built by hand).
packages='
qemu-system-x86|cmd:qemu-system-x86_64|runs the virtual machines (QEMU 10 or later)
qemu-utils|cmd:qemu-img|makes and reads disk images, serves them (qemu-img, qemu-storage-daemon)
ovmf|file:/usr/share/OVMF/OVMF_CODE_4M.fd|UEFI for virtual machines that ask for it
gcc|cmd:cc|compiles the C parts of ring and SQLite, links the binaries
libc6-dev|file:/usr/include/stdio.h|C headers for them; the static libc for the tool inside the test guest
make|cmd:make|runs the Makefile
gzip|cmd:gzip|unpacks images that are imported
xz-utils|cmd:xz|likewise
zstd|cmd:zstd|likewise
iproute2|cmd:ip|makes and shows the network namespaces of test hosts
ca-certificates|file:/etc/ssl/certs/ca-certificates.crt|lets cargo and image downloads check their servers
syslinux|cmd:syslinux|boot loader of the test guest (installed into a file, without root)
syslinux-common|file:/usr/lib/syslinux/mbr/mbr.bin|its boot sector
mtools|cmd:mcopy|fills the guest'\''s boot partition without mounting it
e2fsprogs|cmd:mke2fs|makes the guest'\''s data partition
libglib2.0-0|lib:libglib-2.0.so.0|copied into the test guest, whose QEMU agent needs it
'

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }
say() { printf '%s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

case "${1:-run}" in
    run | test | deb | soak) mode=${1:-run} ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

[ "$mode" != soak ] || packages+='mmdebstrap|cmd:mmdebstrap|makes the Debian guest of the long tests
'
case $mode in test | soak) packages+='xorriso|cmd:xorriso|makes the media that a test installs from
isolinux|file:/usr/lib/ISOLINUX/isolinux.bin|boots them
libnfs-utils|cmd:nfs-cat|reads images of NFS servers
openssh-client|cmd:ssh-keygen|makes the host keys that a guest would have
dropbear-bin|cmd:dropbearkey|makes those of a guest that has dropbear
' ;;
esac
[ "$mode" != deb ] || packages+='dpkg-dev|cmd:dpkg-shlibdeps|finds out which libraries the package depends on
'

# mke2fs and ip stand in sbin, which an ordinary user's PATH may lack.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# Runs a command as the person who typed `sudo make setup`, so that files of the checkout and ~/.cargo stay theirs.
as_user() {
    if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
        local home
        home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        runuser -u "$SUDO_USER" -- env HOME="$home" PATH="$home/.cargo/bin:$PATH" "$@"
    else
        env PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH" "$@"
    fi
}

present() { # present KIND:NAME
    case $1 in
        cmd:*) command -v "${1#cmd:}" >/dev/null ;;
        file:*) [ -e "${1#file:}" ] ;;
        lib:*) grep -q "${1#lib:} " <<<"$(ldconfig -p)" ;; # no pipe: `grep -q` ends before `ldconfig` does
    esac
}

qemu_major() { # of the qemu-system-x86_64 or qemu-img found first; empty if there is none
    "$1" --version 2>/dev/null | sed -n '1s/.*version \([0-9]*\).*/\1/p'
}

# Sets `missing` (one package a line); a QEMU that is too old counts as missing.
find_missing() {
    missing=
    local package test why tool
    while IFS='|' read -r package test why; do
        [ -n "$package" ] || continue
        if present "$test"; then
            case $package in
                qemu-*)
                    tool=${test#cmd:}
                    [ "$(qemu_major "$tool")" -lt "$min_qemu" ] || continue
                    why="$why; the one here is $(qemu_major "$tool")"
                    ;;
                *) continue ;;
            esac
        fi
        missing="$missing$package|$why"$'\n'
    done <<<"$packages"
}

list_missing() {
    local package why
    while IFS='|' read -r package why; do
        [ -z "$package" ] || printf '  %-18s %s\n' "$package" "$why"
    done <<<"$missing"
}

installed_version() { dpkg-query -W -f='${db:Status-Status} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^installed //p'; }
version_available() { apt-cache madison "$1" 2>/dev/null | awk -F' *[|] *' -v v="$2" '$2 == v { found = 1 } END { exit !found }'; }

# Debian 12 ships QEMU 7.2; its backports have 10. Uses the mirror that apt already uses, and its key.
add_backports() { # add_backports CODENAME
    local suite=$1-backports targets uri signed_by file=/etc/apt/sources.list.d/sterna-backports.sources
    targets=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages')
    if grep -q " $suite\$" <<<"$targets"; then
        return 0
    fi
    uri=$(sed -n "s| $1\$||p" <<<"$targets" | sed -n 1p)
    [ -n "$uri" ] || die "apt has no source for $1: add one, or $suite, to /etc/apt/sources.list"
    signed_by=/usr/share/keyrings/debian-archive-keyring.gpg
    say "setup: adding $suite of $uri as $file (QEMU $min_qemu is not in $1 itself)"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "$suite"
        [ ! -e "$signed_by" ] || printf 'Signed-By: %s\n' "$signed_by"
    } >"$file"
}

# QEMU's packages must all be of one version: its loadable parts refuse any other. Prints the apt arguments that bring
# the missing ones to the version of an installed qemu-utils, or, where that is not to be had, all of them to the suite's.
qemu_arguments() { # qemu_arguments SUITE
    local have family=(qemu-system-x86 qemu-system-common qemu-system-data qemu-utils) package
    have=$(installed_version qemu-utils)
    if [ -n "$have" ] && [ "$(qemu_major qemu-img)" -ge "$min_qemu" ] && version_available qemu-system-x86 "$have"; then
        say "setup: QEMU $have, to match the qemu-utils that is installed" >&2
        printf '%s\n' "${family[@]/%/=$have}"
        return
    fi
    for package in qemu-block-extra qemu-system-gui qemu-system-modules-opengl qemu-system-modules-spice; do
        [ -z "$(installed_version "$package")" ] || family+=("$package")
    done
    [ -z "$have" ] || say "setup: qemu-utils $have is brought to one version with qemu-system-x86, that of $1" >&2
    printf '%s\n' "${family[@]/%//$1}"
}

install_missing() {
    # shellcheck source=/dev/null
    . /etc/os-release
    [ "${ID:-}" = debian ] || die "this system is ${PRETTY_NAME:-unknown}, and only Debian 12 and 13 are known here; install by hand:
$(list_missing)"
    local suite=${VERSION_CODENAME:?} qemu=no names=() package why qemu_names
    while IFS='|' read -r package why; do
        case $package in
            '') ;;
            qemu-*) qemu=yes ;;
            *) names+=("$package") ;;
        esac
    done <<<"$missing"
    # Since Debian 13 the name says that its time_t has 64 bits.
    [ "$suite" = bookworm ] || names=("${names[@]/%libglib2.0-0/libglib2.0-0t64}")
    if [ "$qemu" = yes ] && [ "$suite" = bookworm ]; then
        add_backports "$suite"
        suite=$suite-backports
    fi
    export DEBIAN_FRONTEND=noninteractive
    # Without recommended packages: a display, firmware for UEFI and the like are not used.
    local install=(apt-get install -q -y --no-install-recommends)
    apt-get update -q
    [ "${#names[@]}" = 0 ] || "${install[@]}" "${names[@]}"
    if [ "$qemu" = yes ]; then
        qemu_names=$(qemu_arguments "$suite")
        mapfile -t names <<<"$qemu_names"
        # The suite as target, for what QEMU depends on: its firmware comes from backports too.
        "${install[@]}" -t "$suite" "${names[@]}"
    fi
}

setup_packages() {
    find_missing
    if [ -z "$missing" ]; then
        return 0
    fi
    if [ "$(id -u)" != 0 ]; then
        say "setup: these packages are missing, and installing them needs root:"
        list_missing
        say "Run:  sudo make setup"
        say "(Or by hand:  apt-get install --no-install-recommends $(cut -d'|' -f1 <<<"$missing" | xargs);"
        say " on Debian 12 take the qemu packages from bookworm-backports: QEMU must be $min_qemu or later.)"
        exit 1
    fi
    say "setup: installing"
    list_missing
    install_missing
    find_missing
    [ -z "$missing" ] || die "still missing after the installation:
$(list_missing)"
}

# A tap device is what a guest's network card is plugged into. udev makes its control node usable by everyone (opening
# it gives no right by itself: a tap can be made only in a network namespace one owns); a machine without udev, such as
# a container, keeps the kernel's default of root only.
setup_tun() {
    local node=/dev/net/tun
    if [ "$(id -u)" = 0 ]; then
        [ -e "$node" ] || modprobe tun 2>/dev/null || true
        [ -e "$node" ] || { say "setup: warning: no $node: guests will have no network (is the tun module there?)"; return 0; }
        case $(stat -c %a "$node") in
            *[67][67]) ;;
            *)
                say "setup: chmod 0666 $node, so that agents without root can plug guests' network cards in"
                chmod 0666 "$node" || say "setup: warning: that was refused; guests have a network only when run as root"
                ;;
        esac
    elif [ ! -w "$node" ]; then
        say "setup: $node is not usable by $(id -un): guests would have no network. Run:  sudo make setup"
        exit 1
    fi
}

setup_rust() {
    local channel
    channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$root_dir/rust-toolchain.toml")
    if ! as_user sh -c 'command -v cargo' >/dev/null; then
        say "setup: there is no Rust toolchain. As the user who builds, run one of:"
        say "  sudo apt-get install rustup && rustup toolchain install $channel       (Debian 13)"
        say "  the installer of https://rustup.rs, then  rustup toolchain install $channel"
        exit 1
    fi
    if ! (cd "$root_dir" && as_user cargo --version) >/dev/null 2>&1; then
        say "setup: this project is built with Rust $channel, which is not installed. Run:"
        say "  rustup toolchain install $channel --component rustfmt,clippy"
        exit 1
    fi
}

setup_cargo_tool() { # setup_cargo_tool NAME WHY [VERSION]
    if as_user sh -c "command -v $1" >/dev/null; then
        return 0
    fi
    say "setup: building $1 ($2); this takes minutes, once"
    (cd "$root_dir" && as_user cargo install --quiet --locked ${3:+--version "$3"} "$1")
}

# One test makes a client of the interface in Python, in an environment of its own below target/.
setup_python() {
    if python3 -c 'import ensurepip, venv' 2>/dev/null; then
        return 0
    fi
    if [ "$(id -u)" != 0 ]; then
        say "setup: a test needs Python with venv. Run:  sudo apt-get install python3-venv"
        exit 1
    fi
    say "setup: installing python3-venv (a test makes a Python client of the interface)"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3 python3-venv
}

# Tests import images from real servers. They are unpacked below target/, not installed: nothing shall listen for others.
setup_servers() {
    local to=$root_dir/target/servers
    [ ! -e "$to/complete" ] || return 0
    say 'setup: downloading nginx, pyftpdlib and nfs-ganesha (tests import images from them; they are unpacked, not installed)'
    # With lists of its own, so that neither root nor a recent `apt-get update` of the system's is needed.
    as_user sh -ec '
        rm -rf "$1" && mkdir -p "$1/apt/lists/partial" "$1/apt/archives/partial" && cd "$1"
        set -- -q -o "Dir::State=$1/apt" -o Dir::State::status=/var/lib/dpkg/status -o "Dir::Cache=$1/apt"
        [ "$(id -u)" != 0 ] || set -- "$@" -o APT::Sandbox::User=root
        apt-get "$@" update >apt/log 2>&1 || { cat apt/log >&2; exit 1; }
        apt-get "$@" download nginx python3-pyftpdlib >apt/log 2>&1 || { cat apt/log >&2; exit 1; }
        # Their libraries are those of their own release: all that is not installed here is unpacked with them.
        servers="python3-pyftpdlib nfs-ganesha nfs-ganesha-vfs"
        needed=$(apt-get "$@" -s --no-install-recommends install $servers | sed -n "s/^Inst \([^ ]*\) .*/\1/p")
        apt-get "$@" download $needed >apt/log 2>&1 || { cat apt/log >&2; exit 1; }
        for package in *.deb; do dpkg-deb -x "$package" .; done
        rm -rf apt *.deb
        touch complete
    ' sh "$to"
}

setup_packages
setup_tun
setup_rust
if [ "$mode" = test ] || [ "$mode" = soak ]; then
    setup_python
    setup_servers
    setup_cargo_tool cargo-nextest 'runs the tests'
    setup_cargo_tool cargo-deny 'checks the licences and advisories of what is depended on'
fi
if [ "$mode" = deb ]; then
    setup_cargo_tool cargo-deb 'makes the Debian package' 3.8.0
fi
# The guest's kernel and tools are unpacked into its image, never installed here.
[ "$mode" = deb ] || [ ! -x "$root_dir/guest/build.sh" ] || as_user "$root_dir/guest/build.sh" --fetch
say "setup: everything is there ($(qemu-system-x86_64 --version | sed -n 1p))"
