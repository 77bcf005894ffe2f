# The guest forgets who it is: what all that begin as a copy of its disk would share, and each must make anew. What nothing would
# make again is refused before anything is changed; the last line that is printed then says what is missing.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
fail() { echo "$1"; exit 1; }

[ "$(uname -s)" = Linux ] || fail "it runs $(uname -s): only Linux is generalised; prepare it by its own means, and make an image of it"

systemd=
if [ -d /run/systemd/system ]; then systemd=yes; fi
cloud_init=
if command -v cloud-init >/dev/null && [ ! -e /etc/cloud/cloud-init.disabled ]; then cloud_init=yes; fi

# SSH host keys: who makes them again at the next boot?
keys=
for key in /etc/ssh/ssh_host_*_key /etc/dropbear/dropbear_*_host_key; do
    if [ -e "$key" ]; then keys="$keys $key"; fi
done
makes_keys=
if [ "$cloud_init" ] && ! cat /etc/cloud/cloud.cfg /etc/cloud/cloud.cfg.d/*.cfg 2>/dev/null | grep -q '^ssh_deletekeys: *\(false\|0\|no\)'; then
    makes_keys=cloud-init
elif ls /usr/lib/systemd/system/sshd-keygen*.service /lib/systemd/system/sshd-keygen*.service >/dev/null 2>&1; then
    makes_keys=sshd-keygen
elif [ "$systemd" ] && command -v ssh-keygen >/dev/null; then
    makes_keys=unit
elif grep -qs 'ssh-keygen -A' /etc/init.d/sshd /etc/init.d/ssh; then
    makes_keys=init
elif grep -qs 'dropbear.*-R' /etc/init.d/dropbear /etc/inittab /etc/init.d/rcS; then
    makes_keys=dropbear
fi
if [ "$keys" ] && [ ! "$makes_keys" ]; then
    fail 'nothing would make its SSH host keys again at the next boot: install cloud-init, or have its init run `ssh-keygen -A`'
fi

if [ "$keys" ] && [ "$makes_keys" = unit ]; then
    cat >/etc/systemd/system/sterna-host-keys.service <<'END' || fail 'no unit can be written to /etc/systemd/system'
[Unit]
Description=Make SSH host keys that are missing
Before=ssh.service sshd.service
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key

[Service]
Type=oneshot
ExecStart=/usr/bin/env ssh-keygen -A

[Install]
WantedBy=multi-user.target
END
    chmod 644 /etc/systemd/system/sterna-host-keys.service
    systemctl enable sterna-host-keys.service || {
        rm -f /etc/systemd/system/sterna-host-keys.service
        fail 'the unit that makes SSH host keys cannot be enabled'
    }
fi
if [ "$cloud_init" ]; then
    cloud-init clean --logs --seed || fail 'cloud-init clean has failed'
    rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* /etc/systemd/network/10-cloud-init-*.network \
        /etc/NetworkManager/system-connections/cloud-init-*.nmconnection /etc/udev/rules.d/70-persistent-net.rules
fi
for key in $keys; do rm -f "$key" "$key.pub" || fail "$key cannot be removed"; done

# Empty, not gone: whoever makes it anew at the boot finds out by that, and by systemd it may be on a disk that is read only then.
if [ -f /etc/machine-id ] && [ ! -L /etc/machine-id ]; then
    : >/etc/machine-id || fail '/etc/machine-id cannot be emptied'
fi
if [ -f /var/lib/dbus/machine-id ] && [ ! -L /var/lib/dbus/machine-id ]; then rm -f /var/lib/dbus/machine-id; fi
if [ -f /etc/hostname ] && [ ! -L /etc/hostname ]; then echo localhost >/etc/hostname; fi

rm -f /var/lib/dhcp/*.leases /var/lib/dhclient/*.lease* /var/lib/dhcpcd/*.lease /var/lib/NetworkManager/*.lease \
    /var/lib/NetworkManager/secret_key /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /var/lib/misc/random-seed \
    /var/lib/urandom/random-seed /root/.bash_history /root/.ash_history
rm -rf /var/log/journal/*
find /var/log -xdev -type f -exec sh -c 'for file; do : >"$file"; done' sh {} + 2>/dev/null
rm -rf /tmp/.[!.]* /tmp/* /var/tmp/* 2>/dev/null
sync
