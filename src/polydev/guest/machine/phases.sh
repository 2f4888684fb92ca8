# Sourced by the initramfs and the boot scripts: reports the boot phases on the console, where the
# host reads them (docs/machines.md, "Boot sequence").

PHASE=start

# Scripts redirect standard error to the console first.
say() { echo "$*" >&2; }

phase() {
    PHASE=$1
    say "POLYDEV-BOOT $PHASE"
}

# Ends the machine. Firecracker has no power-off: there the kernel command line has `reboot=k`, and
# a reset ends the machine.
power_off() {
    read -r line </proc/cmdline
    case " $line " in
    *" reboot=k "*) exec /bin/busybox reboot -f ;;
    esac
    exec /bin/busybox poweroff -f
}

# A machine that cannot boot must end, or the host waits until its time limit.
fail() {
    trap - EXIT
    say "POLYDEV-FAILED $PHASE $*"
    power_off
}

# `set -e` exits at the first failing command; this reports the phase.
trap 'fail "a command failed, see the lines above"' EXIT

boot_done() { trap - EXIT; }
