/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The cluster map in memory: where each guest cluster is.
 *
 * One 64-bit word a guest cluster, so that a look-up is one load and a change
 * one compare-and-swap, however many threads do either:
 *
 *   bits 0-31    BAT entry: the host cluster, as stored in its delta
 *   bits 32-39   level: which delta, 0 the base
 *   bit  62      unwritten: the entry is not in the file's BAT yet
 *   bit  63      mapped; a word of 0 means that no delta has the cluster
 *
 * Pages of the array that were never touched take no memory (sparse.h).
 *
 * Ordering: every load here is an acquire and every change a release.  Who
 * sees a word also sees what was done before it was published; see commit.c
 * for what the unwritten bit relies on.
 */

#ifndef PLOOP_LIB_MAP_H
#define PLOOP_LIB_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "error.h"

#define MAP_MAPPED (UINT64_C (1) << 63)
#define MAP_UNWRITTEN (UINT64_C (1) << 62)
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
map_word_is_unwritten (uint64_t word)
{
  return (word & MAP_UNWRITTEN) != 0;
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

/* The entry of CLUSTER is in the file's BAT now. */
static inline void
map_set_written (struct map *map, uint64_t cluster)
{
  atomic_fetch_and_explicit (&map->words[cluster], ~MAP_UNWRITTEN,
                             memory_order_release);
}

/* While nobody else uses the map: at open. */
static inline void
map_fill (struct map *map, uint64_t cluster, uint64_t word)
{
  atomic_store_explicit (&map->words[cluster], word, memory_order_relaxed);
}

#endif /* PLOOP_LIB_MAP_H */
