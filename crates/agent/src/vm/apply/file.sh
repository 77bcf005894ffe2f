# $1: a path, $2: the mode, $3: the owner of the file that gets standard input for its content, as a whole or not at all.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
[ ! -d "$1" ] || { echo "$1 is a directory" >&2; exit 1; }
(umask 022 && mkdir -p "$(dirname "$1")") || exit
umask 077
new=$(mktemp "$1.XXXXXX") || exit
trap 'rm -f "$new"' EXIT
cat >"$new" && chown "$3" "$new" && chmod "$2" "$new" && mv -f "$new" "$1" || exit
! command -v restorecon >/dev/null 2>&1 || restorecon "$1"
