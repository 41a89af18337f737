#!/usr/bin/env perl
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Judges a file in Prometheus' text format (version 0.0.4), more strictly than its own
# parser does, and shares no code with what wrote it:
#
#     check-metrics.pl FILE            is it right?
#     check-metrics.pl OLD NEW         and has no counter of OLD gone, or backwards?
#     check-metrics.pl --watch FILE SECONDS
#                                      is it right whenever one looks?  Prints how many
#                                      files there were one after the other
#
# Exit status 0, or 1 with what is wrong on standard error.

use strict;
use warnings;
use Encode ();
use Time::HiRes ();

my $where = '';

sub wrong
{
    die "$where: $_[0]\n";
}

# The text of a label's value is read to its closing quote; returns its bytes.
sub take_value
{
    my ($text) = @_;
    my $value = '';
    for (;;) {
        if ($$text =~ /\G([^\\"\n]+)/gc) {
            $value .= $1;
        }
        elsif ($$text =~ /\G\\([\\"n])/gc) {
            $value .= $1 eq 'n' ? "\n" : $1;
        }
        elsif ($$text =~ /\G"/gc) {
            return $value;
        }
        else {
            wrong("an escape that does not exist, or no closing quote");
        }
    }
}

# NAME{LABEL="VALUE",...} NUMBER: returns name, labels (a hash) and number.
sub parse_sample
{
    my ($line) = @_;
    my %labels;
    $line =~ /\G([a-zA-Z_:][a-zA-Z0-9_:]*)/gc or wrong("no name: $line");
    my $name = $1;
    if ($line =~ /\G\{/gc) {
        do {
            $line =~ /\G([a-zA-Z_][a-zA-Z0-9_]*)="/gc or wrong("no label: $line");
            my $label = $1;
            wrong("the label $label twice: $line") if exists $labels{$label};
            $labels{$label} = take_value(\$line);
        } while ($line =~ /\G,/gc);
        $line =~ /\G\}/gc or wrong("no closing brace: $line");
    }
    $line =~ /\G (-?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)$/gc
        or wrong("no number: $line");
    return ($name, \%labels, $1);
}

# A series, without the label that its buckets differ in.
sub key_of
{
    my ($name, $labels) = @_;
    return join("\0", $name, map { "$_\0$labels->{$_}" }
                             grep { $_ ne 'le' } sort keys %$labels);
}

# One sample of a histogram; they come in the order: buckets, sum, count.
sub look_at_histogram
{
    my ($family, $part, $labels, $value) = @_;
    my $h = $family->{histograms}{ key_of('', $labels) } ||= { last => -1 };
    if ($part eq '_bucket') {
        my $le = delete $labels->{le};
        defined $le && !$h->{sum} or wrong("a bucket out of place");
        wrong("a bucket behind +Inf") if $h->{last} eq 'inf';
        $le eq '+Inf' || ($le =~ /^[0-9.]+(e-?[0-9]+)?$/ && $le > $h->{last})
            or wrong("the bound $le does not follow $h->{last}");
        wrong("a bucket has less than the one before")
            if defined $h->{below} && $value < $h->{below};
        ($h->{last}, $h->{below}) = ($le eq '+Inf' ? 'inf' : $le, $value);
    }
    elsif ($part eq '_sum') {
        $h->{last} eq 'inf' && !$h->{sum}++ or wrong("a sum out of place");
        wrong("a sum without anything measured") if $value > 0 && $h->{below} == 0;
    }
    else {
        $h->{sum} && !$h->{count}++ or wrong("a count out of place");
        wrong("the count is not that of +Inf") if $value != $h->{below};
    }
}

sub look_at_sample
{
    my ($family, $line, $series) = @_;
    my ($name, $labels, $value) = parse_sample($line);
    my $part = substr($name, length $family->{name});
    index($name, $family->{name}) == 0
        && ($family->{type} eq 'histogram' ? $part =~ /^_(bucket|sum|count)$/
                                           : $part eq '')
        or wrong("$name does not belong to $family->{name}");
    my $key = key_of($name, $labels) . "\0" . ($labels->{le} // '');
    wrong("twice: $line") if exists $series->{$key};
    $series->{$key} = { type => $family->{type}, value => $value, line => $line };
    wrong("negative: $line") if $value =~ /^-/;
    look_at_histogram($family, $part, $labels, $value)
        if $family->{type} eq 'histogram';
}

# Of the names, beyond what the format demands: what Prometheus advises.
sub look_at_name
{
    my ($name, $type) = @_;
    $name =~ /^ploop_[a-z_]+$/ or wrong("a name that is not ours: $name");
    ($type eq 'counter') == ($name =~ /_total$/)
        or wrong("counters, and only they, end in _total: $name");
    wrong("a name like that of a part: $name") if $name =~ /_(count|sum|bucket)$/;
    wrong("not in base units: $name")
        if $name =~ /_(ms|us|ns|milliseconds|kilobytes|kb|mb)(_total)?$/;
}

sub end_family
{
    my ($family) = @_;
    return unless $family;
    wrong("$family->{name} has no type") unless $family->{type};
    for my $h (values %{ $family->{histograms} }) {
        $h->{count} or wrong("a histogram of $family->{name} has no count");
    }
}

# Returns all series of the TEXT.
sub check
{
    my ($text) = @_;
    my (%series, %seen, $family);
    eval { Encode::decode('UTF-8', my $copy = $text, Encode::FB_CROAK); 1 }
        or wrong("not UTF-8");
    $text =~ /\n\z/ or wrong("does not end with a line's end");
    for my $line (split /\n/, $text, -1) {
        if ($line =~ /^# HELP (\S+) (\S[^\\]*)$/) {
            end_family($family);
            wrong("twice: $1") if $seen{$1}++;
            $family = { name => $1, histograms => {} };
        }
        elsif ($line =~ /^# TYPE (\S+) (counter|gauge|histogram)$/) {
            $family && $family->{name} eq $1 && !$family->{type}
                or wrong("a type out of place: $line");
            look_at_name($1, $2);
            $family->{type} = $2;
        }
        elsif ($line ne '') {
            wrong("a line that is nothing: $line") if $line =~ /^#/;
            $family && $family->{type} or wrong("without a type: $line");
            look_at_sample($family, $line, \%series);
        }
    }
    end_family($family);
    wrong("the last metric is missing")
        unless $family && $family->{name} eq 'ploop_writeback_retries_total';
    for my $disk (grep { /^ploop_disk_open\0/ } keys %series) {
        (my $last = $disk) =~ s/^ploop_disk_open/ploop_writeback_retries_total/;
        exists $series{$last} or wrong("the last metric of a disk is missing");
    }
    return \%series;
}

sub read_file
{
    open my $f, '<:raw', $_[0] or die "$_[0]: $!\n";
    local $/;
    my $text = <$f>;
    my @st = stat $f;
    my $inode = "$st[1] $st[9]";
    return ($text, $inode);
}

if (@ARGV == 3 && $ARGV[0] eq '--watch') {
    my $end = Time::HiRes::time() + $ARGV[2];
    my ($nr, $last) = (0, '');
    while (Time::HiRes::time() < $end) {
        my ($text, $inode) = read_file($ARGV[1]);
        next if $inode eq $last && $nr > 0 && rand() < 0.9;
        $where = "$ARGV[1], file $nr";
        check($text);
        $nr++ if $inode ne $last;
        $last = $inode;
    }
    print "$nr\n";
    exit 0;
}

@ARGV == 1 || @ARGV == 2 or die "usage: $0 FILE | OLD NEW | --watch FILE SECONDS\n";
my @all;
for my $path (@ARGV) {
    $where = $path;
    push @all, check((read_file($path))[0]);
}
if (@all == 2) {
    for my $key (keys %{ $all[0] }) {
        my $old = $all[0]{$key};
        next if $old->{type} eq 'gauge';
        my $new = $all[1]{$key} or wrong("gone: $old->{line}");
        wrong("backwards: $old->{line}, then $new->{value}")
            if $new->{value} < $old->{value};
    }
}
