# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash

# The commands of README's part on packages, so that they are run as they are printed.
# Sourced behind ../functions.sh.

# readme_command PROGRAM: the one command there that has the word PROGRAM.
readme_command ()
{
  local command
  command=$(sed -n '/^### Packages/,/^##* [A-Z]/ s/^    //p' "$abs_top_srcdir/README.md" |
    sed -e ':more' -e '/\\$/ { N; s/\\\n *//; b more' -e '}' | grep -w -- "$1") ||
    fail "README.md has no command with $1"
  [ "$(wc -l <<< "$command")" -eq 1 ] || fail "README.md: several commands with $1"
  printf '%s\n' "$command"
}
