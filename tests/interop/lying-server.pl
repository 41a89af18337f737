#!/usr/bin/env perl
# SPDX-License-Identifier: LGPL-2.1-or-later

# Speaks NBD as no server should, for test-hostile.sh.
#
#   lying-server.pl SOCKET CASE    to one client after another
#   lying-server.pl                lists the CASEs
#
# It waits a moment for what clients send, and not for them to say good-bye.

use strict;
use warnings;
no warnings 'portable';
use IO::Select;
use IO::Socket::UNIX;

$SIG{PIPE} = 'IGNORE';
my $MAGIC = 0x49484156454f5054;         # IHAVEOPT
my $REPLY = 0x0003e889045565a9;
my ($GO, $STRUCTURED) = (7, 8);
my $socket;

# As much as the other side takes.
sub put {
    my ($data) = @_;
    my $select = IO::Select->new ($socket);
    while (length $data && $select->can_write (0.3)) {
        my $nr = syswrite $socket, $data;
        last unless $nr;
        substr $data, 0, $nr, '';
    }
}

# What comes, up to WANTED bytes, until the other side closes or is silent for a while.
sub drain {
    my ($wanted) = @_;
    my $got = '';
    my $select = IO::Select->new ($socket);
    while (length $got < ($wanted // 1 << 30)) {
        last unless $select->can_read (0.3);
        last unless sysread $socket, $got, $wanted ? $wanted - length $got : 65536, length $got;
    }
    return $got;
}

# Answers the options up to the one that asks for an export.
sub answer_options {
    my ($size) = @_;
    put pack 'A8Q>n', 'NBDMAGIC', $MAGIC, 3;
    drain 4;
    for (1 .. 20) {
        my $header = drain 16;
        return if length $header < 16;
        my (undef, $nr, $length) = unpack 'Q>NN', $header;
        drain $length if $length;
        if ($nr == $GO) {
            put pack 'Q>NNNnQ>n', $REPLY, $nr, 3, 12, 0, $size, 0x1;
            put pack 'Q>NNN', $REPLY, $nr, 1, 0;
            return 1;
        }
        put pack 'Q>NNN', $REPLY, $nr, 0x80000001, 0;   # not supported
    }
}

my %server = (
    'noise'               => sub { put pack 'N*', map { int rand 1 << 32 } 1 .. 16384; drain },
    'closes-at-once'      => sub { },
    'says-half'           => sub { put 'NBDMAG'; },
    'says-nothing'        => sub { drain; drain; },
    'reply-of-4-gib'      => sub { put pack 'A8Q>n', 'NBDMAGIC', $MAGIC, 3; drain 4; drain 16;
                                   put pack ('Q>NNN', $REPLY, $STRUCTURED, 1, 0xffffffff) . 'x' x 100000; drain },
    'reply-without-magic' => sub { put pack 'A8Q>n', 'NBDMAGIC', $MAGIC, 3; drain 4; drain 16; put 'z' x 100; drain },
    'export-of-16-eib'    => sub { answer_options 0xffffffffffffffff; drain },
    'export-of-8-eib'     => sub { answer_options 0x7ffffffffffffe00; drain },
    'answers-nonsense'    => sub { answer_options 8 << 20; drain 28; put 'q' x 5000; drain },
);

# ---- Main

my ($path, $case) = @ARGV;
if (!defined $path) {
    print "$_\n" for sort keys %server;
    exit;
}
srand 4711;
my $listening = IO::Socket::UNIX->new (Local => $path, Listen => 10) or die "$path: $!\n";
while ($socket = $listening->accept) {
    $socket->blocking (0);
    $server{$case}->();
    close $socket;
}
