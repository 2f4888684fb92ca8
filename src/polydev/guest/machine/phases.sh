# Sourced by the initramfs and by the boot scripts: how a boot tells the host where it is.
# The host reads these lines from the console (docs/machines.md, "Boot, in order").

PHASE=start

# Scripts point their standard error at the console before they say anything.
say() { echo "$*" >&2; }

phase() {
    PHASE=$1
    say "POLYDEV-BOOT $PHASE"
}

# Ends the machine. Firecracker has no power switch to turn off: there the kernel's line says how to
# reset (`reboot=k`), and a reset is the end.
power_off() {
    read -r line </proc/cmdline
    case " $line " in
    *" reboot=k "*) exec /bin/busybox reboot -f ;;
    esac
    exec /bin/busybox poweroff -f
}

# A machine that cannot boot must end, or the host waits for its whole time limit.
fail() {
    trap - EXIT
    say "POLYDEV-FAILED $PHASE $*"
    power_off
}

# `set -e` ends the script at the first command that fails; this says which phase it was.
trap 'fail "a command failed, see the lines above"' EXIT

boot_done() { trap - EXIT; }
