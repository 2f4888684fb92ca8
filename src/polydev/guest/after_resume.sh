# Sets clock and randomness in a guest that was paused or restored from saved memory
# (docs/machines.md, "Hibernation"). The host runs it through the channel and sends it each time, so
# it matches the host and not an old image. It is one program, because an emulated guest starts
# programs slowly. A failure of one step does not stop the others.
#
# Standard input: 64 random bytes, then the host's Unix time. The host sends them after "ready", so
# the time is current. With the time as an argument, it prints nothing and reads only the bytes.
exec perl -e '
    my ($clock) = @ARGV;
    syswrite(STDOUT, "ready\n") unless defined $clock;
    local $/;
    my ($seed, $time) = unpack("a64 a*", <STDIN>);
    $clock = $time unless defined $clock;
    my @failed;
    my ($s, $ns) = $clock =~ /^(\d+)\.(\d{1,9})$/ or die "no time: $clock\n";
    $ns = substr($ns . "00000000", 0, 9);
    # clock_settime(2) of CLOCK_REALTIME, by its number on x86-64.
    syscall(227, 0, pack("qq", $s, $ns)) == 0 or push @failed, "clock: $!";

    # Writing mixes the seed in; RNDRESEEDCRNG (random(4)) applies it at once, not minutes later.
    # Otherwise two guests with the same memory would draw the same random numbers.
    open(my $random, "+<", "/dev/urandom") or push @failed, "randomness: $!";
    syswrite($random, $seed) == length $seed or push @failed, "randomness: $!";
    ioctl($random, 0x5207, 0) or push @failed, "randomness: $!";

    # Old connections to the host are dead, but the guest would not notice that.
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
    die "failed: @failed\n" if @failed;
' -- "$@"
