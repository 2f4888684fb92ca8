#!/bin/busybox sh
# Ends the machine quickly and with clean filesystems. busybox init runs it on `poweroff` and
# `reboot`; by itself, init would sleep for seconds between its signals.
set -u
exec </dev/null >/dev/console 2>&1
. /usr/lib/polydev/phases.sh
boot_done

others_live() {
    for stat in /proc/[0-9]*/cmdline; do
        pid=${stat%/cmdline}
        pid=${pid#/proc/}
        [ "$pid" -eq 1 ] || [ "$pid" -eq $$ ] && continue
        # Kernel threads have an empty command line.
        read -r -n 1 _ 2>/dev/null <"$stat" && return 0
    done
    return 1
}

uptime_s() {
    read -r seconds _ </proc/uptime
    echo "${seconds%.*}"
}

# Repeats a command until it succeeds, for up to 2 s.
retry() {
    deadline_s=$(($(uptime_s) + 2))
    until "$@" 2>/dev/null; do
        [ "$(uptime_s)" -lt "$deadline_s" ] || return 1
        usleep 20000
    done
}

no_others_live() { ! others_live; }

kill -TERM -1
retry no_others_live
kill -KILL -1
sync
# A killed program closes its files shortly after it leaves the process list.
retry mount -o remount,ro / || echo "the root filesystem is still in use"
retry mount -o remount,ro /run/disk || echo "the machine's disk is still in use"
power_off
