# Brings a machine that is nobody's to the point at which all its clones begin: the host runs it
# once, right before it saves the machine's memory (docs/machines.md, "Warm browser machines").
# Its argument is painted.py. `renew` continues in the clone.
set -eu
. /run/polydev/machine.env

mkdir -m 0700 -p /run/warm
/usr/bin/python3 -c "$1"

# Nothing leaves a clone under this machine's address, not even before it is asked to renew itself.
for nic in /sys/class/net/*; do
    read -r mac <"$nic/address"
    [ "$mac" != "$POLYDEV_MAC" ] || lan=${nic##*/}
done
ip link set dev "$lan" down
ip addr flush dev "$lan"
echo "$lan" >/run/warm/lan

# Programs that keep random numbers to draw from mark the memory that a child must not inherit; a
# clone is such a child. Looking for it takes a second, so it is done here and only used there.
for process in /proc/[0-9]*; do
    awk -v pid="${process#/proc/}" '
        /^[0-9a-f]+-[0-9a-f]+ / { range = $1 }
        /^VmFlags:.* wf( |$)/ { print pid, range }
    ' "$process/smaps" 2>/dev/null || true
done >/run/warm/pages

# The pages that are there: `renew` ends what shows them.
curl -s http://127.0.0.1:9222/json/list |
    sed -n 's/^ *"id": "\([0-9A-F]*\)",$/\1/p' >/run/warm/tabs

# Less to save, and less to read back: what the golden image holds can be read from there again.
sync
echo 3 >/proc/sys/vm/drop_caches
# But what `renew` starts is at hand.
perl -MSocket -e 1
/bin/ip -V >/dev/null
