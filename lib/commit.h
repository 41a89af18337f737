/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What makes changes durable, in the right order: the in-use mark, BAT
 * entries, syncs.
 *
 *   in-use mark   on disk before the first change to anything else
 *   BAT entry     in the page cache before the write that needs it is answered:
 *                 killing the process loses nothing that was answered
 *   flush         one sync for all who wait; none when nothing was written
 *
 * A failed sync is remembered: the kernel reports it once and then forgets the
 * data.
 */

#ifndef PLOOP_LIB_COMMIT_H
#define PLOOP_LIB_COMMIT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "delta.h"
#include "error.h"
#include "map.h"

#define COMMIT_NR_PAGE_LOCKS 64u

struct commit {
  struct delta *delta;
  struct map *map;
  const struct log *log;

  _Atomic bool marked;          /* the in-use mark is on disk */
  pthread_mutex_t mark_lock;    /* for header */
  struct format_header header;  /* as in the file now */
  GArray *lost;                 /* of uint32_t: see commit_init */

  /* By BAT page: in order, the number of the last change. */
  _Atomic uint64_t *page_changes;
  uint64_t nr_pages;
  pthread_mutex_t page_locks[COMMIT_NR_PAGE_LOCKS];

  _Atomic uint64_t nr_changes;  /* changes to the file so far */
  _Atomic uint64_t nr_synced;   /* as many of them are durable */
  pthread_mutex_t sync_lock;
  _Atomic bool failed;          /* a sync failed */
};

/* LOST (of uint32_t; may be NULL; taken over) are the guest clusters whose BAT
 * entries name host clusters that never came to be, because a server was
 * killed: they are cleared before anything else is changed.
 *
 * Returns 0 or a negative errno.
 */
int commit_init (struct commit *commit, struct delta *delta, struct map *map,
                 const struct log *log, GArray *lost);
void commit_destroy (struct commit *commit);

/* To be called before anything in the file is changed: sees to it that the
 * in-use mark is on disk.  Costs one load after the first time.  Returns 0 or
 * a negative errno; the caller must not change the file then.
 */
int commit_mark (struct commit *commit);

static inline int
commit_begin (struct commit *commit)
{
  /* Acquire: pairs with the release in commit_mark. */
  if (G_LIKELY (atomic_load_explicit (&commit->marked, memory_order_acquire)))
    return 0;
  return commit_mark (commit);
}

/* Has this session changed the file? */
bool commit_is_marked (const struct commit *commit);

/* The guest cluster's map word says that its entry is unwritten: write it to
 * the BAT in the page cache.  Does nothing when another thread has done so.
 * Returns 0 or a negative errno; the word stays unwritten then.
 */
int commit_write_entry (struct commit *commit, uint64_t cluster);

/* Is the BAT entry of a mapped, written cluster on stable storage? */
bool commit_entry_is_durable (const struct commit *commit, uint64_t cluster);

/* Something was written to the file that only a sync makes durable.  To be
 * called after writing and before answering.
 */
static inline void
commit_note_change (struct commit *commit)
{
  /* Release: pairs with the acquire in commit_flush, which syncs after it has
   * read the number.
   */
  atomic_fetch_add_explicit (&commit->nr_changes, 1, memory_order_release);
}

/* Make every change that was noted before this call durable.  Returns 0 or a
 * negative errno, -EIO for ever after a sync has failed.
 */
int commit_flush (struct commit *commit);

/* True when a sync has failed. */
bool commit_has_failed (const struct commit *commit);

/* When nobody changes anything any more and all is flushed: clear the in-use
 * mark, durably.  Returns 0 or a negative errno.
 */
int commit_unmark (struct commit *commit);

#endif /* PLOOP_LIB_COMMIT_H */
