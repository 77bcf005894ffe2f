# Waits until the guest has ended its boot, and has it write what it has.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if command -v cloud-init >/dev/null; then cloud-init status --wait; fi >/dev/null 2>&1
if command -v systemctl >/dev/null; then systemctl is-system-running --wait; else sleep 3; fi >/dev/null 2>&1
sync
