# Wipes memory of running programs as a fork would wipe it in the child: what they drew in advance to
# make random numbers of. They notice, and ask the kernel again. The argument names a file that lists
# that memory, a process and a range of addresses a line (`settle`).
# Source: madvise(2), MADV_WIPEONFORK.
use strict;
use warnings;
no warnings "portable";  # addresses have 64 bits

open my $pages, "<", $ARGV[0] or die "$ARGV[0]: $!\n";
while (my $line = <$pages>) {
    my ($pid, $from, $to) = $line =~ /^(\d+) ([0-9a-f]+)-([0-9a-f]+)$/ or die "what is $line";
    next unless -d "/proc/$pid";
    my $bytes = hex($to) - hex $from;
    open my $memory, "+<:raw", "/proc/$pid/mem" or die "memory of $pid: $!\n";
    sysseek $memory, hex $from, 0 or die "memory of $pid: $!\n";
    my $wiped = syswrite $memory, "\0" x $bytes;
    die "memory of $pid: $!\n" unless defined $wiped && $wiped == $bytes;
}
