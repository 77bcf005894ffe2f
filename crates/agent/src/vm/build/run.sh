# $1: where it is noted how far it is, $2: where the script is, $3: its time in seconds, $4: how many bytes of its output are kept.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HOME=${HOME:-/root}
export PATH HOME
run=$1 disk=$2 bytes=0
umask 077
echo $$ >"$run/pid"
finish() { # finish WORD STATUS MESSAGE
    { echo "$1 $2 $bytes"; echo "$3"; [ ! -f "$disk/output" ] || tail -c "$keep" "$disk/output"; } >"$run/part"
    rm -rf "$disk"
    sync
    mv "$run/part" "$run/result"
    exit
}
keep=$4
# The end of the boot.
if command -v cloud-init >/dev/null; then cloud-init status --wait; fi >/dev/null 2>&1
if [ -d /run/systemd/system ]; then systemctl is-system-running --wait; else sleep 3; fi >/dev/null 2>&1
if [ -f "$disk/script" ]; then
    cd /
    umask 022
    setsid "$disk/script" </dev/null >"$disk/output" 2>&1 &
    script=$!
    setsid sh -c 'sleep "$1"; [ -d "$2" ] && : >"$2/late" && kill -9 "-$3"' sh "$3" "$disk" "$script" </dev/null >/dev/null 2>&1 &
    watchdog=$!
    wait "$script"
    status=$?
    kill -9 "-$watchdog" 2>/dev/null || kill -9 "$watchdog" 2>/dev/null
    umask 077
    bytes=$(($(wc -c <"$disk/output")))
    if [ -e "$disk/late" ]; then finish late "$status" ''; fi
    if [ "$status" != 0 ]; then finish script "$status" ''; fi
fi
if sh "$disk/generalise" </dev/null >"$run/said" 2>&1; then
    finish done 0 ''
fi
finish generalise 1 "$(tail -n 1 "$run/said")"
