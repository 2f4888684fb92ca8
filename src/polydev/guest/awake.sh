# Run by the host, through the channel, in a guest that stood still or was restored from saved
# memory: docs/machines.md, "Hibernation". It is sent along each time, so that it fits the host that
# wakes and not the image that was booted, perhaps long ago. Everything is tried, whatever fails.
#
# Its argument is the host's Unix time; on its standard input comes fresh randomness.
failed=

date -s "@$1" >/dev/null || failed="$failed clock"

# Mixed in by being written, and taken up at once by RNDRESEEDCRNG (random(4)), not only minutes
# later: what another guest of the same memory would draw must not be what this one draws.
cat >/dev/urandom &&
    perl -e 'open(my $random, "<", "/dev/urandom") or die "$!\n"; ioctl($random, 0x5207, 0) or die "$!\n"' ||
    failed="$failed randomness"

# Connections to the host from before are dead, which this guest would not notice by itself.
parent_of() {
    while read -r name value; do
        [ "$name" != PPid: ] || echo "$value"
    done <"/proc/$1/status"
}
sshd=$(cat /run/sshd.pid)
ours=$$
while parent=$(parent_of "$ours") && [ "$parent" -gt 1 ] && [ "$parent" != "$sshd" ]; do
    ours=$parent
done
for status in $(grep -ls "^PPid:[[:space:]]$sshd\$" /proc/[0-9]*/status); do
    child=${status#/proc/}
    child=${child%/status}
    [ "$child" = "$ours" ] || kill "$child"
done

echo "$1" >/run/awake_since
[ -z "$failed" ] || { echo "not renewed:$failed" >&2; exit 1; }
