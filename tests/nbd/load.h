/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Random requests of several connections at once, checked against the model.
 *
 * Each connection has a thread, several requests in flight, and bytes of its
 * own: the disk is cut into stripes that are dealt out in turn.  Stripes are
 * narrower than clusters, so neighbours share clusters and allocate the same
 * ones at the same time, all the more as half of the requests go where a front
 * that all connections push along is just then.  What a connection writes
 * carries its number, so that a reader of its neighbours' bytes can tell them
 * from anybody else's.
 */

#ifndef PLOOP_TEST_LOAD_H
#define PLOOP_TEST_LOAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "disk.h"
#include "server.h"

#define LOAD_MAX_CONNECTIONS 8

struct load {
  /* Set by the caller. */
  struct disk *disk;
  const struct server *server;
  const char *export;           /* NULL: the one without a name */
  const char *uri;              /* instead of both; NULL: not */
  unsigned nr_connections;
  unsigned depth;               /* requests in flight of each, up to 32 */
  uint64_t nr_requests;         /* of all connections; 0: until broken */
  uint64_t offset, length;      /* the region of the disk that is used */
  uint64_t stripe;              /* bytes; not used with one connection */
  uint64_t max_length;          /* of a request, bytes */
  uint64_t stream;              /* which random numbers */
  unsigned read_percent;        /* the rest writes, zeroes and flushes */
  bool aligned;                 /* to sectors */
  bool tagged;                  /* the region was all zeros or tagged before */
  bool may_break;               /* a server that goes away is no failure */
  /* Also trims, zeroes with all flags, whole clusters of them, writes of zeros,
   * block status and prefetch; disk_expect_trims was called.
   */
  bool space;
  bool trims_do_nothing;        /* what was trimmed must stay */

  /* Counts, in memory that a parent may share, of one load after the other.
   * NULL: not wanted.
   */
  struct load_counts {
    atomic_uint_fast64_t issued;        /* by the one that runs */
    atomic_uint_fast64_t answered;
    atomic_uint_fast64_t front;
    atomic_uint_fast64_t trimmed;       /* by kind, of those answered */
    atomic_uint_fast64_t zeroed;
    atomic_uint_fast64_t zeroed_fast;
    atomic_uint_fast64_t not_fast;      /* refused */
  } *counts;
};

/* Run LOAD to its end. */
void load_run (const struct load *load);

/* The same in the background, to do something to the server meanwhile. */
struct load_run;
struct load_run *load_start (const struct load *load);
void load_join (struct load_run *run);

/* Counts that children of the test share. */
struct load_counts *load_counts_new (void);

/* Wait until N requests were answered.  False when the load ended before. */
bool load_wait_answered (struct load_counts *counts, uint64_t n);

#endif /* PLOOP_TEST_LOAD_H */
