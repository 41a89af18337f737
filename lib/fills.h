/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Copies of clusters that are not whole yet: lazy copy-on-write.
 *
 * A small write to a cluster that only a lower delta has is answered when its
 * own sectors are in the new cluster; the rest is filled in behind it.  Meanwhile
 * the cluster's map word has MAP_FILLING, and a fill here says which sectors are
 * there.  Whoever reads, writes, zeroes or trims some of such a cluster does it
 * through this file; nobody else ever comes here.
 *
 *   - A sector that is there is the new cluster's, any other one the lower
 *     delta's.
 *   - A cluster with MAP_FILLING is unstable, too: its entry stays off the disk
 *     until a sync that began after the cluster was whole.  So a commit lets
 *     all be filled first that was begun before it (fills_complete).
 *   - With the last sector there the flag goes, then the fill.  Whoever saw the
 *     flag and finds no fill has a cluster like any other, at the same place: a
 *     lower delta has it, too, so it is never unmapped.
 *
 * Each fill has a lock of its own, which readers share.  Who fills holds it for a
 * piece at a time; several may fill the same one.
 *
 *   function         may be called from           blocks
 *   fills_begin      the cluster's owner          no
 *   fills_read ...   any thread, inside the gate  while a piece is copied, and to
 *                                                 read below itself
 *   fills_work       a runner                     likewise, for one piece
 *   fills_complete   any thread, not inside       until all is copied, or the
 *   fills_stop       the gate                     lower delta cannot be read
 */

#ifndef PLOOP_LIB_FILLS_H
#define PLOOP_LIB_FILLS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "chain.h"
#include "map.h"
#include "stats.h"

struct fills {
  const struct chain *chain;
  struct map *map;
  struct stats *stats;
  const struct log *log;
  bool lazy;                    /* else there never is a fill */
  unsigned max;                 /* fills at a time */
  void (*news) (void *opaque);
  void *opaque;

  pthread_mutex_t lock;         /* for what follows */
  GHashTable *by_cluster;       /* of struct fill */
  GQueue queue;                 /* the same, oldest first */
  uint64_t last_serial, seen_serial;
  bool stopped;
  bool warned;                  /* that one could not be filled in; since all were */
};

struct fill;

struct fills_options {
  bool lazy;
  const struct log *log;        /* outlives the fills */
  /* There is something for fills_work.  From any thread; must not block. */
  void (*news) (void *opaque);
  void *opaque;
};

/* CHAIN is open. */
void fills_init (struct fills *fills, const struct chain *chain,
                 struct map *map, struct stats *stats,
                 const struct fills_options *options);

/* When nobody uses them any more.  Of one of zeros, does nothing. */
void fills_destroy (struct fills *fills);

/* ---- Making one -------------------------------------------------------- */

/* Begin to copy CLUSTER, which is where WORD says in a lower delta, to the top
 * delta's fresh host cluster ENTRY.  Returns NULL when it has to be copied at
 * once: that is what was asked for, or can be done by sharing blocks, or no space
 * is reserved for the rest, or there are too many fills.
 *
 * The fill is locked until fill_published or fill_drop.
 */
struct fill *fills_begin (struct fills *fills, uint64_t cluster,
                          uint64_t word, uint32_t entry);

/* Write BUF, or zeros if it is NULL, to LENGTH bytes at OFFSET of the disk, which
 * lie in the cluster.  Returns 0 or a negative errno.
 */
int fill_write (struct fill *fill, const void *buf, size_t length,
                uint64_t offset);

/* Is nothing missing?  Then its map word needs no MAP_FILLING. */
bool fill_is_whole (const struct fill *fill);

/* The map has the new cluster.  FILL is not the caller's any more. */
void fill_published (struct fills *fills, struct fill *fill);

/* It never will. */
void fill_drop (struct fills *fills, struct fill *fill);

/* ---- Using one --------------------------------------------------------- */

/* Read, or write (zeros if BUF is NULL), LENGTH bytes at OFFSET of the disk, which
 * lie in one cluster.
 *
 * Returns 0, a negative errno, or FILLS_WHOLE, with nothing done, when the
 * cluster has become whole: it is where it was, and like any other now.
 */
#define FILLS_WHOLE 1
int fills_read (struct fills *fills, void *buf, size_t length,
                uint64_t offset);
int fills_write (struct fills *fills, const void *buf, size_t length,
                 uint64_t offset);

/* These bytes are given up: of whole sectors what is not there yet need not be
 * copied, and reads as zeros.  Returns false when they had better not be punched:
 * they will be copied all the same.
 */
bool fills_trim (struct fills *fills, uint64_t length, uint64_t offset);

/* ---- Filling ----------------------------------------------------------- */

/* Is it time to fill behind?  Called now and then: when no fill was begun since
 * the last time, or there are many.
 */
bool fills_are_due (struct fills *fills);

/* Fill a piece of the oldest one in.  Returns true when there is more to do. */
bool fills_work (struct fills *fills);

/* Fill in whatever was begun before this call.  Returns 0, or a negative errno
 * when some of it could not be; that stays, to be tried again.
 */
int fills_complete (struct fills *fills);

/* Begin no other fill, ever; and the same. */
int fills_stop (struct fills *fills);

#endif /* PLOOP_LIB_FILLS_H */
