# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034
#
# libploop-core(3): ../examples-run.sh tells what this table says.

example 'cc example.c' --after 'ploop-img check example.hds'
