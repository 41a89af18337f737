/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What is done to an image before the power is cut: threads that write, zero,
 * trim, flush and read back, and a keeper who reads all and suspends.
 *
 * The first half of the disk is shared: runs of sectors belong to the threads
 * by turns, many in a cluster.  In the second half each has whole clusters of
 * its own, which it trims.  Trims of the shared half are stray: they clear what
 * others write.
 */

#ifndef PLOOP_TESTS_WORKLOAD_H
#define PLOOP_TESTS_WORKLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "ploop-core.h"
#include "recorder.h"

#define WORKLOAD_NR_SECTORS 3000u

struct workload {
  uint32_t cluster_sectors;
  struct ploop_open_options options;
  unsigned nr_threads;
  unsigned nr_operations;       /* a thread */
  unsigned in_flight;           /* requests a thread; 1: only those that wait */
  /* Of a hundred operations; what is left are writes. */
  unsigned flushes, zeroes, trims, stray_trims, reads;
  unsigned forced;              /* of a hundred that change something */
  bool hot;                     /* some sectors much more often than others */
  bool suspends;
  const bool *covered;          /* clusters that a lower delta has; NULL: none */
  /* What requests may fail with. */
  bool may_fail, may_lack_space;
};

/* Run it on the image PATH, in use by nobody else, to the end.  Rules that are
 * broken meanwhile are told to rules_break.
 *
 * *CLOSING is the moment when closing began; SUSPENDED (of uint64_t) receives
 * moments at which all that was answered was durable.
 */
void workload_run (const struct workload *workload, const char *path,
                   uint32_t seed, uint64_t *closing, GArray *suspended);

#endif /* PLOOP_TESTS_WORKLOAD_H */
