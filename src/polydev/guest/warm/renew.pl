# Gives a restored clone of a warm machine its own identity. The host runs it over the channel,
# which still uses the keys of the template. It configures what `boot` configures in a machine that
# boots. It is one program, because an emulated guest starts programs slowly. If it fails or is
# interrupted, the host destroys the clone.
#
# With the argument `rename`, it only gives a standby clone, which has its own identity already, the
# name and token of its user's machine.
#
# It prints `ready`, and then reads 64 random bytes from the host, a line with the host's Unix time,
# and the clone's config drive.
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

# Must run before anything draws a random number. Source: random(4).
sub reseed {
    my ($seed) = @_;
    open my $random, "+<", "/dev/urandom" or die "/dev/urandom: $!\n";
    ioctl $random, $RNDADDENTROPY, pack "i i a*", 8 * $SEED_BYTES, $SEED_BYTES, $seed
        or die "RNDADDENTROPY: $!\n";
    ioctl $random, $RNDRESEEDCRNG, 0 or die "RNDRESEEDCRNG: $!\n";
}

# Wipes the random state of running programs, as a fork does in the child. They detect that and ask
# the kernel again. Source: madvise(2), MADV_WIPEONFORK.
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

# Ends the renderers: they seed `Math.random` once, so all clones would draw the same numbers.
# Chromium writes a child's arguments as one string.
sub end_pages {
    for my $process (glob "/proc/[0-9]*") {
        next unless (readlink("$process/exe") // "") eq "/usr/lib/chromium/chromium";
        my $arguments = eval { content("$process/cmdline") } // next;  # it has just exited
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

# The host quotes the values for a shell, but those used here contain nothing special.
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

# The new sshd never had the other keys. Its pid file shows that it listens.
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

# The page ended with its renderer. Open another one, without waiting for it.
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
# With `rename`, the clone has been renewed already and was paused as a standby clone.
my $is_renewed = grep { $_ eq "rename" } @ARGV;
unless ($is_renewed) {
    wipe();
    end_pages();
}
set_clock($clock);
my %members = unpacked($drive);
my %self = variables($members{"machine.env"}[0]);
name(%self);
# The browser service reads its token for every request, sshd its keys for every connection.
put("/run/polydev/$_", @{$members{$_}}) for keys %members;
exit 0 if $is_renewed;
connect_to_network(%self);
open_page();
restart_sshd();
unlink glob "/run/warm/*";
rmdir "/run/warm";
