# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
#
# What the tests of ploop-attach share; sourced in the guest.

fail () { echo "FAILED: $*"; cat /root/log; exit 1; }

# said TEXT: /root/log, as one line, has it (a regular expression).
said () { [[ $(tr '\n' ' ' < /root/log) =~ $1 ]] || fail "it does not say '$1'"; }

# fails STATUS TEXT PROGRAM ARG...
fails ()
{
  local status=0
  "${@:3}" > /root/log 2>&1 || status=$?
  [ "$status" -eq "$1" ] || fail "status $status, must be $1: ${*:3}"
  said "$2"
}

nothing_left ()
{
  local left
  left=$(ls -A /run/ploop-attach; pidof nbdkit; ls /sys/block/nbd*/pid 2> /dev/null) || :
  [ -z "$left" ] || fail "$1 has left: $left"
}

# Until no server runs.
wait_for_end () { while pidof nbdkit > /dev/null; do sleep 0.1; done; }

pid_of_server () { cat "/run/ploop-attach/$1/server.pid"; }
