/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Which host clusters are free.
 *
 * A cluster that is handed out is *fresh*: it reads as zeros, and the file's
 * size that covers it is on stable storage.  So a BAT entry that names it may
 * reach the disk at any time, before or after its data: the guest reads zeros,
 * which is what it read before.
 *
 * The file is extended and synced in large steps; what a step brings is a
 * bitmap of fresh cells.  Taking one is an atomic and, giving one back an
 * atomic or; the lowest goes first, but for a race.  Only extending takes a
 * lock.
 */

#ifndef PLOOP_LIB_ALLOC_H
#define PLOOP_LIB_ALLOC_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "delta.h"
#include "error.h"

struct alloc {
  struct delta *delta;
  const struct log *log;
  _Atomic uint64_t *fresh;      /* a bit a cell, from cell base up */
  uint64_t base;                /* the first cell after all that were in use */
  uint64_t capacity;            /* bits */
  _Atomic uint64_t limit;       /* bits below it are in the file; only grows */
  _Atomic uint64_t hint;        /* word where to look first */
  _Atomic int64_t nr_wanted;    /* guest clusters that have no host cluster */
  _Atomic uint64_t nr_held;     /* taken, not kept or given back yet */
  _Atomic uint64_t nr_returned; /* given back so far; only grows */
  pthread_mutex_t extend_lock;  /* for what follows */
  uint64_t data_end;            /* at open: what lies beyond is nobody's */
  bool tail_cut;                /* the file ends at data_end or beyond limit */
  int failed;                   /* a sync failed: do not extend again */
};

/* DATA_END is the end of the highest host cluster in use (bytes of the file),
 * NR_WANTED how many guest clusters have none.  Changes nothing in the file.
 * Returns 0 or a negative errno.
 */
int alloc_init (struct alloc *alloc, struct delta *delta,
                const struct log *log, uint64_t data_end, uint64_t nr_wanted);
void alloc_destroy (struct alloc *alloc);

/* Take a fresh host cluster; *ENTRY is its BAT entry.  The caller says soon what
 * becomes of it, without waiting for anybody: alloc_keep or alloc_give_back.
 *
 * Blocks while the file is extended.  Returns 0 or a negative errno, -ENOSPC
 * when the file cannot grow and nobody holds a cluster that may come back.  The
 * in-use mark must be on disk (commit_begin).
 */
int alloc_take (struct alloc *alloc, uint32_t *entry);

/* A map word names the cluster that was taken. */
void alloc_keep (struct alloc *alloc);

/* Nothing was written to the cluster that was taken, and no map word ever
 * named it.
 */
void alloc_give_back (struct alloc *alloc, uint32_t entry);

/* When nobody takes any more: cut off what was added to the file and is not in
 * use; with DEBRIS also what was behind the last cluster when the file was
 * opened.  Returns 0 or a negative errno.
 */
int alloc_cut_tail (struct alloc *alloc, bool debris);

#endif /* PLOOP_LIB_ALLOC_H */
