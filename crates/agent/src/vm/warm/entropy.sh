# New random numbers: what is on standard input is mixed into the kernel's pool, and its generator takes a new key from there
# at once (RNDRESEEDCRNG). Where there is no program that can ask for that, this fails.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if command -v perl >/dev/null; then
    exec perl -e '
        local $/; my $seed = <STDIN>;
        length($seed) >= 64 or die "too few bytes\n";
        open(my $pool, "+<", "/dev/urandom") or die "$!\n";
        syswrite($pool, $seed) == length($seed) or die "$!\n";
        ioctl($pool, 0x5207, 0) or die "RNDRESEEDCRNG: $!\n"'
elif command -v python3 >/dev/null; then
    exec python3 -c '
import fcntl, os, sys
seed = sys.stdin.buffer.read()
pool = os.open("/dev/urandom", os.O_RDWR)
assert len(seed) >= 64 and os.write(pool, seed) == len(seed)
fcntl.ioctl(pool, 0x5207)'
elif command -v probe >/dev/null; then
    exec probe reseed
fi
echo 'neither perl nor python3 is there to reseed the random numbers with' >&2
exit 1
