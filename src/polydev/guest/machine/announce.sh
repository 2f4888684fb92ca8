#!/bin/busybox sh
# Tells the host that the channel answers: run once by busybox init, beside sshd.
set -eu
exec </dev/null >/dev/console 2>&1
. /usr/lib/polydev/phases.sh
. /run/polydev/machine.env

phase listening
# sshd writes its pid file right after it listens, and has no other way to tell.
tries=0
until [ -s /run/sshd.pid ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 3000 ] || fail "sshd does not listen"
    usleep 20000
done
# The same question that the host asks, put to vsock-door over the guest's own side of vsock.
if [ -z "$POLYDEV_CHANNEL_MAC" ]; then
    tries=0
    until [ "$(socat -T 5 -u VSOCK-CONNECT:1:22 STDOUT 2>/dev/null | head -c 4)" = SSH- ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || fail "nothing answers on vsock port 22"
        usleep 50000
    done
fi
boot_done
say "POLYDEV-READY $POLYDEV_READY_NONCE"
