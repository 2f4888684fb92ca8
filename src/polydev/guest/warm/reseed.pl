# Gives a clone random numbers of its own. The first 64 bytes of standard input go into the kernel's
# pool, and what it draws from is made anew of that. The argument names a file that lists memory of
# running programs (`settle`): it is wiped as a fork would wipe it in the child, at which these
# programs ask the kernel again. Sources: random(4), RNDADDENTROPY and RNDRESEEDCRNG; madvise(2),
# MADV_WIPEONFORK.
use strict;
use warnings;
no warnings "portable";  # addresses have 64 bits

my ($RNDADDENTROPY, $RNDRESEEDCRNG, $SEED_BYTES) = (0x40085203, 0x5207, 64);

# Not one byte more than ours is taken: the rest is for whoever reads on.
my $seed = '';
while (length $seed < $SEED_BYTES) {
    sysread(STDIN, $seed, $SEED_BYTES - length $seed, length $seed)
        or die "standard input ended before the seed\n";
}
open my $random, '+<', '/dev/urandom' or die "/dev/urandom: $!\n";
ioctl $random, $RNDADDENTROPY, pack('i i a*', 8 * $SEED_BYTES, $SEED_BYTES, $seed)
    or die "RNDADDENTROPY: $!\n";
ioctl $random, $RNDRESEEDCRNG, 0 or die "RNDRESEEDCRNG: $!\n";

open my $pages, '<', $ARGV[0] or die "$ARGV[0]: $!\n";
while (my $line = <$pages>) {
    my ($pid, $from, $to) = $line =~ /^(\d+) ([0-9a-f]+)-([0-9a-f]+)$/ or die "what is $line";
    next unless -d "/proc/$pid";
    open my $memory, '+<:raw', "/proc/$pid/mem" or die "memory of $pid: $!\n";
    sysseek $memory, hex $from, 0 or die "memory of $pid: $!\n";
    my $bytes = hex($to) - hex $from;
    my $wiped = syswrite($memory, "\0" x $bytes);
    die "memory of $pid: $!\n" unless defined $wiped && $wiped == $bytes;
}
