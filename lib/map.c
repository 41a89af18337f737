/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The cluster map's memory: see map.h. */

#include <config.h>

#include <errno.h>

#include "map.h"
#include "sparse.h"

static size_t
map_bytes (const struct map *map)
{
  return (size_t) MAX (map->nr_clusters, 1) * sizeof *map->words;
}

int
map_init (struct map *map, uint64_t nr_clusters)
{
  map->nr_clusters = nr_clusters;
  map->words = sparse_new (map_bytes (map));
  return map->words ? 0 : -errno;
}

void
map_destroy (struct map *map)
{
  sparse_free ((void *) map->words, map_bytes (map));
  map->words = NULL;
}
