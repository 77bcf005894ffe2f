#!/bin/bash
# Three machines on one: each a network namespace and a root directory, on one wire. Runs steps on them.
#
#   unshare [--map-root-user] --mount --net room.sh DIR
#
# DIR/steps/N-MACHINE are scripts, run in the order of N; DIR has what they leave. From the environment: STERNA (the
# program), GUEST (an image), PACKAGING (the package's files). In place of what a namespace cannot have, machines have the
# commands in `stubs/`. Ends with whatever was started.
set -euo pipefail

dir=$1
stubs=$(dirname "$0")/stubs
export PATH=$PATH:/usr/sbin:/sbin

# Whoever has its root in a machine belongs to it, QEMU included.
clear_room() {
    trap - EXIT TERM INT
    local process root
    for process in /proc/[0-9]*; do
        root=$(readlink "$process/root" 2>/dev/null) || continue
        case $root in "$dir"/m?) kill -KILL "${process#/proc/}" 2>/dev/null || true ;; esac
    done
}
trap clear_room EXIT
trap 'exit 143' TERM INT

# On a machine the package is installed, as its postinst does it, and nothing is started.
make_root() { # make_root MACHINE
    local root=$dir/$1 name
    mkdir -p "$root"/{etc/sterna,etc/systemd/system,opt/bin,opt/stubs,room,root,run,srv,tmp,var/lib,var/log}
    chmod 1777 "$root/tmp"
    for name in usr proc dev sys; do
        mkdir "$root/$name"
        mount --rbind "/$name" "$root/$name"
    done
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
    mkdir "$root/etc/alternatives"
    mount --bind /etc/alternatives "$root/etc/alternatives"
    cp /etc/ld.so.cache /etc/nsswitch.conf "$root/etc/"
    cp "$dir/passwd" "$dir/group" "$root/etc/"
    printf '%s' "$1" | md5sum | cut -d' ' -f1 >"$root/etc/machine-id"
    mount --bind "$stubs" "$root/opt/stubs"
    mount --bind "$dir/room" "$root/room"
    for name in "$STERNA:sterna" "$PACKAGING/sterna-join:sterna-join"; do
        touch "$root/opt/bin/${name##*:}"
        mount --bind "${name%:*}" "$root/opt/bin/${name##*:}"
    done
    cp "$PACKAGING"/*.conf "$root/etc/sterna/"
    cp "$PACKAGING"/*.service "$root/etc/systemd/system/"
    cp "$PACKAGING/debian/postinst" "$root/opt/postinst"
}

# Where root is root, the daemons are the users that their units name; an ordinary user is all of them.
make_users() {
    local server=0 agent=0
    if [ "$(wc -l </proc/self/uid_map)" = 1 ] && grep -q '^ *0 *0 *4294967295$' /proc/self/uid_map; then
        server=64001 agent=64002
    fi
    printf '%s\n' root:x:0:0:root:/root:/bin/sh "sterna:x:$server:$server::/:/bin/sh" \
        "sterna-agent:x:$agent:$agent::/:/bin/sh" >"$dir/passwd"
    printf '%s\n' root:x:0: "sterna:x:$server:" "sterna-agent:x:$agent:" >"$dir/group"
}

# A machine is a process that waits, in its network and its root; whoever wants to be there enters by it.
start_machine() { # start_machine MACHINE NUMBER
    local machine=$1 address=192.0.2.1$2/24
    ip netns add "$machine"
    ip link add "$machine" type veth peer name eth0 netns "$machine"
    ip link set "$machine" master wire up
    ip -n "$machine" address add "$address" dev eth0
    ip -n "$machine" link set lo up
    ip -n "$machine" link set eth0 up
    make_root "$machine"
    nsenter --net="/run/netns/$machine" chroot "$dir/$machine" sleep infinity &
    echo $! >"$dir/room/$machine.pid"
    disown
    on "$machine" 'postinst configure' /opt/postinst configure
}

on() { # on MACHINE WHAT COMMAND…
    local machine=$1 what=$2
    shift 2
    printf '== %s: %s\n' "$machine" "$what"
    env -i HOME=/root PATH=/opt/stubs:/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
        nsenter --net="/run/netns/$machine" chroot "$dir/$machine" /bin/sh -c 'cd /root && exec "$@"' sh "$@"
}

mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p "$dir/room/shared"
cp "$GUEST" "$dir/room/guest.qcow2"
make_users
ip link set lo up
ip link add wire type bridge
ip link set wire up
for number in 1 2 3; do start_machine "m$number" "$number"; done
for step in $(cd "$dir/steps" && printf '%s\n' * | sort -n); do
    machine=${step#*-}
    cp "$dir/steps/$step" "$dir/$machine/room/step"
    # Waited for, so that a signal is heard at once.
    on "$machine" "step ${step%-*}" sh -eux /room/step &
    wait $!
done
for process in /proc/[0-9]*; do
    case $(readlink "$process/root" 2>/dev/null):$(cat "$process/comm" 2>/dev/null) in
        "$dir"/m?:sterna-vm) sed -n 's/^Uid:\t\([0-9]*\).*/QEMU is user \1/p; s/^CapEff:\t/QEMU has the rights /p' "$process/status" ;;
    esac
done
