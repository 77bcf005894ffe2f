use strict;
my ($folder, $keys) = @ARGV;
open(my $pipe, "+<", "$folder/pipe") or die "pipe: $!\n";
rename("$folder/pipe", "$folder/told-$$") or die "pipe: $!\n";
my ($seed, $time, $name, $machine, @cards) = split(" ", scalar(<$pipe>));
$seed = pack("H*", $seed);
length($seed) >= 64 or die "too few bytes\n";
open(my $pool, "+<", "/dev/urandom") or die "random numbers: $!\n";
syswrite($pool, $seed) == length($seed) or die "random numbers: $!\n";
ioctl($pool, 0x5207, 0) or die "RNDRESEEDCRNG: $!\n";
# clock_settime, which perl has no name for.
my ($seconds, $nanos) = split(/\./, $time);
my $to = pack("q q", $seconds, $nanos);
syscall(227, 0, $to) == 0 or die "time: $!\n";
sub put {
    my ($file, $word) = @_;
    open(my $out, ">", $file) or die "$file: $!\n";
    print $out "$word\n" and close($out) or die "$file: $!\n";
}
put("/proc/sys/kernel/hostname", $name);
-f $_ and put($_, $name) for "/etc/hostname", "/run/hostname";
-f $_ && !-l $_ and put($_, $machine) for "/etc/machine-id", "/var/lib/dbus/machine-id";
if (-d "/etc/ssh") { system("/bin/sh", "-c", $keys) == 0 or die "host keys: status $?\n" }
socket(my $asked, 2, 2, 0) or die "socket: $!\n";
while (my ($present, $mac, $address) = splice(@cards, 0, 3)) {
    my $card;
    for my $path (glob("/sys/class/net/*")) {
        open(my $file, "<", "$path/address") or next;
        chomp(my $has = <$file> // "");
        $has eq $present || $has eq $mac and ($card) = $path =~ m{([^/]+)$};
    }
    defined($card) or die "there is no interface with the MAC address $present\n";
    # SIOCSIFHWADDR, then up: SIOCGIFFLAGS and SIOCSIFFLAGS.
    ioctl($asked, 0x8924, pack("a16 S H12 x16", $card, 1, $mac =~ tr/://dr)) or die "$card: MAC address: $!\n";
    my $flags = pack("a16 S x22", $card, 0);
    ioctl($asked, 0x8913, $flags) or die "$card: $!\n";
    ioctl($asked, 0x8914, pack("a16 S x22", $card, unpack("x16 S", $flags) | 0x41)) or die "$card: up: $!\n";
    if ($address =~ m{^(\d+)\.(\d+)\.(\d+)\.(\d+)/(\d+)$}) {
        # SIOCSIFADDR and SIOCSIFNETMASK.
        my $mask = $5 ? 0xffffffff << (32 - $5) & 0xffffffff : 0;
        ioctl($asked, 0x8916, pack("a16 S n C4 x16", $card, 2, 0, $1, $2, $3, $4)) or die "$card: address: $!\n";
        ioctl($asked, 0x891c, pack("a16 S n N x16", $card, 2, 0, $mask)) or die "$card: netmask: $!\n";
    } elsif ($address ne "-") {
        system("ip", "addr", "replace", $address, "dev", $card) == 0 or die "$card: address: status $?\n";
    }
}
unlink("$folder/pid", "$folder/told-$$");
rmdir($folder);
