#!/bin/busybox sh
# Lets the host in where the private channel is vsock (Firecracker): each connection to port 22 is
# passed on to sshd. Run once by busybox init, and never ends there; elsewhere it ends at once.
#
# sshd of this distribution cannot listen on vsock itself. Connections outlive the listener.
set -u
. /run/polydev/machine.env
[ -z "$POLYDEV_CHANNEL_MAC" ] || exit 0
exec </dev/null >/dev/null 2>&1
while :; do
    socat VSOCK-LISTEN:22,fork,max-children=100 TCP4:127.0.0.1:22,nodelay
    sleep 1
done
