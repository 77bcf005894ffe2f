# New host keys for OpenSSH's server in place of those that there are, of the same kinds. One for RSA may take as long as a boot: it is
# made behind the others, if there are others.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
set -e
make() {
    kind=${1##*/ssh_host_}
    $2 ssh-keygen -q -t "${kind%_key}" -N '' -f "$1" </dev/null >/dev/null
}
# The server has its keys in memory: it starts itself again when it is told to.
show() {
    if read -r server 2>/dev/null </run/sshd.pid && [ "$(cat "/proc/$server/comm" 2>/dev/null)" = sshd ]; then
        kill -HUP "$server" && return
    fi
    for service in ssh sshd; do systemctl try-restart "$service" 2>/dev/null || :; done
}
made= rsa=
for key in /etc/ssh/ssh_host_*_key; do
    [ -f "$key" ] || continue
    rm -f "$key" "$key.pub"
    case $key in
        *_rsa_key) rsa=$key ;;
        *)
            make "$key"
            made=yes
            ;;
    esac
done
if [ "$made" ] && [ "$rsa" ]; then
    (make "$rsa" nice && show) </dev/null >/dev/null 2>&1 &
elif [ "$rsa" ]; then
    make "$rsa"
    made=yes
fi
[ -z "$made" ] || show
