#!/bin/busybox sh
# Reports to the host that the channel answers. busybox init runs it once, beside sshd.
set -eu
exec </dev/null >/dev/console 2>&1
. /usr/lib/polydev/phases.sh
. /run/polydev/machine.env

phase listening
# sshd writes its pid file right after it starts to listen; there is no other signal.
tries=0
until [ -s /run/sshd.pid ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 3000 ] || fail "sshd does not listen"
    usleep 20000
done
# Connect to vsock-proxy over the guest's own side of vsock, as the host does.
if [ -z "$POLYDEV_CHANNEL_MAC" ]; then
    tries=0
    until [ "$(socat -T 5 -u VSOCK-CONNECT:1:22 STDOUT 2>/dev/null | head -c 4)" = SSH- ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || fail "vsock port 22 does not answer"
        usleep 50000
    done
fi
boot_done
say "POLYDEV-READY $POLYDEV_READY_NONCE"
