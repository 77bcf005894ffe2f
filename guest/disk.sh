# shellcheck shell=bash
# Disks that a BIOS boots, and UEFI where $efi says, made of files without root and without mounting anything. Sourced by the
# builders beside this.

# Files of the image belong to root also if an ordinary user builds it, where user namespaces are allowed.
seen_as_root() {
    if [ "$(id -u)" != 0 ] && unshare -r true 2>/dev/null; then unshare -r "$@"; else "$@"; fi
}

byte() { printf '%b' "\\x$1"; }
little_endian() { # little_endian NUMBER: four bytes
    local hex
    hex=$(printf '%08x' "$1")
    byte "${hex:6:2}" && byte "${hex:4:2}" && byte "${hex:2:2}" && byte "${hex:0:2}"
}
partition() { # partition ACTIVE TYPE START SECTORS: an entry of the partition table, in LBA only
    byte "$1" && byte fe && byte ff && byte ff && byte "$2" && byte fe && byte ff && byte ff
    little_endian "$3" && little_endian "$4"
}

# A partition with boot loader and kernel, and one labelled guest-root with the tree. $work is a directory for parts; $efi, if
# set, is the boot loader that UEFI starts.
make_disk() { # make_disk RAW BOOT_MIB DISK_MIB KERNEL INITRD ARGUMENTS TREE MKE2FS_OPTION…
    local raw=$1 boot_mib=$2 disk_mib=$3 kernel=$4 initrd=$5 arguments=$6 tree=$7
    local start=2048 boot_sectors=$((boot_mib * 2048)) root_sectors=$(((disk_mib - boot_mib - 1) * 2048))
    truncate -s "${boot_mib}M" "$work/boot.img"
    mformat -i "$work/boot.img" -T "$boot_sectors" -h 64 -s 32 -H "$start" -c 16 ::
    syslinux --install "$work/boot.img"
    printf 'DEFAULT guest\nPROMPT 0\nLABEL guest\nKERNEL /vmlinuz\nINITRD /initrd\nAPPEND %s\n' "${arguments//$'\n'/ }" >"$work/syslinux.cfg"
    mcopy -i "$work/boot.img" "$work/syslinux.cfg" ::syslinux.cfg
    mcopy -i "$work/boot.img" "$kernel" ::vmlinuz
    mcopy -i "$work/boot.img" "$initrd" ::initrd
    if [ -n "${efi:-}" ]; then
        mmd -i "$work/boot.img" ::EFI ::EFI/BOOT ::loader ::loader/entries
        mcopy -i "$work/boot.img" "$efi" ::EFI/BOOT/BOOTX64.EFI
        printf 'linux /vmlinuz\ninitrd /initrd\noptions %s\n' "${arguments//$'\n'/ }" >"$work/guest.conf"
        mcopy -i "$work/boot.img" "$work/guest.conf" ::loader/entries/guest.conf
    fi

    truncate -s "$((root_sectors * 512))" "$work/root.img"
    seen_as_root mke2fs -q -t ext4 -b 4096 -m 0 -O ^resize_inode -E root_owner=0:0,lazy_itable_init=0 "${@:8}" \
        -L guest-root -d "$tree" "$work/root.img"

    truncate -s "${disk_mib}M" "$raw"
    {
        head -c 440 /usr/lib/syslinux/mbr/mbr.bin | dd bs=440 count=1 conv=sync status=none
        little_endian $((0x53544552)) && byte 00 && byte 00
        partition 80 0e "$start" "$boot_sectors"
        partition 00 83 $((start + boot_sectors)) "$root_sectors"
    } | dd of="$raw" conv=notrunc status=none
    { byte 55 && byte aa; } | dd of="$raw" bs=1 seek=510 conv=notrunc status=none
    dd if="$work/boot.img" of="$raw" bs=1M seek=1 conv=notrunc,sparse status=none
    dd if="$work/root.img" of="$raw" bs=1M seek=$((1 + boot_mib)) conv=notrunc,sparse status=none
}
