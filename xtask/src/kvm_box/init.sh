#!/bin/sh
# Makes the box a host like any other, runs the suites it finds, says how each ended, and powers off.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/box TMPDIR=/box/tmp LC_ALL=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# A box that hangs is better dead: then it is noticed.
echo 1 >/proc/sys/kernel/panic_on_rcu_stall
hostname kvm-box
ip link set lo up

# port NAME: the device of a channel to the host.
port() {
    for name in /sys/class/virtio-ports/*/name; do
        if [ "$(cat "$name")" = "$1" ]; then echo "/dev/$(basename "${name%/name}")"; fi
    done
}
off() {
    sync
    umount /box 2>/dev/null || mount -o remount,ro /box
    echo o >/proc/sysrq-trigger
    # Only until the machine is gone; PID 1 must not end before.
    while :; do sleep 1; done
}

result=$(port result)
pulse=$(port pulse)
if [ -n "$pulse" ]; then
    while :; do echo; sleep 2; done >"$pulse" &
fi
output=$(port output)
exec >"${output:-/dev/hvc0}" 2>&1
# What is tested lies where its disks can share blocks, as on a host that is set up well.
disk=$(grep -l -x box /sys/block/vd?/serial | cut -d/ -f4)
modprobe xfs && mkfs.xfs -q "/dev/$disk" && mount "/dev/$disk" /box && cp -a --sparse=always /payload/. /box ||
    { echo "fatal: no file system for the tests" >"$result"; off; }
modprobe -a kvm-amd tun || { echo "fatal: no KVM modules" >"$result"; off; }
[ -c /dev/kvm ] || { echo "fatal: there is no /dev/kvm" >"$result"; off; }
echo "kvm-box: up, Linux $(uname -r), $(grep -o -w -E -m 1 'svm|vmx' /proc/cpuinfo), /dev/kvm"

if [ -e /box/shell ]; then
    cd /box || off
    setsid -c bash -i </dev/hvc0
    off
fi

for suite in /box/suites/*; do
    name=${suite##*/[0-9][0-9]-}
    boots=/box/boots-$name
    : >"$boots"
    set --
    while IFS= read -r word; do set -- "$@" "$word"; done <"$suite"
    echo "kvm-box: suite $name"
    begun=$(cut -d. -f1 /proc/uptime)
    (cd /box && BHATTI_BOOT_LOG=$boots exec env "$@")
    code=$?
    took=$(($(cut -d. -f1 /proc/uptime) - begun))
    echo "suite $name code $code boots $(wc -l <"$boots") seconds $took" >>"$result"
done
echo "done" >>"$result"
off
