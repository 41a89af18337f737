/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The cluster map's memory: see map.h. */

#include <config.h>

#include <errno.h>
#include <sys/mman.h>

#include "map.h"

static size_t
map_bytes (const struct map *map)
{
  return (size_t) MAX (map->nr_clusters, 1) * sizeof *map->words;
}

int
map_init (struct map *map, uint64_t nr_clusters)
{
  void *words;

  map->nr_clusters = nr_clusters;
  words = mmap (NULL, map_bytes (map), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (words == MAP_FAILED)
    return -errno;
  /* Huge pages would make a sparse disk's map dense. */
  madvise (words, map_bytes (map), MADV_NOHUGEPAGE);
  map->words = words;
  return 0;
}

void
map_destroy (struct map *map)
{
  if (map->words)
    munmap ((void *) map->words, map_bytes (map));
  map->words = NULL;
}
