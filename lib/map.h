/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The cluster map in memory: where each guest cluster is.
 *
 * One 64-bit word a guest cluster, so that a look-up is one load and a change
 * one compare-and-swap, however many threads do either:
 *
 *   bits 0-31    BAT entry: the host cluster, as stored in its delta
 *   bits 32-39   level: which delta, 0 the base
 *   bit  59      ready: new, but a write has succeeded that waits for the entry
 *   bit  60      covered: unstable, and a sync that makes it stable is running
 *   bit  61      unstable: the entry must not reach the disk before a sync
 *   bit  62      new: no write to this new cluster has been completed; whoever
 *                mapped it may take it back
 *   bit  63      mapped; a word of 0 means that no delta has the cluster
 *
 * Pages of the array that were never touched take no memory (sparse.h).
 *
 * Ordering: every load here is an acquire and every change a release.  Who
 * sees a word also sees what was done before it was published.  Mapping and
 * becoming ready need no lock; every other change is made under the lock of
 * the cluster's BAT page (commit.h).
 */

#ifndef PLOOP_LIB_MAP_H
#define PLOOP_LIB_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "error.h"

#define MAP_MAPPED (UINT64_C (1) << 63)
#define MAP_NEW (UINT64_C (1) << 62)
#define MAP_UNSTABLE (UINT64_C (1) << 61)
#define MAP_COVERED (UINT64_C (1) << 60)
#define MAP_READY (UINT64_C (1) << 59)
#define MAP_LEVEL_SHIFT 32

struct map {
  _Atomic uint64_t *words;
  uint64_t nr_clusters;
};

/* Make a map with nothing mapped.  Returns 0 or a negative errno. */
int map_init (struct map *map, uint64_t nr_clusters);
void map_destroy (struct map *map);

static inline uint64_t
map_word (unsigned level, uint32_t entry, uint64_t flags)
{
  return MAP_MAPPED | flags | (uint64_t) level << MAP_LEVEL_SHIFT | entry;
}

static inline bool
map_word_is_mapped (uint64_t word)
{
  return (word & MAP_MAPPED) != 0;
}

static inline bool
map_word_is_new (uint64_t word)
{
  return (word & MAP_NEW) != 0;
}

static inline bool
map_word_is_unstable (uint64_t word)
{
  return (word & MAP_UNSTABLE) != 0;
}

static inline unsigned
map_word_level (uint64_t word)
{
  return word >> MAP_LEVEL_SHIFT & 0xff;
}

static inline uint32_t
map_word_entry (uint64_t word)
{
  return (uint32_t) word;
}

/* Where is CLUSTER?  CLUSTER must be below nr_clusters, here and below. */
static inline uint64_t
map_lookup (const struct map *map, uint64_t cluster)
{
  return atomic_load_explicit (&map->words[cluster], memory_order_acquire);
}

/* Map CLUSTER to WORD if nobody has mapped it.  Returns true, or false with
 * the word that is there in *FOUND.
 */
static inline bool
map_publish (struct map *map, uint64_t cluster, uint64_t word,
             uint64_t *found)
{
  *found = 0;
  return atomic_compare_exchange_strong_explicit (&map->words[cluster], found,
                                                  word, memory_order_acq_rel,
                                                  memory_order_acquire);
}

/* Set or clear flags of a mapped CLUSTER. */
static inline void
map_set_flags (struct map *map, uint64_t cluster, uint64_t flags)
{
  atomic_fetch_or_explicit (&map->words[cluster], flags, memory_order_release);
}

static inline void
map_clear_flags (struct map *map, uint64_t cluster, uint64_t flags)
{
  atomic_fetch_and_explicit (&map->words[cluster], ~flags,
                             memory_order_release);
}

/* Change the word of CLUSTER if it is *WORD; otherwise *WORD is what it is. */
static inline bool
map_replace (struct map *map, uint64_t cluster, uint64_t *word, uint64_t by)
{
  return atomic_compare_exchange_strong_explicit (&map->words[cluster], word,
                                                  by, memory_order_acq_rel,
                                                  memory_order_acquire);
}

/* While nobody else uses the map: at open. */
static inline void
map_fill (struct map *map, uint64_t cluster, uint64_t word)
{
  atomic_store_explicit (&map->words[cluster], word, memory_order_relaxed);
}

#endif /* PLOOP_LIB_MAP_H */
