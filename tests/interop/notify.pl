#!/usr/bin/perl
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# notify.pl SOCKET FILE: a service manager's end of sd_notify.  Listens on the Unix
# socket SOCKET and appends each message to FILE, a line for each of its lines and an
# empty one behind it.

use strict;
use warnings;
use IO::Handle;
use IO::Socket::UNIX;
use Socket qw(SOCK_DGRAM);

my ($path, $file) = @ARGV;
open my $out, '>>', $file or die "$file: $!\n";
$out->autoflush (1);
my $socket = IO::Socket::UNIX->new (Type => SOCK_DGRAM, Local => $path)
  or die "$path: $!\n";
while (defined $socket->recv (my $message, 65536)) {
  print $out "$message\n\n";
}
