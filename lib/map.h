/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The cluster map in memory: where each guest cluster is.
 *
 * One 64-bit word a guest cluster, so that a look-up is one load and a change
 * one compare-and-swap, however many threads do either:
 *
 *   bits 0-31    BAT entry: the host cluster, as stored in its delta
 *   bits 32-39   level: which delta, 0 the base
 *   bit  56      filling: a copy of which sectors are missing (fills.h); unstable,
 *                too
 *   bit  57      covers: a lower delta has the cluster, too, and its data would
 *                show if this one were unmapped: it never is
 *   bit  58      trimmed: parts of it have been trimmed; who writes to it asks
 *                trims.h
 *   bit  59      ready: new, but a write has succeeded that waits for the entry
 *   bit  60      covered: unstable, and a sync that makes it stable is running
 *   bit  61      unstable: the entry must not reach the disk before a sync
 *   bit  62      new: no write to this new cluster has been completed; whoever
 *                mapped it may take it back
 *   bit  63      mapped; a word of 0 means that no delta has the cluster
 *
 * Pages of the array that were never touched take no memory (sparse.h), and a
 * bitmap of those in which something was mapped once lets a search skip them
 * without touching them: a disk of 16 TiB is looked through in microseconds when
 * it is empty.
 *
 * Ordering: every load here is an acquire and every change a release.  Who
 * sees a word also sees what was done before it was published.  Mapping,
 * becoming ready, being trimmed in part and filled need no lock; every other
 * change is made under the lock of the cluster's BAT page (commit.h).
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
#define MAP_TRIMMED (UINT64_C (1) << 58)
#define MAP_COVERS (UINT64_C (1) << 57)
#define MAP_FILLING (UINT64_C (1) << 56)
#define MAP_LEVEL_SHIFT 32
#define MAP_LEVEL_MASK (UINT64_C (0xff) << MAP_LEVEL_SHIFT)

/* Words that share a bit of the bitmap: a page of them. */
#define MAP_STRETCH 512u

struct map {
  _Atomic uint64_t *words;
  _Atomic uint64_t *occupied;   /* a bit a stretch; only goes up */
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

/* Do two words name the same host cluster? */
static inline bool
map_word_is_same_place (uint64_t word, uint64_t other)
{
  const uint64_t flags =
    MAP_NEW | MAP_READY | MAP_UNSTABLE | MAP_COVERED | MAP_TRIMMED
    | MAP_COVERS | MAP_FILLING;

  return ((word ^ other) & ~flags) == 0;
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

/* The first mapped cluster from FROM up to END, or END. */
uint64_t map_next_mapped (const struct map *map, uint64_t from, uint64_t end);

/* Something will be mapped in CLUSTER's stretch. */
static inline void
map_occupy (struct map *map, uint64_t cluster)
{
  const uint64_t stretch = cluster / MAP_STRETCH;
  const uint64_t bit = UINT64_C (1) << stretch % 64;
  _Atomic uint64_t *bits = &map->occupied[stretch / 64];

  /* Release: the word follows, with a release of its own, so whoever is told
   * of it finds the bit.
   */
  if (G_UNLIKELY (!(atomic_load_explicit (bits, memory_order_relaxed) & bit)))
    atomic_fetch_or_explicit (bits, bit, memory_order_release);
}

/* Map CLUSTER to WORD if nobody has mapped it.  Returns true, or false with
 * the word that is there in *FOUND.
 */
static inline bool
map_publish (struct map *map, uint64_t cluster, uint64_t word,
             uint64_t *found)
{
  *found = 0;
  map_occupy (map, cluster);
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

/* Set or clear MAP_TRIMMED of CLUSTER, if it is mapped as WORD says and, to set
 * it, not new.  Returns false when it is not.
 */
bool map_set_trimmed (struct map *map, uint64_t cluster, uint64_t word);
bool map_clear_trimmed (struct map *map, uint64_t cluster, uint64_t word);

/* At open: CLUSTER is in the delta that WORD says, and in others perhaps, above
 * or below.  From any thread, in any order; nobody else uses the map yet.
 */
void map_merge (struct map *map, uint64_t cluster, uint64_t word);

/* The same for who knows of one delta only, and is alone. */
static inline void
map_fill (struct map *map, uint64_t cluster, uint64_t word)
{
  map_occupy (map, cluster);
  atomic_store_explicit (&map->words[cluster], word, memory_order_relaxed);
}

#endif /* PLOOP_LIB_MAP_H */
