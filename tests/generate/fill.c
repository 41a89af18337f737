/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What is in a disk: which clusters each delta has, and what each shot reads as.
 *
 * Each sector begins with its own number, the shot that wrote it and the seed, in
 * text, so that a sector that ended up in the wrong place can be told from a hex dump;
 * what follows is random, so that no two are alike.
 */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "disk.h"

struct fill {
  const struct disk *disk;
  GRand *dice;
  unsigned shot, storage;
  struct delta *delta;
};

static void
stamp (const struct fill *fill, uint32_t sector)
{
  uint8_t *bytes = fill->delta->content + (size_t) sector * SECTOR;
  char text[64];
  const int length =
    snprintf (text, sizeof text, "sector %u storage %u shot %u seed %u\n",
              sector, fill->storage, fill->shot, fill->disk->seed);

  for (size_t i = 0; i < SECTOR; i += sizeof (guint32)) {
    const guint32 word = g_rand_int (fill->dice);

    memcpy (bytes + i, &word, sizeof word);
  }
  memcpy (bytes, text, (size_t) length);
}

/* ---- One cluster ------------------------------------------------------- */

/* Sectors FIRST to END are zeros, and some of them are not. */
static void
write_parts (const struct fill *fill, uint32_t first, uint32_t end)
{
  uint32_t sector = first + dice_range (fill->dice, 0, end - first - 1);

  while (sector < end) {
    const uint32_t run = dice_range (fill->dice, 1, 16);
    const uint32_t stop = MIN (end, sector + run);

    while (sector < stop)
      stamp (fill, sector++);
    sector += dice_range (fill->dice, 1, 64);
  }
}

static enum holding
write_cluster (const struct fill *fill, uint32_t cluster)
{
  struct delta *delta = fill->delta;
  const uint32_t first = cluster * delta->cluster_sectors;
  const uint32_t end =
    MIN (delta->size_sectors, first + delta->cluster_sectors);
  const uint32_t what = dice_range (fill->dice, 0, 99);

  if (what < 60) {
    for (uint32_t sector = first; sector < end; sector++)
      stamp (fill, sector);
    return HOLDS_DATA;
  }
  memset (delta->content + (size_t) first * SECTOR, 0,
          (size_t) (end - first) * SECTOR);
  if (what < 80)
    write_parts (fill, first, end);
  return what < 90 ? HOLDS_DATA : HOLDS_HOLE;
}

/* ---- A delta ----------------------------------------------------------- */

static void
write_clusters (const struct fill *fill)
{
  struct delta *delta = fill->delta;
  uint32_t cluster = 0;

  while (cluster < delta->nr_clusters) {
    const bool has = dice_chance (fill->dice, delta->density);
    const uint32_t run = dice_range (fill->dice, 1, 6);
    const uint32_t stop = MIN (delta->nr_clusters, cluster + run);

    for (; cluster < stop; cluster++)
      if (has)
        delta->holds[cluster] = write_cluster (fill, cluster);
  }
}

/* Some of those that the delta has not. */
static void
lose_clusters (const struct fill *fill)
{
  for (uint32_t c = 0; c < fill->delta->nr_clusters; c++)
    if (fill->delta->holds[c] == HOLDS_NOTHING && dice_chance (fill->dice, 10))
      fill->delta->holds[c] = HOLDS_LOST;
}

static void
draw_bitmap (const struct delta *delta, struct bitmap *bitmap, GRand *dice)
{
  const unsigned density = dice_range (dice, 0, 2) * 50;

  for (size_t i = 0; i < sizeof bitmap->uuid; i++)
    bitmap->uuid[i] = (uint8_t) dice_range (dice, 0, 255);
  /* Not fewer sectors: one cluster of bits must do. */
  bitmap->granularity = 8u << dice_range (dice, 0, 5);
  bitmap->nr_bits = clusters_of (delta->size_sectors, bitmap->granularity);
  bitmap->bits = g_new0 (uint8_t, bitmap->nr_bits);
  for (uint32_t i = 0; i < bitmap->nr_bits; i++)
    bitmap->bits[i] = dice_chance (dice, density);
  for (uint32_t i = 1; i < bitmap->nr_bits; i++)
    bitmap->is_mixed |= bitmap->bits[i] != bitmap->bits[0];
}

/* An image without clusters has no place where an extension would not be a tail. */
static bool
is_empty (const struct delta *delta)
{
  for (uint32_t c = 0; c < delta->nr_clusters; c++)
    if (delta->holds[c] == HOLDS_DATA || delta->holds[c] == HOLDS_HOLE)
      return false;
  return true;
}

static void
fill_delta (const struct fill *fill)
{
  struct delta *delta = fill->delta;
  const int parent = fill->disk->shots[fill->shot].parent;
  const struct delta *lower =
    parent < 0 ? NULL : &fill->disk->shots[parent].deltas[fill->storage];

  delta->nr_clusters = clusters_of (delta->size_sectors,
                                    delta->cluster_sectors);
  delta->holds = g_new0 (enum holding, delta->nr_clusters);
  delta->content = g_malloc0 ((size_t) delta->size_sectors * SECTOR);
  if (lower)
    memcpy (delta->content, lower->content,
            (size_t) lower->size_sectors * SECTOR);
  write_clusters (fill);
  if (delta->in_use == IN_USE_OPEN)
    lose_clusters (fill);
  /* To ploop, space that is preallocated is something. */
  if ((is_empty (delta) && delta->nr_tail == 0) || delta->claims_empty)
    delta->flags = FLAG_EMPTY;
  if (is_empty (delta))
    delta->nr_bitmaps = 0;
  if (delta->nr_bitmaps == 0 && delta->in_use == IN_USE_EXTENSION)
    delta->in_use = IN_USE_CLOSED;
  for (unsigned i = 0; i < delta->nr_bitmaps; i++)
    draw_bitmap (delta, &delta->bitmaps[i], fill->dice);
}

void
disk_fill (struct disk *disk, GRand *dice)
{
  for (unsigned i = 0; i < disk->nr_shots; i++)
    for (unsigned j = 0; j < disk->nr_storages; j++) {
      const struct fill fill = {
        .disk = disk,
        .dice = dice,
        .shot = i,
        .storage = j,
        .delta = &disk->shots[i].deltas[j],
      };

      fill_delta (&fill);
    }
}
