# Makes a clone of a warm machine a machine of its own: the host runs it over the channel, which
# still has the keys of the machine that was saved, right after the clone was restored. What it puts
# in place is what `boot` puts in place of a machine that boots. It may be cut: the host throws such
# a clone away.
#
# Its arguments are awake.sh, wipe.pl and the host's Unix time; its standard input is 64 bytes of the
# host's randomness, then the clone's config drive.
set -eu
umask 077

# Before anything that draws a random number.
dd bs=64 count=1 iflag=fullblock 2>/dev/null | /bin/sh -c "$1" polydev-awake "$3"
perl -e "$2" /run/warm/pages

new=/run/warm/config
mkdir "$new"
tar -x -f - -C "$new" -o
for name in machine.env environment ssh_host_ed25519_key authorized_keys token; do
    [ -f "$new/$name" ] || { echo "the config drive holds no $name" >&2; exit 1; }
done
. "$new/machine.env"
read -r lan </run/warm/lan

hostname "$POLYDEV_HOSTNAME"
umask 022
echo "$POLYDEV_HOSTNAME" >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$POLYDEV_HOSTNAME" >/etc/hosts
id=${POLYDEV_VM_ID#vm-}
echo "${id//-/}" >/etc/machine-id

# The browser service reads its token at every request, sshd its keys at every connection.
for file in "$new"/*; do
    mv -f "$file" /run/polydev/
done

ip link set dev "$lan" address "$POLYDEV_MAC"
ip addr add "$POLYDEV_ADDRESS" dev "$lan"
ip link set dev "$lan" up
ip route add default via "$POLYDEV_GATEWAY" dev "$lan"

# The page went with the process that showed it; another one is there soon, and nobody waits for it.
setsid sh -c '
    old=$(curl -s "$1/list" | sed -n "s/^ *\"id\": \"\([0-9A-F]*\)\",$/\1/p")
    curl -s -X PUT "$1/new?about:blank"
    for id in $old; do curl -s "$1/close/$id"; done
' polydev-page http://127.0.0.1:9222/json </dev/null >/dev/null 2>&1 &

# An sshd that never knew the other keys. Its pid file tells when it listens.
read -r sshd </run/sshd.pid
rm /run/sshd.pid
kill -HUP "$sshd"
tries=0
until [ -s /run/sshd.pid ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 500 ] || { echo "sshd does not listen" >&2; exit 1; }
    usleep 20000
done
rm -r /run/warm
