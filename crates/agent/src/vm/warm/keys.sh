# New host keys for OpenSSH's server and for dropbear in place of those that there are, of the same kinds. One for RSA may take as
# long as a boot: it is made behind the others, if there are others.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
set -e
make() {
    case $1 in
        */dropbear_*)
            kind=${1##*/dropbear_}
            $2 dropbearkey -t "${kind%_host_key}" -f "$1" </dev/null >/dev/null 2>&1
            ;;
        *)
            kind=${1##*/ssh_host_}
            $2 ssh-keygen -q -t "${kind%_key}" -N '' -f "$1" </dev/null >/dev/null
            ;;
    esac
}
runs() {
    read -r server 2>/dev/null <"$1" && [ "$(cat "/proc/$server/comm" 2>/dev/null)" = "$2" ]
}
# The server has its keys in memory: it starts itself again when it is told to.
show_openssh() {
    runs /run/sshd.pid sshd && kill -HUP "$server" && return
    for service in ssh sshd; do systemctl try-restart "$service" 2>/dev/null || :; done
}
# So has dropbear, which does not: who started it starts it again.
show_dropbear() {
    systemctl try-restart dropbear 2>/dev/null && return
    runs /var/run/dropbear.pid dropbear || return 0
    for script in /etc/init.d/dropbear /etc/init.d/S50dropbear; do
        [ -x "$script" ] && "$script" restart </dev/null >/dev/null 2>&1 && return
    done
    # What keeps it in the foreground watches it. Nobody watches one that went behind by itself: it is called as it was.
    called=$(tr '\0' '\n' <"/proc/$server/cmdline")
    kill "$server" || return 0
    if echo "$called" | grep -q -e '^-[A-Za-z]*F'; then return; fi
    for _ in 1 2 3 4 5; do
        [ ! -d "/proc/$server" ] || sleep 1
    done
    echo "$called" | tr '\n' '\0' | xargs -0 env >/dev/null 2>&1 || :
}
show() {
    [ -z "$openssh" ] || show_openssh
    [ -z "$dropbear" ] || show_dropbear
}
made= rsa= openssh= dropbear=
for key in /etc/ssh/ssh_host_*_key /etc/dropbear/dropbear_*_host_key; do
    [ -f "$key" ] || continue
    case $key in
        */dropbear_*)
            command -v dropbearkey >/dev/null || continue
            dropbear=yes
            ;;
        *) openssh=yes ;;
    esac
    rm -f "$key" "$key.pub"
    case $key in
        *_rsa_key | *_rsa_host_key) rsa="$rsa $key" ;;
        *)
            make "$key"
            made=yes
            ;;
    esac
done
make_rsa() {
    for key in $rsa; do make "$key" "$1"; done
}
if [ "$made" ] && [ "$rsa" ]; then
    (make_rsa nice && show) </dev/null >/dev/null 2>&1 &
elif [ "$rsa" ]; then
    make_rsa
    made=yes
fi
[ -z "$made" ] || show
