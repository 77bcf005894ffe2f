#!/bin/bash
# Looks at a built package: what is in it, with which modes, and whether its units and scripts can be read.
#
#   packaging/check.sh FILE.deb
set -euo pipefail

deb=${1:?which package? packaging/check.sh FILE.deb}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
fail() { printf 'check: %s\n' "$*" >&2; exit 1; }

dpkg-deb --raw-extract "$deb" "$root"
while read -r mode path; do
    [ -e "$root/$path" ] || fail "$path is not in the package"
    [ "$(stat -c %a "$root/$path")" = "$mode" ] || fail "$path has the mode $(stat -c %a "$root/$path"), not $mode"
done <<'FILES'
755 usr/bin/sterna
755 usr/sbin/sterna-join
644 usr/lib/systemd/system/sterna-server.service
644 usr/lib/systemd/system/sterna-agent.service
644 etc/sterna/server.conf
644 etc/sterna/agent.conf
644 usr/share/bash-completion/completions/sterna
644 usr/share/fish/vendor_completions.d/sterna.fish
644 usr/share/man/man1/sterna.1.gz
644 usr/share/man/man1/sterna-vm-create.1.gz
644 usr/share/sterna/grafana/sterna.json
755 DEBIAN/postinst
755 DEBIAN/prerm
755 DEBIAN/postrm
FILES
for name in server agent; do
    grep -qx "/etc/sterna/$name.conf" "$root/DEBIAN/conffiles" || fail "$name.conf is no conffile"
done
for package in 'qemu-system-x86 (>= 1:10' 'qemu-utils (>= 1:10' adduser 'libc6 ('; do
    grep -q "^Depends:.*$package" "$root/DEBIAN/control" || fail "the package does not depend on $package"
done
for right in CAP_SETUID CAP_SETGID CAP_KILL; do
    grep -q "^AmbientCapabilities=.*$right" "$root/usr/lib/systemd/system/sterna-agent.service" ||
        fail "the agent cannot run QEMU as another user: its unit lacks $right"
done
grep -q 'adduser .* sterna-qemu$' "$root/DEBIAN/postinst" || fail 'postinst does not make the user sterna-qemu'
for script in "$root"/DEBIAN/{postinst,prerm,postrm} "$root/usr/sbin/sterna-join"; do
    sh -n "$script"
done
"$root/usr/bin/sterna" --version

# A purge forgets what was set up, and keeps the cloud. dpkg has removed the package's own files by then.
purged=$root/purged
mkdir -p "$purged/etc/sterna" "$purged/var/lib/sterna/server/store"
touch "$purged/etc/sterna/join.token" "$purged/etc/sterna/ca.pem" "$purged/var/lib/sterna/server/store/store.db"
said=$(DPKG_ROOT=$purged sh "$root/DEBIAN/postrm" purge)
[ ! -e "$purged/etc/sterna" ] || fail "a purge leaves $(ls "$purged/etc/sterna") in /etc/sterna"
[ -e "$purged/var/lib/sterna/server/store/store.db" ] || fail 'a purge removes the store'
case $said in
    *'rm -r /var/lib/sterna'*) ;;
    *) fail "a purge does not say how to forget the data, but: $said" ;;
esac
DPKG_ROOT=$purged sh "$root/DEBIAN/postrm" purge >/dev/null || fail 'a second purge fails'

if command -v systemd-analyze >/dev/null; then
    for name in server agent; do
        sed "s#/usr/bin/sterna#$root/usr/bin/sterna#" "$root/usr/lib/systemd/system/sterna-$name.service" \
            >"$root/sterna-$name.service"
        systemd-analyze verify --man=no "$root/sterna-$name.service"
        systemd-analyze security --offline=true "$root/sterna-$name.service" 2>/dev/null | tail -n1
    done
fi
# sterna-join has no manual page: `sterna-join --help` is its manual. The program has its libraries in it, as Rust's do. The changes are
# under the name by which README names them, and this is no upload to Debian.
if command -v lintian >/dev/null; then
    lintian --allow-root --fail-on error,warning --suppress-tags \
        no-manual-page,embedded-library,wrong-name-for-upstream-changelog,initial-upload-closes-no-bugs "$deb"
else
    echo 'check: lintian is not installed: its rules were NOT checked'
fi
printf 'check: %s is as it should be (%s)\n' "$deb" "$(du -h "$deb" | cut -f1)"
