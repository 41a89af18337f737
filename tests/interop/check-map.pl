#!/usr/bin/perl
# SPDX-License-Identifier: LGPL-2.1-or-later

# Is a map true?  Reads what ploop-img map --output=json has said, the content of the
# disk as a raw file, and the files themselves:
#
#   check-map.pl MAP.json CONTENT.raw [URI=FILE...]
#
# Each extent, read from its file at its host offset, must be what the disk has there.
# Every byte of the disk and of each file is told once; the two views agree with each
# other, and the figures with both.  FILE has what the export URI has.

use strict;
use warnings;
use JSON::PP;

my ($map_name, $content_name, @exports) = @ARGV;
my %exports = map { /^(.*)=(.*)$/ or die "URI=FILE: $_\n"; ($1, $2) } @exports;
my $chunk = 1 << 16;
my $zeros = "\0" x $chunk;

sub slurp {
    my ($name) = @_;
    open (my $f, "<", $name) or die "$name: $!\n";
    local $/;
    return <$f>;
}

sub open_raw {
    my ($name) = @_;
    open (my $f, "<:raw", $name) or die "$name: $!\n";
    return $f;
}

# What lies behind the end of a file is zeros.
sub read_at {
    my ($f, $offset, $length) = @_;
    sysseek ($f, $offset, 0) or die "seek: $!\n";
    my $n = sysread ($f, my $bytes, $length);
    defined $n or die "read: $!\n";
    $bytes .= "\0" x ($length - $n) if $n < $length;
    return $bytes;
}

sub must {
    my ($ok, $what) = @_;
    $ok or die "not true: $what\n";
}

my $map = JSON::PP->new->decode (slurp ($map_name));
my @extents = @{$map->{extents}};
my @deltas = @{$map->{deltas}};
my $content = open_raw ($content_name);
my @files = map { open_raw ($exports{$_->{file}} // $_->{file}) } @deltas;

# ---- The disk

sub same_bytes {
    my ($e) = @_;
    for (my $at = 0; $at < $e->{length}; $at += $chunk) {
        my $n = $e->{length} - $at < $chunk ? $e->{length} - $at : $chunk;
        my $want = read_at ($content, $e->{offset} + $at, $n);
        my $have = $e->{kind} ne "data" ? substr ($zeros, 0, $n)
            : read_at ($files[$e->{delta}], $e->{"host-offset"} + $at, $n);
        must ($have eq $want,
              "extent at $e->{offset}, $e->{kind}: other bytes, from $at on");
    }
}

my $end = 0;
my $last;
for my $e (@extents) {
    must ($e->{offset} == $end && $e->{length} > 0, "extents without gaps at $end");
    $end += $e->{length};
    same_bytes ($e);
    must (exists $e->{delta} == ($e->{kind} ne "unmapped"), "unmapped at $e->{offset}");
    must (!$last || $last->{kind} ne $e->{kind}
          || ($e->{kind} ne "unmapped"
              && !($last->{delta} == $e->{delta}
                   && $last->{"host-offset"} + $last->{length} == $e->{"host-offset"})),
          "extents at $e->{offset} joined");
    $last = $e;
}
must ($end == $map->{size}, "extents as long as the disk");
must (-s $content_name == $map->{size}, "size of the disk");

# The extent that OFFSET of the disk is in.
sub extent_at {
    my ($offset) = @_;
    my ($low, $high) = (0, scalar @extents);
    while ($high - $low > 1) {
        my $middle = int (($low + $high) / 2);
        if ($extents[$middle]{offset} <= $offset) { $low = $middle } else { $high = $middle }
    }
    return $extents[$low];
}

# ---- The files

# Where each part of a split disk ends: it is as large as its highest delta.
my @tops;
for my $d (@deltas) {
    my $top = $tops[$d->{part}];
    $tops[$d->{part}] = $d if !$top || $d->{level} > $top->{level};
}
my @part_ends;
push @part_ends, (@part_ends ? $part_ends[-1] : 0) + $_->{size} for @tops;
must ($part_ends[-1] == $map->{size}, "parts as large as the disk");

# How much of a range of clusters its part of the disk has: the last one may be cut.
sub inside {
    my ($d, $r) = @_;
    my $left = $part_ends[$d->{part}] - $r->{"disk-offset"};
    $left = 0 if $left < 0;
    return $left < $r->{length} ? $left : $r->{length};
}

# Each byte of a range of clusters, as far as the disk has it.
sub check_clusters {
    my ($d, $r) = @_;
    my $inside = inside ($d, $r);
    for (my $at = 0; $at < $inside;) {
        my $guest = $r->{"disk-offset"} + $at;
        my $e = extent_at ($guest);
        my $here = exists $e->{delta} && $e->{delta} == $d->{delta};
        if ($r->{use} eq "data") {
            must ($here && $e->{"host-offset"} - $e->{offset} == $r->{offset} - $r->{"disk-offset"},
                  "byte $guest of the disk is at " . ($r->{offset} + $at) . " of delta $d->{delta}");
        }
        else {
            must (exists $e->{delta} && !$here
                  && $deltas[$e->{delta}]{level} > $d->{level},
                  "byte $guest of the disk is hidden from delta $d->{delta}");
        }
        $at += $e->{offset} + $e->{length} - $guest;
    }
}

sub is_zero {
    my ($d, $r) = @_;
    for (my $at = 0; $at < $r->{length}; $at += $chunk) {
        my $n = $r->{length} - $at < $chunk ? $r->{length} - $at : $chunk;
        return 0 if read_at ($files[$d->{delta}], $r->{offset} + $at, $n)
                    ne substr ($zeros, 0, $n);
    }
    return 1;
}

sub is_cluster { return $_[0]{use} eq "data" || $_[0]{use} eq "hidden" }

sub check_fragments {
    my ($d, $r) = @_;
    my $size = $d->{"cluster-size"};
    my @clusters = grep { is_cluster ($_) } @$r;
    my ($nr, $fragments, $least) = (0, 0, 0);
    my ($host, $guest) = (-1, -1);
    for (@clusters) {
        $fragments++ if $_->{offset} != $host || $_->{"disk-offset"} != $guest;
        $host = $_->{offset} + $_->{length};
        $guest = $_->{"disk-offset"} + $_->{length};
        $nr += int (($_->{length} + $size - 1) / $size);
    }
    $guest = -1;
    for (sort { $a->{"disk-offset"} <=> $b->{"disk-offset"} } @clusters) {
        $least++ if $_->{"disk-offset"} != $guest;
        $guest = $_->{"disk-offset"} + int (($_->{length} + $size - 1) / $size) * $size;
    }
    must ($nr == $d->{"allocated-clusters"}, "allocated clusters: $nr");
    must ($fragments == $d->{fragments}, "fragments: $fragments");
    must ($least == $d->{"least-fragments"}, "least fragments: $least");
}

my $mapped = 0;
for my $d (@deltas) {
    my %bytes = map { ($_, 0) } qw(metadata data hidden extension leaked free);
    my ($at, $before) = (0);
    must ($d->{"file-size"} == -s $files[$d->{delta}], "size of file $d->{delta}");
    for my $r (@{$d->{ranges}}) {
        must ($r->{offset} == $at && $r->{length} > 0, "ranges without gaps at $at");
        $at += $r->{length};
        must (exists $bytes{$r->{use}}, "known use $r->{use}");
        $bytes{$r->{use}} += $r->{length};
        must (exists $r->{"disk-offset"} == is_cluster ($r), "disk-offset at $r->{offset}");
        must ($r->{use} ne "metadata" || ($r->{offset} == 0 && $d->{format} eq "ploop"),
              "metadata is first");
        must ($r->{use} ne "free" || is_zero ($d, $r), "free at $r->{offset} is zeros");
        must (!$before || $before->{use} ne $r->{use}
              || (is_cluster ($r)
                  && $before->{"disk-offset"} + $before->{length} != $r->{"disk-offset"}),
              "ranges at $r->{offset} joined");
        check_clusters ($d, $r) if is_cluster ($r);
        $mapped += inside ($d, $r) if $r->{use} eq "data";
        $before = $r;
    }
    must ($at == $d->{"file-size"}, "ranges as long as the file");
    must ($bytes{$_} == $d->{"$_-bytes"}, "$_-bytes is $bytes{$_}") for keys %bytes;
    check_fragments ($d, $d->{ranges});
}

# What is mapped, and not behind the end of a file, is all in ranges of data.
for my $e (grep { exists $_->{delta} } @extents) {
    my $inside = $deltas[$e->{delta}]{"file-size"} - $e->{"host-offset"};
    $inside = 0 if $inside < 0;
    $mapped -= $inside < $e->{length} ? $inside : $e->{length};
}
must ($mapped == 0, "as much data in files as on the disk ($mapped)");
