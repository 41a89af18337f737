# SPDX-License-Identifier: LGPL-2.1-or-later
#
# records.pl write DIRECTORY FIRST: write numbered records, from FIRST on and for ever,
# each synced, and print "@@ NUMBER" when it is.  Each is a line at the end of a log;
# every eighth also a file of its own, which gets its name when it is synced.
# Ends with an error when something cannot be written.
#
# records.pl verify DIRECTORY LAST: all of them up to LAST must be there.

use strict;
use warnings;
use IO::Handle;

sub line { return sprintf "%-63d\n", $_[0] }
sub content { return line ($_[0]) x (1 + $_[0] % 700) }

sub sync_directory {
  open my $handle, '<', $_[0] or die "$_[0]: $!\n";
  $handle->sync or die "$_[0]: $!\n";
}

sub write_file {
  my ($directory, $number) = @_;
  my $name = "$directory/record.$number";
  open my $handle, '>', "$name.new" or die "$name.new: $!\n";
  defined syswrite $handle, content ($number) or die "$name.new: $!\n";
  $handle->sync or die "$name.new: $!\n";
  close $handle or die "$name.new: $!\n";
  rename "$name.new", $name or die "$name: $!\n";
  sync_directory ($directory);
}

sub write_records {
  my ($directory, $number) = @_;
  open my $log, '>>', "$directory/log" or die "$directory/log: $!\n";
  # What came after the last record that is known may be there or not.
  truncate $log, length (line (0)) * ($number - 1) or die "$directory/log: $!\n";
  STDOUT->autoflush;
  for (;; $number++) {
    defined syswrite $log, line ($number) or die "$directory/log: $!\n";
    $log->sync or die "$directory/log: $!\n";
    write_file ($directory, $number) if $number % 8 == 0;
    print "@@ $number\n";
  }
}

sub read_file {
  open my $handle, '<', $_[0] or die "$_[0]: $!\n";
  local $/;
  return readline ($handle) // '';
}

sub verify_records {
  my ($directory, $last) = @_;
  my $log = read_file ("$directory/log");
  for my $number (1 .. $last) {
    my $found = substr $log, length (line (0)) * ($number - 1), length (line (0));
    $found eq line ($number) or die "record $number of $last is not in the log\n";
    next if $number % 8;
    read_file ("$directory/record.$number") eq content ($number)
      or die "record.$number of $last has other content\n";
  }
}

my ($what, $directory, $number) = @ARGV;
if ($what eq 'write') {
  write_records ($directory, $number);
} else {
  verify_records ($directory, $number);
}
