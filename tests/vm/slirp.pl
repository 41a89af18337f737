# SPDX-License-Identifier: LGPL-2.1-or-later
#
# slirp.pl COMMAND [ARG...]: run COMMAND with file descriptor 9 being a network, in
# which 10.0.2.2 is this host's 127.0.0.1: one end of a pair of sockets whose other
# end a libslirp-helper has, until COMMAND ends.

use strict;
use warnings;
use POSIX qw(dup2 _exit);
use Socket;

socketpair (my $ours, my $theirs, AF_UNIX, SOCK_DGRAM, PF_UNSPEC)
  or die "socketpair: $!\n";
my $pid = fork;
defined $pid or die "fork: $!\n";
if ($pid == 0) {
  dup2 (fileno $theirs, 8);
  exec 'libslirp-helper', '--disable-ipv6', '--exit-with-parent', '--fd', '8';
  _exit 127;
}
dup2 (fileno $ours, 9);
exec @ARGV or die "$ARGV[0]: $!\n";
