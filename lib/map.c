/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The cluster map's memory: see map.h. */

#include <config.h>

#include <errno.h>

#include "map.h"
#include "sparse.h"

static size_t
words_bytes (const struct map *map)
{
  return (size_t) MAX (map->nr_clusters, 1) * sizeof *map->words;
}

static size_t
occupied_bytes (const struct map *map)
{
  return (size_t) (map->nr_clusters / MAP_STRETCH / 64 + 1)
         * sizeof *map->occupied;
}

int
map_init (struct map *map, uint64_t nr_clusters)
{
  map->nr_clusters = nr_clusters;
  map->words = sparse_new (words_bytes (map));
  map->occupied = sparse_new (occupied_bytes (map));
  if (map->words && map->occupied)
    return 0;
  map_destroy (map);
  return -ENOMEM;
}

void
map_destroy (struct map *map)
{
  sparse_free ((void *) map->words, words_bytes (map));
  sparse_free ((void *) map->occupied, occupied_bytes (map));
  map->words = NULL;
  map->occupied = NULL;
}

/* ---- Merging deltas ---------------------------------------------------- */

void
map_merge (struct map *map, uint64_t cluster, uint64_t word)
{
  uint64_t now = 0, by = word;

  map_occupy (map, cluster);
  while (!map_replace (map, cluster, &now, by))
    if (now == 0)
      by = word;
    else if (map_word_level (now) < map_word_level (word))
      by = word | MAP_COVERS;
    else
      by = now | MAP_COVERS;
}

/* ---- Looking for what is mapped ---------------------------------------- */

/* The first cluster from FROM up to END whose stretch is occupied, or END. */
static uint64_t
next_occupied (const struct map *map, uint64_t from, uint64_t end)
{
  while (from < end) {
    const uint64_t stretch = from / MAP_STRETCH;
    /* Acquire: pairs with the release in map_occupy. */
    const uint64_t bits =
      atomic_load_explicit (&map->occupied[stretch / 64], memory_order_acquire)
      >> stretch % 64;

    if (bits & 1)
      return from;
    from = bits == 0
             ? (stretch / 64 + 1) * 64 * MAP_STRETCH
             : (stretch + (uint64_t) __builtin_ctzll (bits)) * MAP_STRETCH;
  }
  return end;
}

uint64_t
map_next_mapped (const struct map *map, uint64_t from, uint64_t end)
{
  while ((from = next_occupied (map, from, end)) < end) {
    const uint64_t stop = MIN (end, (from / MAP_STRETCH + 1) * MAP_STRETCH);

    for (; from < stop; from++)
      if (map_word_is_mapped (map_lookup (map, from)))
        return from;
  }
  return end;
}

/* ---- Trimmed in part --------------------------------------------------- */

bool
map_set_trimmed (struct map *map, uint64_t cluster, uint64_t word)
{
  uint64_t now = map_lookup (map, cluster);

  do
    if (!map_word_is_same_place (now, word) || map_word_is_new (now))
      return false;
  while (!(now & MAP_TRIMMED)
         && !map_replace (map, cluster, &now, now | MAP_TRIMMED));
  return true;
}

bool
map_clear_trimmed (struct map *map, uint64_t cluster, uint64_t word)
{
  uint64_t now = map_lookup (map, cluster);

  do
    if (!map_word_is_same_place (now, word))
      return false;
  while ((now & MAP_TRIMMED)
         && !map_replace (map, cluster, &now, now & ~MAP_TRIMMED));
  return true;
}
