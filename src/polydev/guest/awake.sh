# Run by the host, through the channel, in a guest that stood still or was restored from saved
# memory: docs/machines.md, "Hibernation". It is sent along each time, so that it fits the host that
# wakes and not the image that was booted, perhaps long ago. It is one program, since a guest whose
# processor is emulated takes long to start any. Everything is tried, whatever fails.
#
# On its standard input come 64 random bytes, and then the host's Unix time: as soon as it says that
# it is ready, so that the time is not old by the time that programs take to start. With the time as
# its argument it says nothing and takes the random bytes alone.
exec perl -e '
    my ($clock) = @ARGV;
    syswrite(STDOUT, "ready\n") unless defined $clock;
    local $/;
    my ($seed, $told) = unpack("a64 a*", <STDIN>);
    $clock = $told unless defined $clock;
    my @failed;
    my ($s, $ns) = $clock =~ /^(\d+)\.(\d{1,9})$/ or die "no time: $clock\n";
    $ns = substr($ns . "00000000", 0, 9);
    # clock_settime(2) of CLOCK_REALTIME, by its number on x86-64.
    syscall(227, 0, pack("qq", $s, $ns)) == 0 or push @failed, "clock: $!";

    # Mixed in by being written, and taken up at once by RNDRESEEDCRNG (random(4)), not only minutes
    # later: what another guest of the same memory would draw must not be what this one draws.
    open(my $random, "+<", "/dev/urandom") or push @failed, "randomness: $!";
    syswrite($random, $seed) == length $seed or push @failed, "randomness: $!";
    ioctl($random, 0x5207, 0) or push @failed, "randomness: $!";

    # Connections to the host from before are dead, which this guest would not notice by itself.
    sub file { open(my $file, "<", $_[0]) or return ""; return scalar <$file> }
    sub parent { return file("/proc/$_[0]/status") =~ /^PPid:\s*(\d+)/m ? $1 : 0 }
    my $sshd = int(file("/run/sshd.pid"));
    my ($ours, $parent) = ($$, parent($$));
    ($ours, $parent) = ($parent, parent($parent)) while $parent > 1 && $parent != $sshd;
    if ($sshd > 1 && $parent == $sshd) {
        for my $child (split " ", file("/proc/$sshd/task/$sshd/children")) {
            kill "TERM", $child if $child != $ours;
        }
    }

    open(my $since, ">", "/run/awake_since") or die "/run/awake_since: $!\n";
    print $since "$clock\n";
    die "not renewed: @failed\n" if @failed;
' -- "$@"
