/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What makes changes durable, in the right order: the in-use mark, BAT
 * entries, syncs.
 *
 *   in-use mark      on disk before the first change to anything else
 *   new entry        in the page cache before the write that needs it is
 *                    answered: killing the process loses nothing that was
 *                    answered.  With a write-back delay: in memory, for
 *                    commit_write_back or the next commit
 *   unstable entry   off the disk until a sync that began after its cluster was
 *                    copied has ended
 *   commit           one for all who wait (group.h): copies being filled
 *                    become whole; a sync if there are unstable entries; those,
 *                    and all that was put off, neighbours in one write; a sync
 *
 * A failed sync is remembered: the kernel reports it once and then forgets the
 * data.
 *
 * An entry in the file follows from the cluster's map word.  Whoever changes a
 * word that is mapped, or writes its entry, holds the lock of the BAT page.
 */

#ifndef PLOOP_LIB_COMMIT_H
#define PLOOP_LIB_COMMIT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "changes.h"
#include "delta.h"
#include "error.h"
#include "group.h"
#include "map.h"
#include "stats.h"

#define COMMIT_NR_PAGE_LOCKS 64u

struct commit_hooks {
  /* The in-use mark is on disk: the file may be changed from now on. */
  void (*marked) (void *opaque);
  /* Asynchronous waiters need somebody to call commit_lead. */
  void (*need_leader) (void *opaque);
  /* There is something for commit_write_back_due. */
  void (*put_off) (void *opaque);
  /* There are unstable entries. */
  void (*unstable) (void *opaque);
  /* A commit has ended well, but for copies that could not be made whole. */
  void (*committed) (void *opaque);
  /* Fill in what was begun before.  The one that may block; from whoever commits.
   * Returns 0 or a negative errno, to be that of the commit, which goes on.
   */
  int (*fill) (void *opaque);
  void *opaque;
};

struct commit {
  struct delta *delta;
  unsigned level;               /* the delta's */
  struct map *map;
  struct changes *changes;
  struct stats *stats;
  const struct log *log;
  struct commit_hooks hooks;
  unsigned write_back_delay;    /* ms; 0: entries are written at once */

  _Atomic bool marked;          /* the in-use mark is on disk */
  pthread_mutex_t mark_lock;    /* for header */
  struct format_header header;  /* as in the file now */
  GArray *lost;                 /* of uint32_t: see commit_init */
  bool keeps_extension;
  uint32_t mark;                /* the in-use field while it is marked */
  uint32_t closed;              /* the in-use field of the file when it is closed */

  /* By BAT page. */
  uint64_t nr_pages;
  pthread_mutex_t page_locks[COMMIT_NR_PAGE_LOCKS];
  /* Threads that want an entry written, by lock. */
  _Atomic unsigned nr_writers[COMMIT_NR_PAGE_LOCKS];
  _Atomic uint64_t *page_changes;       /* the number of the last change */
  struct commit_delay *page_delays;     /* with a write-back delay */
  _Atomic uint64_t *dirty;      /* bits: the file's page is behind the map */
  _Atomic uint64_t *unstable;   /* bits: it has unstable entries */
  _Atomic uint64_t nr_dirty;    /* bits that are set */
  _Atomic uint64_t nr_unstable;
  pthread_mutex_t write_lock;   /* for several page locks at once, and: */
  uint8_t *buffer;

  struct commit_group group;           /* who commits, and who waits */
  _Atomic bool failed;          /* a sync failed */
};

/* The BAT is that of DELTA, whose level is LEVEL: of clusters that only a lower
 * delta has, its entries are 0.
 *
 * LOST (of uint32_t; may be NULL; taken over) are the guest clusters whose BAT
 * entries name host clusters that never came to be, because a server was
 * killed: they are cleared before anything else is changed.  HOOKS must not
 * block, but for fill; each may be NULL.
 *
 * Returns 0 or a negative errno.
 */
int commit_init (struct commit *commit, struct delta *delta, unsigned level,
                 struct map *map, struct changes *changes,
                 struct stats *stats, const struct log *log,
                 const struct commit_hooks *hooks, unsigned write_back_delay,
                 GArray *lost);
void commit_destroy (struct commit *commit);

/* ---- The in-use mark --------------------------------------------------- */

/* To be called before anything in the file is changed: sees to it that the
 * in-use mark is on disk.  Costs one load after the first time.  Returns 0 or
 * a negative errno; the caller must not change the file then.
 */
int commit_mark (struct commit *commit);

/* Before that: the changed-block bitmaps stay true, whatever is changed.  The file says
 * so again when it is closed; in between they are stale to everybody.
 */
void commit_keep_extension (struct commit *commit);

/* Before that: the file has entries past its end that are damaged.  With the usual mark
 * they would count as of clusters that were never flushed, so unallocated, if this ends
 * early: a lower delta would show through.  Let the mark be one with which they do not.
 */
void commit_mark_repair (struct commit *commit);

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

/* When nobody changes anything any more and all is flushed: clear the in-use
 * mark, durably.  Returns 0 or a negative errno.
 */
int commit_unmark (struct commit *commit);

/* With the mark on disk, nothing else changing, and all flushed: let HEADER be that of
 * the file, durably, and with the mark, at once and as a whole.  Neither delta's header
 * nor its layout is changed: all that may follow is commit_unmark.
 *
 * Returns 0 or a negative errno; the file has one of both headers then.
 */
int commit_replace_header (struct commit *commit,
                           const struct format_header *header);

/* ---- BAT entries ------------------------------------------------------- */

/* WORD of a guest cluster is new, and a write to it has succeeded: let the BAT
 * have its entry, and the word be new no longer.  Does nothing when another
 * thread has done so.
 *
 * Returns 0, a negative errno (the word stays new then), or COMMIT_REMAPPED
 * when the cluster is not where WORD says any more: the write has to be done
 * again.
 */
#define COMMIT_REMAPPED 1
int commit_write_entry (struct commit *commit, uint64_t cluster,
                        uint64_t word);

/* WORD of a guest cluster is new, and nothing will come of it: unmap it, unless
 * another thread has done commit_write_entry, or it is not there any more.
 *
 * Returns true when the caller owns the host cluster now, to be freed with
 * *REMOVAL.
 */
bool commit_undo (struct commit *commit, uint64_t cluster, uint64_t word,
                  uint64_t *removal);

/* Unmap a guest cluster whose word is WORD and not new.  Its entry is put down
 * to be removed by the next commit_write_back or commit.  Returns false when
 * its word is another by now; else as commit_undo.
 */
bool commit_remove (struct commit *commit, uint64_t cluster, uint64_t word,
                    uint64_t *removal);

/* A guest cluster is mapped anew, to a copy of it that was written by now: its
 * word, which is *WORD, becomes BY, which has MAP_UNSTABLE; the entry belongs on
 * the disk after the next sync.  Returns false, with its word in *WORD, when it
 * is another one.
 */
bool commit_publish_copy (struct commit *commit, uint64_t cluster,
                          uint64_t *word, uint64_t by);

/* Write what was put down for the entries of clusters FIRST to LAST to the
 * page cache.  Returns 0 or a negative errno; it stays put down then.
 */
int commit_write_back (struct commit *commit, uint64_t first, uint64_t last);

/* The same for the pages whose delay is over.  Returns the milliseconds until
 * the next one's is, 0 when there is none, or a negative errno.
 */
int commit_write_back_due (struct commit *commit);

/* Is the BAT entry of a cluster whose map word is WORD on stable storage? */
bool commit_entry_is_durable (const struct commit *commit, uint64_t cluster,
                              uint64_t word);

/* ---- Committing -------------------------------------------------------- */

/* Make every change that was noted before this call durable.  Returns 0 or a
 * negative errno, -EIO for ever after a sync has failed.
 */
int commit_flush (struct commit *commit);

/* The same without waiting.  Returns true, with *RESULT set, when there is
 * nothing to wait for; else WAITER's done will be called, by whichever thread
 * commits.  Somebody has to call commit_lead after this.
 */
bool commit_join (struct commit *commit, struct group_waiter *waiter,
                  int *result);

/* Commit, if somebody waits and nobody else is at it. */
void commit_lead (struct commit *commit);

/* Is a commit under way, which one might share? */
static inline bool
commit_is_busy (const struct commit *commit)
{
  return group_is_led (&commit->group);
}

/* True when a sync has failed. */
bool commit_has_failed (const struct commit *commit);

#endif /* PLOOP_LIB_COMMIT_H */
