# $1: a user that there shall be.
id -u "$1" >/dev/null 2>&1 && exit
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if command -v useradd >/dev/null 2>&1; then exec useradd --create-home "$1"; fi
exec adduser -D "$1"
