# Starts what waits in the guest to be told who it is: whoever starts from its memory then needs no new process. It reads a line from
# a pipe in a folder that is closed to others; that it has opened it is seen by the pipe's new name.
# $1: it for perl, $2: it for python3, $3: the script for new host keys.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 077
folder=/run/sterna-identity
# One that an agent left which ended in between.
if read -r left 2>/dev/null <"$folder/pid" && grep -q "$folder" "/proc/$left/cmdline"; then kill "$left"; fi 2>/dev/null
rm -rf "$folder"
mkdir "$folder" && echo $$ >"$folder/pid" && mkfifo "$folder/pipe" || exit
if command -v perl >/dev/null; then
    exec perl -e "$1" "$folder" "$3"
elif command -v python3 >/dev/null; then
    exec python3 -c "$2" "$folder" "$3"
elif command -v probe >/dev/null; then
    exec probe identity "$folder"
fi
echo 'neither perl nor python3 is there to wait' >&2
exit 1
