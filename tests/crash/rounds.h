/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The frame of tests that let one command work on an image drawn at random, under the
 * recorder, and then cut the power at each moment of that.
 *
 * Environment: PLOOP_TEST_SEED, of the first round; PLOOP_TEST_SCALE, per cent of the
 * usual number of rounds.
 */

#ifndef PLOOP_TESTS_ROUNDS_H
#define PLOOP_TESTS_ROUNDS_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "recorder.h"

/* A file for this test alone, in memory where that is offered. */
const char *rounds_path (const char *name);

/* One round.  With BROKEN_SYNC, syncs do nothing; it is quiet about what it finds. */
typedef void (*rounds_fn) (uint32_t seed, bool broken_sync);

/* Run NR rounds, and then some with syncs that do nothing: that must be noticed.  To be
 * returned by main.
 */
int rounds_main (unsigned nr, rounds_fn run);

/* A cut from which the command goes on when nothing is recorded any more. */
struct rounds_left {
  recorder_cut_t *cut;
  uint64_t moment;
};

/* Judges a cut: rules_break. */
typedef void (*rounds_check_fn) (const struct recorder_cut *cut,
                                 uint64_t moment, void *opaque);

/* Cut at many moments up to END, each time with each chance of what is not synced to be
 * there.  Some cuts are left over: struct rounds_left (g_array_unref).
 */
GArray *rounds_cut (uint64_t end, bool broken_sync, GRand *random,
                    rounds_check_fn check, void *opaque);

/* One of them is gone on with. */
void rounds_count_resumed (void);

#endif /* PLOOP_TESTS_ROUNDS_H */
