# Makes a clone of a warm machine a machine of its own: the host runs it over the channel, which
# still has the keys of the machine that was saved, right after the clone was restored. What it puts
# in place is what `boot` puts in place of a machine that boots. It is one program, since a guest
# whose processor is emulated takes long to start any. The host throws a clone away in which it fails
# or is cut.
#
# With `rename` among its arguments it gives a machine of its own, which the host let wait, the name and
# token of whose it becomes.
#
# It says `ready` when it has started, and is told then: 64 bytes of the host's randomness, a line with
# the host's Unix time, the clone's config drive.
use strict;
use warnings;
no warnings "portable";  # addresses have 64 bits
use Socket;

my ($SEED_BYTES, $BLOCK) = (64, 512);
my ($CLOCK_SETTIME, $SETHOSTNAME) = (227, 170);  # by their numbers on x86-64
my ($RNDADDENTROPY, $RNDRESEEDCRNG) = (0x40085203, 0x5207);

sub content { open my $file, "<:raw", $_[0] or die "$_[0]: $!\n"; local $/; return scalar <$file> }

sub put {
    my ($path, $content, $mode) = @_;
    open my $file, ">:raw", "$path.new" or die "$path: $!\n";
    chmod $mode, $file;
    print $file $content;
    close $file and rename "$path.new", $path or die "$path: $!\n";
}

# Before anything that draws a random number. Source: random(4).
sub reseed {
    my ($seed) = @_;
    open my $random, "+<", "/dev/urandom" or die "/dev/urandom: $!\n";
    ioctl $random, $RNDADDENTROPY, pack "i i a*", 8 * $SEED_BYTES, $SEED_BYTES, $seed
        or die "RNDADDENTROPY: $!\n";
    ioctl $random, $RNDRESEEDCRNG, 0 or die "RNDRESEEDCRNG: $!\n";
}

# Wipes what running programs drew in advance to make random numbers of, as a fork would wipe it in
# the child: they notice, and ask the kernel again. Source: madvise(2), MADV_WIPEONFORK.
sub wipe {
    for (split /\n/, content("/run/warm/pages")) {
        my ($pid, $from, $to) = /^(\d+) ([0-9a-f]+)-([0-9a-f]+)$/ or die "what is $_\n";
        next unless -d "/proc/$pid";
        my $bytes = hex($to) - hex $from;
        open my $memory, "+<:raw", "/proc/$pid/mem" or die "memory of $pid: $!\n";
        sysseek $memory, hex $from, 0 or die "memory of $pid: $!\n";
        my $wiped = syswrite $memory, "\0" x $bytes;
        die "memory of $pid: $!\n" unless defined $wiped && $wiped == $bytes;
    }
}

# Ends what runs pages' scripts: it seeds `Math.random` once, and each clone would draw the same.
# Chromium writes a child's arguments as one text.
sub end_pages {
    for my $process (glob "/proc/[0-9]*") {
        next unless (readlink("$process/exe") // "") eq "/usr/lib/chromium/chromium";
        my $arguments = eval { content("$process/cmdline") } // next;  # it has just ended
        next unless $arguments =~ /[ \0]--type=renderer[ \0]/;
        kill "KILL", substr $process, length "/proc/";
    }
}

sub set_clock {
    my ($s, $ns) = $_[0] =~ /^(\d+)\.(\d{9})$/ or die "no time: $_[0]\n";
    syscall($CLOCK_SETTIME, 0, pack "qq", $s, $ns) == 0 or die "clock_settime: $!\n";
}

# Name -> content and mode. Source: pax(1), ustar.
sub unpacked {
    my ($archive) = @_;
    my ($at, %members) = (0);
    while ($at + $BLOCK <= length $archive) {
        my ($name, $mode, undef, undef, $size) = unpack "Z100 A8 A8 A8 A12", substr $archive, $at;
        last if $name eq "";
        $name =~ /^[a-z0-9_.]+$/ or die "a member is called $name\n";
        my $content = substr $archive, $at + $BLOCK, oct $size;
        length $content == oct $size or die "$name is cut short\n";
        $members{$name} = [$content, oct $mode];
        $at += $BLOCK * (1 + int((oct($size) + $BLOCK - 1) / $BLOCK));
    }
    for (qw(machine.env environment ssh_host_ed25519_key authorized_keys token)) {
        $members{$_} or die "the config drive holds no $_\n";
    }
    return %members;
}

# The host quotes its values for a shell; none of those that are used here needs it.
sub variables {
    my %found = $_[0] =~ /^(POLYDEV_[A-Z_]+)='?([A-Za-z0-9_.:\/-]*)'?$/mg;
    return %found;
}

sub name {
    my (%self) = @_;
    my $name = $self{POLYDEV_HOSTNAME};
    syscall($SETHOSTNAME, $name, length $name) == 0 or die "sethostname: $!\n";
    put("/etc/hostname", "$name\n", 0644);
    put("/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 $name\n", 0644);
    my $id = $self{POLYDEV_VM_ID} =~ s/^vm-|-//gr;
    put("/etc/machine-id", "$id\n", 0644);
}

sub connect_to_network {
    my (%self) = @_;
    chomp(my $lan = content("/run/warm/lan"));
    open my $ip, "|-", "/bin/ip", "-batch", "-" or die "ip: $!\n";
    print $ip "link set dev $lan address $self{POLYDEV_MAC}\n",
        "addr add $self{POLYDEV_ADDRESS} dev $lan\n",
        "link set dev $lan up\n",
        "route add default via $self{POLYDEV_GATEWAY} dev $lan\n";
    close $ip or die "ip ended with status $?\n";
}

# An sshd that never knew the other keys. Its pid file tells when it listens.
sub restart_sshd {
    chomp(my $sshd = content("/run/sshd.pid"));
    unlink "/run/sshd.pid";
    kill "HUP", $sshd or die "sshd: $!\n";
    for (1 .. 500) {
        return if -s "/run/sshd.pid";
        select undef, undef, undef, 0.02;
    }
    die "sshd does not listen\n";
}

# The page went with the process that showed it; another one is there soon, and nobody waits for it.
sub open_page {
    my @old = split /\n/, content("/run/warm/tabs");
    return if fork;
    open STDIN, "<", "/dev/null";
    open STDOUT, ">", "/dev/null";
    open STDERR, ">", "/dev/null";
    setpgrp;
    ask_browser("PUT", "/json/new?about:blank");
    ask_browser("GET", "/json/close/$_") for @old;
    exit 0;
}

sub ask_browser {
    my ($verb, $path) = @_;
    socket my $browser, PF_INET, SOCK_STREAM, 0 or exit 1;
    connect $browser, pack_sockaddr_in(9222, INADDR_LOOPBACK) or exit 1;
    syswrite $browser, "$verb $path HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    sysread $browser, my $answer, 4096;
}

$| = 1;
print "ready\n";
binmode STDIN;
my $given = do { local $/; <STDIN> } // "";
my ($seed, $clock, $drive) = $given =~ /^(.{$SEED_BYTES})([0-9.]+)\n(.+)$/s
    or die "there is no config drive\n";
reseed($seed);
# With `rename` it is this already, and has waited, standing still, for whose it is to be.
my $is_renewed = grep { $_ eq "rename" } @ARGV;
unless ($is_renewed) {
    wipe();
    end_pages();
}
set_clock($clock);
my %members = unpacked($drive);
my %self = variables($members{"machine.env"}[0]);
name(%self);
# The browser service reads its token at every request, sshd its keys at every connection.
put("/run/polydev/$_", @{$members{$_}}) for keys %members;
exit 0 if $is_renewed;
connect_to_network(%self);
open_page();
restart_sshd();
unlink glob "/run/warm/*";
rmdir "/run/warm";
