#!/bin/busybox sh
# The first program of the box: loads what its disks need, finds them by name, and goes on in there.
# What it says ends up in the console's log.
b=/bin/busybox
fail() { echo "kvm-box: $1"; exec $b poweroff -f; }

$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do $b insmod "$module" || fail "no $module"; done

# disk SERIAL: its device, as soon as it is there.
disk() {
    tries=0
    while [ $tries -lt 200 ]; do
        for serial in /sys/block/vd?/serial; do
            if [ "$($b cat "$serial" 2>/dev/null)" = "$1" ]; then
                echo "/dev/$($b basename "${serial%/serial}")"
                return
            fi
        done
        tries=$((tries + 1))
        $b usleep 50000
    done
}

root=$(disk root) payload=$(disk payload)
$b mount -t ext4 -o ro "$root" /newroot || fail "no root at '$root'"
$b mount -t ext4 -o ro "$payload" /newroot/payload || fail "nothing to test at '$payload'"
echo "kvm-box: its root is $root, what to test $payload"
$b umount /dev /sys /proc
exec $b switch_root /newroot /usr/bin/tini -- /payload/init
