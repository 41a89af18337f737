#!/usr/bin/perl
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A second opinion on changed-block bitmaps, by the published description of the
# format alone.
#
#   bitmap.pl read FILE
#     The extension of FILE, which must be one that qemu and libploop 9 take:
#       bitmap UUID SIZE GRANULARITY      (bytes)
#       range OFFSET LENGTH               of the bitmap before it
#       feature MAGIC FLAGS DATA          (hexadecimal)
#   bitmap.pl write FILE rounded|plain
#     Append an extension to FILE, which has none.  Standard input has the same lines.
#     rounded: features' data is padded to 8 bytes, as qemu does; plain: as libploop.
#     Then "poke OFFSET HEX" changes the extension before its checksum is made, and
#     "shut VALUE" is what the in-use mark becomes.

use strict;
use warnings;
no warnings "portable";
use Digest::MD5 qw(md5);

my ($command, $file, $padding) = @ARGV;
my $extension_magic = pack ("H*", "87eadc23ef4c23ab");
my $bitmap_magic = pack ("H*", "4ab32c25ae5f3820");

open (my $f, "+<:raw", $file) or die "$file: $!\n";

sub get
{
  my ($offset, $length) = @_;
  seek ($f, $offset, 0);
  read ($f, my $bytes, $length);
  return $bytes . "\0" x ($length - length ($bytes));
}

my $header = get (0, 64);
my $v1 = substr ($header, 0, 16) eq "WithoutFreeSpace";
my ($sectors, $nr_entries) = unpack ("x28 V V", $header);
my $size = unpack ($v1 ? "x36 V" : "x36 Q<", $header) * 512;
my ($in_use, $data_sectors, $flags, $ext) = unpack ("x44 V V V Q<", $header);
my $cluster = $sectors * 512;
my $data = $data_sectors ? $data_sectors * 512
                         : int ((64 + 4 * $nr_entries + 511) / 512) * 512;
my @bat = unpack ("V*", get (64, 4 * $nr_entries));
my %owner;
my $data_end = $data;
for my $i (0 .. $#bat) {
  next unless $bat[$i];
  my $offset = $bat[$i] * ($v1 ? 512 : $cluster);
  $owner{$offset} = "BAT entry $i";
  $data_end = $offset + $cluster if $data_end < $offset + $cluster;
}

sub own
{
  my ($offset, $who) = @_;
  die "$who is at $offset, below the data\n" if $offset < $data;
  die "$who is at $offset, past the end\n" if $offset + $cluster > -s $f;
  die "$who is at $offset, off the grid\n" if ($offset - $data) % $cluster;
  die "$who is at $offset, as is $owner{$offset}\n" if $owner{$offset};
  $owner{$offset} = $who;
}

sub uuid_text
{
  return join "-", unpack ("H8 H4 H4 H4 H12", $_[0]);
}

sub read_bitmap
{
  my ($data) = @_;
  my ($bm_sectors, $id, $gran, $nr_l1) = unpack ("Q< a16 V V", $data);
  my @l1 = unpack ("x32 Q<*", $data);
  my $nr_bits = int (($bm_sectors + $gran - 1) / $gran);
  my $per = $cluster * 8;
  my $bits = "";

  die "L1 length $nr_l1\n" if $nr_l1 != @l1;
  die "L1 length $nr_l1, qemu wants another\n"
    if $nr_l1 != int (($nr_bits + $per - 1) / $per);
  die "size\n" if $bm_sectors * 512 != $size;
  for my $entry (@l1) {
    if ($entry <= 1) {
      $bits .= ($entry ? "\xff" : "\0") x $cluster;
      next;
    }
    own ($entry * 512, "a cluster of bits");
    die "bits behind the extension\n" if $entry > $ext;
    $bits .= get ($entry * 512, $cluster);
  }
  print "bitmap ", uuid_text ($id), " ", $bm_sectors * 512, " ", $gran * 512,
        "\n";
  my $text = substr (unpack ("b*", $bits), 0, $nr_bits);
  while ($text =~ /1+/g) {
    my ($from, $to) = ($-[0] * $gran * 512, $+[0] * $gran * 512);
    $to = $size if $to > $size;
    print "range $from ", $to - $from, "\n";
  }
}

sub read_extension
{
  die "in use is $in_use\n" if $in_use != 0x312e3276;
  own ($ext * 512, "the extension");
  my $bytes = get ($ext * 512, $cluster);
  die "magic\n" if substr ($bytes, 0, 8) ne $extension_magic;
  die "MD5\n" if md5 (substr ($bytes, 24)) ne substr ($bytes, 8, 16);
  for (my $at = 24;;) {
    die "no end\n" if $at + 24 > $cluster;
    my ($magic, $flags, $length, $zero) =
      unpack ("a8 Q< V V", substr ($bytes, $at, 24));
    last if $magic eq "\0" x 8;
    my $data = substr ($bytes, $at + 24, $length);
    if ($magic eq $bitmap_magic) {
      die "flags $flags\n" if $flags;
      read_bitmap ($data);
    }
    else {
      printf "feature %x %u %s\n", unpack ("Q<", $magic), $flags,
             unpack ("H*", $data);
    }
    $at += 24 + $length;
    $at += -$length % 8 if ($padding // "rounded") eq "rounded";
  }
}

sub append
{
  my ($bytes) = @_;
  my $end = -s $f;
  $end = $data_end if $end < $data_end;
  $end = $data + int (($end - $data + $cluster - 1) / $cluster) * $cluster;
  seek ($f, $end, 0);
  print $f $bytes . "\0" x ($cluster - length ($bytes));
  $f->flush;
  return $end / 512;
}

sub bitmap_data
{
  my ($id, $gran, $empty, @ranges) = @_;
  my $nr_bits = int (($size + $gran - 1) / $gran);
  my $text = "0" x $nr_bits;
  my @l1;

  for (@ranges) {
    my ($from, $length) = @$_;
    my $first = int ($from / $gran);
    my $last = int (($from + $length - 1) / $gran);
    substr ($text, $first, $last - $first + 1) = "1" x ($last - $first + 1);
  }
  my $bits = pack ("b*", $text);
  while (length ($bits) && !$empty) {
    my $part = substr ($bits, 0, $cluster, "");
    push @l1, $part =~ /[^\0]/ ? append ($part) : 0;
  }
  return pack ("Q< a16 V V Q<*", $size / 512, pack ("H*", $id =~ tr/-//dr),
               $gran / 512, scalar @l1, @l1);
}

sub write_extension
{
  my $bytes = $extension_magic . "\0" x 16;
  my (@features, @pokes);
  my $shut = "0x312e3276";

  while (<STDIN>) {
    my @words = split;
    next unless @words;
    push @features, [ @words ] if $words[0] =~ /^(bitmap|empty|feature)$/;
    push @{$features[-1]}, [ @words[1, 2] ] if $words[0] eq "range";
    push @pokes, [ @words[1, 2] ] if $words[0] eq "poke";
    $shut = $words[1] if $words[0] eq "shut";
  }
  for (@features) {
    my ($kind, $a, $b, $c, @ranges) = @$_;
    my ($magic, $flags, $data);
    if ($kind eq "feature") {
      ($magic, $flags, $data) =
        (pack ("Q<", hex $a), $b, pack ("H*", $c // ""));
    }
    else {
      ($magic, $flags) = ($bitmap_magic, 0);
      $data = bitmap_data ($a, $c, $kind eq "empty", @ranges);
    }
    $bytes .= $magic . pack ("Q< V V", $flags, length ($data), 0) . $data;
    $bytes .= "\0" x (-length ($data) % 8) if $padding eq "rounded";
  }
  $bytes .= "\0" x ($cluster - length ($bytes));
  die "does not fit\n" if length ($bytes) > $cluster;
  substr ($bytes, $_->[0], length ($_->[1]) / 2) = pack ("H*", $_->[1])
    for @pokes;
  substr ($bytes, 8, 16) = md5 (substr ($bytes, 24));
  my $sector = append ($bytes);
  seek ($f, 44, 0);
  print $f pack ("V", hex $shut);
  seek ($f, 56, 0);
  print $f pack ("Q<", $sector);
}

$command eq "read" ? read_extension () : write_extension ();
close ($f) or die "$file: $!\n";
