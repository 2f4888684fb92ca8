#!/bin/busybox sh
# Configures this machine: clock, name, addresses, resolver, certificate authorities, sshd.
# busybox init runs it once, before any service (inittab, `sysinit`). docs/machines.md, "Boot
# sequence".
set -eu
umask 022
exec </dev/null >/dev/console 2>&1
. /usr/lib/polydev/phases.sh

phase filesystems
mkdir -p /dev/pts /dev/shm
mount -t devpts -o nosuid,noexec,gid=5,mode=0620,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev,mode=1777 shm /dev/shm
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
for fd in 0:stdin 1:stdout 2:stderr; do
    ln -sf "/proc/self/fd/${fd%:*}" "/dev/${fd#*:}"
done
ln -sfn /proc/self/fd /dev/fd
mkdir -p -m 1777 /tmp
rm -rf /tmp/.X11-unix /tmp/.X0-lock

phase identity
. /run/polydev/machine.env
# Some VMMs have no clock, so the guest's clock would be wrong.
if [ "$(date +%s)" -lt "$POLYDEV_CLOCK_S" ]; then
    date -s "@$POLYDEV_CLOCK_S" >/dev/null
fi
hostname "$POLYDEV_HOSTNAME"
echo "$POLYDEV_HOSTNAME" >/etc/hostname
# Keep the user's additions: write these files only if they do not match.
grep -qsF " $POLYDEV_HOSTNAME" /etc/hosts ||
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$POLYDEV_HOSTNAME" >/etc/hosts
id=${POLYDEV_VM_ID#vm-}
echo "${id//-/}" >/etc/machine-id

phase network
# Identify NICs by MAC, because their order depends on the VMM.
nic_with_mac() {
    for nic in /sys/class/net/*; do
        read -r mac <"$nic/address"
        [ "$mac" != "$1" ] || { echo "${nic##*/}"; return; }
    done
    fail "no network device has the MAC $1"
}
# Linux accepts packets for any of its addresses on any device. The channel's address must not be
# reachable from the VM network, so drop packets for it that arrive there.
channel_on() {
    ip rule add pref 20 table local
    ip rule del pref 0
    ip route add blackhole default table 100
    ip rule add pref 10 iif "$lan" to "${POLYDEV_CHANNEL_ADDRESS%/*}" table 100
    ip addr add "$POLYDEV_CHANNEL_ADDRESS" dev "$1"
    ip link set dev "$1" up
}
ip link set dev lo up
lan=$(nic_with_mac "$POLYDEV_MAC")
# Without its own NIC, the channel is vsock, which only the host can reach (vsock-proxy).
if [ -n "$POLYDEV_CHANNEL_MAC" ]; then
    channel_on "$(nic_with_mac "$POLYDEV_CHANNEL_MAC")"
fi
ip addr add "$POLYDEV_ADDRESS" dev "$lan"
ip link set dev "$lan" up
ip route add default via "$POLYDEV_GATEWAY" dev "$lan"
if [ -n "$POLYDEV_DNS" ]; then
    for server in $POLYDEV_DNS; do echo "nameserver $server"; done
else
    echo "# this deployment gives machines no resolver"
fi >/etc/resolv.conf

phase certificates
system=/usr/share/polydev/ca-certificates.crt
bundle=/run/polydev/ca-bundle.pem
cat "$system" >"$bundle"
if [ -f /run/polydev/ca.pem ]; then
    { echo; cat /run/polydev/ca.pem; } >>"$bundle"
fi
# Bound over the system's own bundle too, so that git, curl and Python trust the same authorities.
mount -o bind "$bundle" /etc/ssl/certs/ca-certificates.crt

phase channel
mkdir -p /run/sshd
chmod 0600 /run/polydev/ssh_host_ed25519_key
/usr/lib/polydev/sshd-config >/run/polydev/sshd_config

phase services
if [ "$POLYDEV_KIND" = browser ]; then
    /usr/lib/polydev/browser-policy >/etc/chromium/policies/managed/machine.json
fi
boot_done
