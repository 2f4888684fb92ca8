# Prepares a template of warm browser machines (docs/machines.md, "Warm browser machines"). The host
# runs it once, right before it saves the machine's memory; `renew` continues in each clone. Its
# argument is wait_first_paint.py.
set -eu
. /run/polydev/machine.env

mkdir -m 0700 -p /run/warm
/usr/bin/python3 -c "$1"

# A clone must never send packets with this machine's address, even before `renew` runs.
for nic in /sys/class/net/*; do
    read -r mac <"$nic/address"
    [ "$mac" != "$POLYDEV_MAC" ] || lan=${nic##*/}
done
ip link set dev "$lan" down
ip addr flush dev "$lan"
echo "$lan" >/run/warm/lan

# Programs mark memory with random state, which a child must not inherit; a clone is such a child.
# The search takes a second, so it runs here and `renew` only uses the result.
for process in /proc/[0-9]*; do
    awk -v pid="${process#/proc/}" '
        /^[0-9a-f]+-[0-9a-f]+ / { range = $1 }
        /^VmFlags:.* wf( |$)/ { print pid, range }
    ' "$process/smaps" 2>/dev/null || true
done >/run/warm/pages

# Open pages, which `renew` replaces.
curl -s http://127.0.0.1:9222/json/list |
    sed -n 's/^ *"id": "\([0-9A-F]*\)",$/\1/p' >/run/warm/tabs

# Drop caches, because the golden image can provide their content again.
sync
echo 3 >/proc/sys/vm/drop_caches
# Cache what `renew` starts.
perl -MSocket -e 1
/bin/ip -V >/dev/null
