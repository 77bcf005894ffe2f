import fcntl, glob, os, shutil, socket, struct, subprocess, sys, time
folder, keys = sys.argv[1:]
pipe = os.open(folder + "/pipe", os.O_RDWR)
os.rename(folder + "/pipe", "%s/told-%d" % (folder, os.getpid()))
line = b""
while b"\n" not in line:
    line += os.read(pipe, 65536)
seed, now, name, machine, *cards = line.split(b"\n")[0].decode().split()
seed = bytes.fromhex(seed)
pool = os.open("/dev/urandom", os.O_RDWR)
assert len(seed) >= 64 and os.write(pool, seed) == len(seed)
fcntl.ioctl(pool, 0x5207)
time.clock_settime(time.CLOCK_REALTIME, float(now))
def put(file, word):
    with open(file, "w") as out:
        out.write(word + "\n")
put("/proc/sys/kernel/hostname", name)
for file in "/etc/hostname", "/run/hostname":
    if os.path.isfile(file):
        put(file, name)
for file in "/etc/machine-id", "/var/lib/dbus/machine-id":
    if os.path.isfile(file) and not os.path.islink(file):
        put(file, machine)
if os.path.isdir("/etc/ssh"):
    subprocess.check_call(["/bin/sh", "-c", keys])
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while cards:
    present, mac, address, *cards = cards
    found = [path for path in glob.glob("/sys/class/net/*") if open(path + "/address").read().strip() in (present, mac)]
    assert found, "there is no interface with the MAC address " + present
    card = os.path.basename(found[-1])
    def ask(what, number, rest=b""):
        return fcntl.ioctl(asked, what, struct.pack("16sH22s", card.encode(), number, rest))
    # SIOCSIFHWADDR, then up: SIOCGIFFLAGS and SIOCSIFFLAGS.
    ask(0x8924, 1, bytes.fromhex(mac.replace(":", "")))
    ask(0x8914, struct.unpack_from("H", ask(0x8913, 0), 16)[0] | 0x41)
    ip, _, length = address.partition("/")
    if "." in ip:
        # SIOCSIFADDR and SIOCSIFNETMASK.
        ask(0x8916, 2, b"\0\0" + socket.inet_aton(ip))
        ask(0x891c, 2, b"\0\0" + struct.pack("!I", 0xffffffff << (32 - int(length)) & 0xffffffff))
    elif address != "-":
        subprocess.check_call(["ip", "addr", "replace", address, "dev", card])
shutil.rmtree(folder)
