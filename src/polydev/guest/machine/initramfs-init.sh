#!/bin/busybox sh
# First program of a machine: find its three drives, mount the overlay, unpack the config drive
# and start the golden image's init. See "Boot sequence" in docs/machines.md, step 1.
#
# busybox runs its own applets without a PATH if it finds itself in /proc. So the initramfs holds
# one binary, this script and the kernel modules, numbered in the order of their dependencies.
set -eu

/bin/busybox mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t devtmpfs dev /dev
mount -t sysfs -o nosuid,nodev,noexec sys /sys
exec </dev/console >/dev/console 2>&1
. /phases.sh

phase modules
for module in /modules/*.ko; do
    insmod "$module" || fail "cannot load ${module##*/}"
done

phase drives
for drive in /dev/vda /dev/vdb /dev/vdc; do
    [ -b "$drive" ] || fail "$drive is missing"
done
mount -t ext4 -o ro,noatime /dev/vda /lower || fail "cannot mount the golden image"
# `discard` returns the space of deleted files to the host.
mount -t ext4 -o noatime,discard /dev/vdb /disk || fail "cannot mount the machine's disk"

phase overlay
mkdir -p /disk/upper /disk/work
# Without redirects and indexes, a machine's files stay valid over a newer golden image.
mount -t overlay -o "lowerdir=/lower,upperdir=/disk/upper,workdir=/disk/work,\
redirect_dir=off,index=off,metacopy=off,xino=off" overlay /root ||
    fail "cannot mount the overlay"

phase config
mount -t tmpfs -o nosuid,nodev,mode=0755,size=16m run /run
mkdir -m 0700 /run/polydev /run/disk
tar -x -f /dev/vdc -C /run/polydev -o || fail "cannot read the config drive"
[ -f /run/polydev/machine.env ] || fail "the config drive holds no machine.env"

phase switch
mount -o move /run /root/run
# The shutdown needs it to leave the machine's filesystem clean.
mount -o move /disk /root/run/disk
mount -o move /dev /root/dev
mount -o move /sys /root/sys
mount -o move /proc /root/proc
exec /bin/busybox switch_root /root /sbin/init
