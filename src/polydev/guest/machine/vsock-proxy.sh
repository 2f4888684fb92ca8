#!/bin/busybox sh
# Forwards vsock port 22 to sshd if the private channel is vsock (Firecracker), because this
# distribution's sshd cannot listen on vsock. busybox init runs it once; without vsock it exits.
# Connections outlive the listener.
set -u
. /run/polydev/machine.env
[ -z "$POLYDEV_CHANNEL_MAC" ] || exit 0
exec </dev/null >/dev/null 2>&1
while :; do
    socat VSOCK-LISTEN:22,fork,max-children=100 TCP4:127.0.0.1:22,nodelay
    sleep 1
done
