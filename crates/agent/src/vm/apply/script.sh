# $1: after so many seconds the program on standard input is killed, $2: so many bytes of what it prints last are shown.
# What it starts may outlive it. Its exit status is this one's; how much it printed is the last line of standard error.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HOME=${HOME:-/root}
export PATH HOME
umask 077
dir=
for base in /var/lib /tmp; do
    dir=$(mktemp -d "$base/sterna-apply.XXXXXX" 2>/dev/null) && break
done
[ -d "$dir" ] || { echo 'no directory can be made in /var/lib or /tmp' >&2; exit 1; }
trap 'rm -rf "$dir"' EXIT
cat >"$dir/script" && chmod 700 "$dir/script" && : >"$dir/output" || exit
cd /
umask 022
# In a session of its own, so that it is killed with all that it has started.
setsid "$dir/script" </dev/null >"$dir/output" 2>&1 &
script=$!
setsid sh -c 'sleep "$1"; [ -d "$2" ] && : >"$2/late" && kill -9 "-$3"' sh "$1" "$dir" "$script" </dev/null >/dev/null 2>&1 &
watchdog=$!
wait "$script"
status=$?
kill -9 "-$watchdog" 2>/dev/null || kill -9 "$watchdog" 2>/dev/null
late=ended
[ ! -e "$dir/late" ] || late=late
tail -c "$2" "$dir/output"
echo "sterna-apply $(($(wc -c <"$dir/output"))) $late" >&2
exit "$status"
