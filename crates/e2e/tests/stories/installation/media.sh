#!/bin/bash
# Makes two media of the test guest and Debian's boot loader, without root:
#
#   media.sh GUEST.qcow2 DIRECTORY
#
# DIRECTORY/installer.iso boots without a question, writes a bootable system to the first disk and reboots.
# DIRECTORY/rescue.iso says who it is and leaves the boot to the next device.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
guest=$(realpath "$1")
cd "$2"
work=$(mktemp -d work.XXXXXX)
trap 'rm -rf "$work"' EXIT
boot=1048576 # where its first partition begins, in bytes
root=22020096 # and the second one

iso() { # iso NAME DIRECTORY: makes a medium that boots what isolinux.cfg in the directory says
    cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$2/"
    xorriso -as mkisofs -quiet -V "${1^^}" -o "$1.iso" -b isolinux.bin -c boot.cat \
        -no-emul-boot -boot-load-size 4 -boot-info-table "$2" 2>/dev/null
}

qemu-img convert -O raw "$guest" "$work/disk.raw"
of_boot() { mcopy -i "$work/disk.raw@@$boot" "::$1" "$2"; }

# --------------------------------------------------------------------------------------------------------- installer
mkdir -p "$work/installer" "$work/tree/bin" "$work/tree/system"
of_boot vmlinuz "$work/installer/vmlinuz"
of_boot initrd "$work/initrd"
of_boot syslinux.cfg "$work/syslinux.cfg"
debugfs -R "dump /bin/busybox $work/tree/bin/busybox" "$work/disk.raw?offset=$root" 2>/dev/null
chmod 755 "$work/tree/bin/busybox"
# What is not zero of the system, in parts that are named after their places.
split -b 1M -a 4 --numeric-suffixes=1000 "$work/disk.raw" "$work/tree/system/"
for part in "$work"/tree/system/*; do
    ! cmp -s -n 1048576 "$part" /dev/zero || rm "$part"
done
cat >"$work/tree/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
echo 'installer: begins' >/dev/ttyS0
while read -r module; do $b insmod "/modules/$module"; done </modules/disk.order
until [ -b /dev/vda ]; do $b usleep 20000; done
for part in /system/*; do
    $b dd if="$part" of=/dev/vda bs=1M seek=$((${part##*/} - 1000)) conv=notrunc 2>/dev/null
done
$b sync
echo 'installer: done' >/dev/ttyS0
$b reboot -f
INIT
chmod 755 "$work/tree/init"
# The second archive is laid over the guest's own, whose modules it uses.
{ cat "$work/initrd" && (cd "$work/tree" && find . | LC_ALL=C sort | ./bin/busybox cpio -o -H newc -R 0:0 2>/dev/null); } >"$work/installer/initrd"
arguments=$(sed -n 's/^APPEND //p' "$work/syslinux.cfg")
printf 'DEFAULT install\nPROMPT 0\nLABEL install\nKERNEL vmlinuz\nINITRD initrd\nAPPEND %s\n' "$arguments" >"$work/installer/isolinux.cfg"
iso installer "$work/installer"

# ------------------------------------------------------------------------------------------------------------ rescue
mkdir "$work/rescue"
printf 'SAY rescue: boots the disk\nDEFAULT disk\nPROMPT 0\nLABEL disk\nLOCALBOOT -1\n' >"$work/rescue/isolinux.cfg"
iso rescue "$work/rescue"
