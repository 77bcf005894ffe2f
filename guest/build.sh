#!/bin/bash
# Builds the test guest: a small disk image for QEMU (x86, BIOS and UEFI, virtio-blk), without root. See README.md beside this.
#
#   guest/build.sh OUTPUT.qcow2     builds the image; quick and without effect if nothing has changed
#   guest/build.sh --fetch          only downloads the packages that go into it
#
# GUEST_CACHE (default target/guest-cache) keeps downloads and what is compiled.
set -euo pipefail

guest_dir=$(cd "$(dirname "$0")" && pwd)
root_dir=$(dirname "$guest_dir")
cache=${GUEST_CACHE:-${CARGO_TARGET_DIR:-$root_dir/target}/guest-cache}
PATH=$PATH:/usr/sbin:/sbin

# What shortens the boot under emulation. Measured: self-tests of the kernel's ciphers take 0.4 s, the check of the
# timer's interrupt 0.3 s, and the initcalls named (probes for tracing, certificates for signed modules, a cipher's
# self-test, the speaker, 32-bit programs) 0.3 s, for nothing that is used here. The others save work of a kind that
# emulation makes dear (relocating the kernel, clearing pages, defences at each system call), less than the measurement's
# noise each. A panic stays where it is (panic=0), for QEMU's pvpanic device to tell.
kernel_arguments='console=ttyS0 quiet panic=0 cryptomgr.notests no_timer_check tsc=reliable nokaslr mitigations=off
init_on_alloc=0 random.trust_cpu=on
initcall_blacklist=init_kprobe_trace,load_system_certificate_list,crypto_kdf108_init,add_pcspkr,ia32_binfmt_init'

# Modules by the stage that loads them; names that this kernel lacks (or has built in) are left out.
modules_disk='virtio_pci virtio_blk'
modules_agent='virtio_console'
modules_network='virtio_net'
modules_iso9660='isofs nls_utf8'
modules_vfat='vfat nls_cp437 nls_ascii'
modules_late='button evdev virtio-rng virtio_balloon pvpanic-pci pvpanic-mmio'

# shellcheck source=guest/disk.sh
. "$guest_dir/disk.sh"

die() { printf 'guest: %s\n' "$*" >&2; exit 1; }

# ---------------------------------------------------------------------------------------------------------- packages
# apt as anyone: with its own lists, so that neither root nor a recent `apt-get update` of the system's is needed.
own_apt() {
    local options=(-q -o "Dir::State=$cache/apt" -o "Dir::State::status=/var/lib/dpkg/status" -o "Dir::Cache=$cache/apt")
    [ "$(id -u)" != 0 ] || options+=(-o APT::Sandbox::User=root)
    "$1" "${options[@]}" "${@:2}"
}

fetch() {
    if [ -e "$cache/debs/complete" ] && compgen -G "$cache/debs/systemd-boot-efi_*" >/dev/null; then
        return 0
    fi
    echo 'guest: downloading the kernel, busybox, the QEMU guest agent and a boot loader (they are unpacked, not installed)'
    local kernel
    rm -rf "$cache/debs"
    mkdir -p "$cache/debs" "$cache/apt/lists/partial" "$cache/apt/archives/partial"
    own_apt apt-get update >"$cache/apt/log" 2>&1 || { cat "$cache/apt/log" >&2 && die 'apt-get update failed'; }
    kernel=$(own_apt apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | sed -n 1p)
    [ -n "$kernel" ] || die 'apt knows no package linux-image-cloud-amd64: has this system Debian'\''s main archive for amd64?'
    (cd "$cache/debs" && own_apt apt-get download "$kernel" busybox-static qemu-guest-agent systemd-boot-efi)
    rm -rf "$cache/apt"
    touch "$cache/debs/complete"
}

unpack() {
    if [ -e "$cache/unpacked/complete" ] && [ "$cache/unpacked/complete" -nt "$cache/debs/complete" ]; then
        return 0
    fi
    local deb
    rm -rf "$cache/unpacked"
    mkdir -p "$cache/unpacked"
    for deb in "$cache"/debs/*.deb; do dpkg-deb -x "$deb" "$cache/unpacked"; done
    # Merged or not, one place: modules are looked for below lib.
    [ ! -d "$cache/unpacked/usr/lib/modules" ] || { mkdir -p "$cache/unpacked/lib" && mv "$cache/unpacked/usr/lib/modules" "$cache/unpacked/lib/"; }
    "$(busybox_path)" depmod -b "$cache/unpacked" "$(kernel_release)"
    touch "$cache/unpacked/complete"
}

busybox_path() { find "$cache/unpacked" -type f -name busybox -perm -u+x | sed -n 1p; }
kernel_release() { basename "$(echo "$cache"/unpacked/boot/vmlinuz-*)" | sed 's/^vmlinuz-//'; }

# ------------------------------------------------------------------------------------------------------------- probe
# Linked statically and to fixed addresses, as the guest has no libraries for it and no time for relocations. In a target
# directory of its own: other flags than the workspace's must not rebuild that.
build_probe() {
    (cd "$root_dir" && RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=s CARGO_PROFILE_RELEASE_PANIC=abort CARGO_PROFILE_RELEASE_LTO=true \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_STRIP=symbols \
        cargo build --quiet --locked --release --package probe \
        --target-dir "$cache/cargo" --target x86_64-unknown-linux-gnu)
    probe=$cache/cargo/x86_64-unknown-linux-gnu/release/probe
}

# ------------------------------------------------------------------------------------------------------------ content
# Copies modules and what they depend on, unpacked, and writes their order of loading. Modules that an earlier stage has
# loaded are skipped.
install_modules() { # install_modules DIRECTORY GROUP MODULE…
    local to=$1 group=$2 base name path dependency
    base=$cache/unpacked/lib/modules/$(kernel_release)
    mkdir -p "$to"
    : >"$to/$group.order"
    for name in "${@:3}"; do
        # A line of modules.dep: the module, a colon, what it needs, nearest first.
        while read -r path; do
            for dependency in $path; do
                name=$(basename "$dependency" | sed 's/\.ko.*//')
                [ -z "${loaded[$name]:-}" ] || continue
                loaded[$name]=1
                case $dependency in
                    *.xz) "$(busybox_path)" xzcat "$base/$dependency" >"$to/$name.ko" ;;
                    *) cp "$base/$dependency" "$to/$name.ko" ;;
                esac
                # With the debug information goes the signature, which the kernel would check by RSA for each module.
                strip -g "$to/$name.ko"
                echo "$name.ko" >>"$to/$group.order"
            done
        done < <(grep -E "(^|/)$name\.ko[^ :]*:" "$base/modules.dep" | sed -n 1p | tr -d : | tr ' ' '\n' | tac | tr '\n' ' ' && echo)
    done
}

make_initramfs() { # make_initramfs FILE
    local tree=$work/initramfs
    mkdir -p "$tree"/{proc,sys,dev,disk}
    cp "$probe" "$tree/init"
    # shellcheck disable=SC2086 # lists of words
    install_modules "$tree/modules" disk $modules_disk
    # Not compressed: reading it is cheaper than unpacking it under emulation.
    (cd "$tree" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0) >"$1" 2>/dev/null
}

# A program with the shared libraries it names, at the places where its loader looks.
install_with_libraries() { # install_with_libraries PROGRAM TREE
    local library missing
    cp "$1" "$2/usr/sbin/"
    missing=$(ldd "$1" | awk '/not found/ { print $1 }' | xargs)
    [ -z "$missing" ] || die "$(basename "$1") needs the libraries $missing, which this system lacks: run  make setup"
    mkdir -p "$2/lib" "$2/lib64"
    for library in $(ldd "$1" | awk '$2 == "=>" { print $3 }'); do cp -L "$library" "$2/lib/"; done
    cp -L /lib64/ld-linux-x86-64.so.2 "$2/lib64/"
}

make_root() { # make_root TREE
    local tree=$1 file
    mkdir -p "$tree"/{bin,sbin,etc/acpi/PWRF,usr/sbin,usr/bin,lib,proc,sys,dev,run,tmp,root,data,disk}
    cp "$busybox" "$tree/bin/busybox"
    ln -s busybox "$tree/bin/sh"
    ln -s ../bin/busybox "$tree/sbin/init"
    ln -s ../bin/busybox "$tree/sbin/hwclock"
    cp "$probe" "$tree/bin/probe"
    for file in boot-rest dhcp-event inittab; do cp "$guest_dir/files/$file" "$tree/etc/"; done
    cp "$guest_dir/files/apply-network" "$tree/bin/"
    cp "$guest_dir/files/shutdown" "$tree/sbin/"
    ln -s /sbin/shutdown "$tree/etc/acpi/PWRF/00000080"
    ln -s /run/resolv.conf "$tree/etc/resolv.conf"
    ln -s /run/hostname "$tree/etc/hostname"
    echo 'root::0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
    echo 'root:x:0:' >"$tree/etc/group"
    install_with_libraries "$cache/unpacked/usr/sbin/qemu-ga" "$tree"
    # shellcheck disable=SC2086 # lists of words
    {
        install_modules "$tree/lib/modules" agent $modules_agent
        install_modules "$tree/lib/modules" network $modules_network
        install_modules "$tree/lib/modules" iso9660 $modules_iso9660
        install_modules "$tree/lib/modules" vfat $modules_vfat
        install_modules "$tree/lib/modules" late $modules_late
    }
}

# Changes if anything does that the image is made of.
stamp() {
    {
        cat "$guest_dir"/build.sh "$guest_dir"/disk.sh "$guest_dir"/files/* "$probe"
        ls "$cache/debs"
        ldd "$cache/unpacked/usr/sbin/qemu-ga" | awk '$2 == "=>" { print $3 }' | sort | xargs stat -Lc '%n %s %Y'
    } | sha256sum | cut -d' ' -f1
}

build() { # build OUTPUT
    local output=$1 now
    declare -gA loaded=()
    build_probe
    now=$(stamp)
    if [ -e "$output" ] && [ "$(cat "$output.stamp" 2>/dev/null)" = "$now" ]; then
        return 0
    fi
    busybox=$(busybox_path)
    work=$(mktemp -d "$cache/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    make_initramfs "$work/initrd"
    make_root "$work/root"
    efi=$cache/unpacked/usr/lib/systemd/boot/efi/systemd-bootx64.efi
    make_disk "$work/disk.raw" 20 64 "$cache/unpacked/boot/vmlinuz-$(kernel_release)" "$work/initrd" "$kernel_arguments" \
        "$work/root" -N 2048 -J size=4
    qemu-img convert -q -f raw -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
    mkdir -p "$(dirname "$output")"
    mv -f "$work/disk.qcow2" "$output"
    echo "$now" >"$output.stamp"
    echo "guest: $output ($(du -h "$output" | cut -f1), kernel $(kernel_release))"
}

case ${1:-} in
    --fetch) fetch ;;
    '' | -*) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *)
        for tool in dpkg-deb strip mformat mcopy syslinux mke2fs qemu-img cargo; do
            command -v "$tool" >/dev/null || die "the command $tool is missing: run  make setup"
        done
        fetch
        unpack
        build "$1"
        ;;
esac
