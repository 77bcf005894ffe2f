#!/bin/bash
# Builds a Debian with real cloud-init as a disk image for QEMU (x86, BIOS), for tests behind `make soak`. Takes minutes.
#
#   guest/debian.sh OUTPUT.qcow2     builds the image; without effect if nothing has changed
#
# Of this system's own release, from Debian's main archive. Building it needs root.
set -euo pipefail

guest_dir=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
# shellcheck source=guest/disk.sh
. "$guest_dir/disk.sh"

packages=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,udev,dbus,kmod,iproute2,netbase,sudo,openssh-client
packages+=,cloud-init,qemu-guest-agent

die() { printf 'debian: %s\n' "$*" >&2; exit 1; }

# What a guest under emulation has no time for: drivers that it does not need, and keys of every kind.
# shellcheck disable=SC2016 # mmdebstrap gives it the tree as $1
customize='
set -e
printf "MODULES=list\\n" >"$1/etc/initramfs-tools/conf.d/sterna"
printf "virtio_pci\\nvirtio_blk\\next4\\n" >>"$1/etc/initramfs-tools/modules"
chroot "$1" update-initramfs -u
printf "LABEL=guest-root / ext4 defaults 0 1\\n" >"$1/etc/fstab"
printf "%s\\n" "datasource_list: [NoCloud, ConfigDrive, None]" "ssh_genkeytypes: [ed25519]" "resize_rootfs: false" "locale: false" \
    >"$1/etc/cloud/cloud.cfg.d/99-sterna.cfg"
chroot "$1" systemctl enable systemd-networkd
: >"$1/etc/machine-id"
'

build() { # build OUTPUT
    [ "$(id -u)" = 0 ] || die "building the image needs root: run  sudo guest/debian.sh $1  once"
    local output=$1 root release
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    work=$(mktemp -d "$(dirname "$output")/debian.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    root=$work/root
    mmdebstrap --variant=apt --include="$packages" --aptopt='Acquire::Languages "none"' \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --customize-hook="$customize" "$release" "$root" "deb http://deb.debian.org/debian $release main"
    make_disk "$work/disk.raw" 96 1536 "$root"/boot/vmlinuz-* "$root"/boot/initrd.img-* \
        'root=LABEL=guest-root rw console=ttyS0 quiet mitigations=off' "$root"
    qemu-img convert -q -f raw -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
    mv -f "$work/disk.qcow2" "$output"
    cat "$guest_dir"/debian.sh "$guest_dir"/disk.sh >"$output.made-by"
    echo "debian: $output ($(du -h "$output" | cut -f1))"
}

case ${1:-} in
    '' | -*) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *)
        for tool in mmdebstrap mformat mcopy syslinux mke2fs qemu-img; do
            command -v "$tool" >/dev/null || die "the command $tool is missing: run  scripts/setup.sh soak"
        done
        mkdir -p "$(dirname "$1")"
        if ! cat "$guest_dir"/debian.sh "$guest_dir"/disk.sh | cmp -s - "$1.made-by" || [ ! -e "$1" ]; then build "$1"; fi
        ;;
esac
