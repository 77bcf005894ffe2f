# $1: a word for this build. Alone, it says how far it is. With more it begins: $2: whether there is a script, on standard input;
# $3: after so many seconds that is killed; $4: so many bytes of what it prints last are kept; $5, $6: run.sh and generalise.sh.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 077
# What runs now is noted where a reboot effaces it; what was begun, where it does not.
run=/run/sterna-build-$1
disk=/var/lib/sterna-build-$1
if [ -f "$run/result" ]; then cat "$run/result"; exit; fi
if [ -d "$run" ]; then
    if [ ! -s "$run/pid" ] || kill -0 "$(cat "$run/pid")" 2>/dev/null || [ -f "$run/result" ]; then
        echo under-way
    else
        echo 'lost - 0'; echo 'it was killed'
    fi
    exit
fi
if [ -d "$disk" ]; then echo 'lost - 0'; echo 'the guest was rebooted'; exit; fi
if [ $# -lt 6 ]; then echo not-begun; exit; fi
mkdir -p /var/lib && mkdir "$disk" || exit
if [ "$2" = script ]; then cat >"$disk/script" && chmod 700 "$disk/script" || exit; fi
echo "$6" >"$disk/generalise" && echo "$5" >"$disk/run" && mkdir "$run" || exit
# Not with the guest's agent: what is done may restart that.
if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
    systemd-run --quiet --collect --no-block --unit="sterna-build-$1" /bin/sh "$disk/run" "$run" "$disk" "$3" "$4" >&2 ||
        { rm -rf "$run" "$disk"; exit 1; }
else
    setsid /bin/sh "$disk/run" "$run" "$disk" "$3" "$4" </dev/null >/dev/null 2>&1 &
fi
echo under-way
