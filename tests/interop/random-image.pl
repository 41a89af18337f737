#!/usr/bin/perl
# SPDX-License-Identifier: LGPL-2.1-or-later

# An image of the kind that tests/generate does not make, for whose content qemu is
# asked: of version 1 with clusters off the grid, with entries behind the end of the
# disk, and whatever else the format leaves open chosen at random:
#
#   random-image.pl FILE SEED [CLUSTER_SECTORS [ENTRIES]]
#
# version, cluster size, first data offset, the order of clusters in the file, holes in
# them and between them, leaks, the end of the disk and of the file inside a cluster.

use strict;
use warnings;

my ($name, $seed, $cluster, $nr) = @ARGV;
srand ($seed);

sub chance { return rand () < $_[0] }
sub pick { return $_[int (rand (@_))] }

my $version = pick (1, 2);
$cluster ||= pick (1, 8, 63, 64, 128, 504);
$nr ||= 1 + int (rand (pick (8, 150)));
my $bat_sectors = int ((64 + 4 * $nr + 511) / 512);
my $start = int (($bat_sectors + $cluster - 1) / $cluster) * $cluster;
my $stored_start = $start;
if ($version == 1 && chance (.3)) {
    $start = $bat_sectors;
    $stored_start = chance (.5) ? 0 : $start;
}

# Where the clusters may be, and which of them have anything in them.
my @places = map { $start + $_ * $cluster } 0 .. $nr + int (rand (10));
if ($version == 1 && $cluster > 1 && chance (.4)) {
    my $from = int (rand (@places));
    my $shift = 1 + int (rand ($cluster - 1));
    $places[$_] += $shift for $from .. $#places;
}
if (chance (.7)) {
    for my $i (reverse 1 .. $#places) {
        my $j = int (rand ($i + 1));
        @places[$i, $j] = @places[$j, $i];
    }
}

my $density = pick (.1, .5, .9, 1);
my @bat = map { chance ($density) ? shift @places : 0 } 1 .. $nr;

open (my $f, ">:raw", $name) or die "$name: $!\n";

# Each sector is like no other.
sub fill {
    my ($sector, $nr_sectors) = @_;
    my $what = pack ("V", 1 + int (rand (0xfffffffe)));
    seek ($f, $sector * 512, 0);
    print $f map { pack ("V", $_) . $what x 127 } 1 .. $nr_sectors;
}

# A hole in a cluster is seen if it has whole blocks of the file system.
my $end = $start;
for my $place (grep { $_ > 0 } @bat) {
    $end = $place + $cluster if $place + $cluster > $end;
    next if chance (.1);
    my $first = chance (.8) ? 0 : int (rand ($cluster));
    fill ($place + $first, 1 + int (rand ($cluster - $first)));
}
for my $place (@places) {
    next unless chance (.3);
    fill ($place, $cluster);
    $end = $place + $cluster if $place + $cluster > $end;
}

my $size = $nr * $cluster;
$size -= int (rand ($cluster)) if chance (.5);
$size -= int (rand ($nr / 2)) * $cluster if chance (.2);
$size = 1 if $size < 1;
seek ($f, 0, 0);
print $f pack ("a16V5Q<V3Q<", $version == 1 ? "WithoutFreeSpace" : "WithouFreSpacExt",
               2, 16, 1, $cluster, $nr, $size, 0, $stored_start, 0, 0);
print $f pack ("V*", map { $version == 1 ? $_ : $_ / $cluster } @bat);
close ($f) or die "$name: $!\n";

# The last cluster may lack its end, but not all of it.
my $file_size = $end * 512;
$file_size -= int (rand ($cluster * 512 - 1)) if $end > $start && chance (.3);
$file_size = $bat_sectors * 512 if $file_size < $bat_sectors * 512;
truncate ($name, $file_size) or die "$name: $!\n";
