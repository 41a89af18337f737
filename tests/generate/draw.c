/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a disk is like, by chance.  What is common comes up often, and each oddity
 * that some program is known to write, or to trip over, often enough to be met in a
 * dozen disks.
 */

#include <config.h>

#include "disk.h"

#define TOP_GUID "{5fbaabe3-6958-40ff-92a7-860e329aab41}"

/* About as large as a disk gets. */
#define MAX_SECTORS (8u << 10)

/* One of an array. */
#define PICK(dice, array) \
  ((array)[dice_range (dice, 0, G_N_ELEMENTS (array) - 1)])

struct draw {
  const struct wishes *wishes;
  GRand *dice;
  struct disk *disk;
};

/* True PERCENT times of a hundred, but never when ploop has to take the disk. */
static bool
oddity (const struct draw *draw, unsigned percent)
{
  return dice_chance (draw->dice, percent) && !draw->wishes->for_ploop;
}

static char *
draw_guid (GRand *dice)
{
  const guint32 a = g_rand_int (dice), b = g_rand_int (dice);
  const guint32 c = g_rand_int (dice), d = g_rand_int (dice);

  return g_strdup_printf ("{%08x-%04x-%04x-%04x-%04x%08x}", a, b >> 16,
                          b & 0xffff, c >> 16, c & 0xffff, d);
}

/* ---- Sizes ------------------------------------------------------------- */

static uint32_t
draw_cluster (const struct draw *draw)
{
  static const uint32_t odd[] = { 1, 8, 63, 504, 63, 504, 100 };
  static const uint32_t usual[] = { 64, 64, 128, 128, 256, 512, 1024, 2048 };

  return draw->wishes->odd_clusters ? PICK (draw->dice, odd)
                                    : PICK (draw->dice, usual);
}

static uint32_t
draw_size (const struct draw *draw, uint32_t cluster)
{
  const uint32_t max = MAX (6, MAX_SECTORS / cluster);
  const uint32_t size = dice_range (draw->dice, 4, max) * cluster;

  return cluster > 1 && oddity (draw, 30)
           ? size - dice_range (draw->dice, 1, cluster - 1) : size;
}

static void
draw_storages (const struct draw *draw)
{
  struct disk *disk = draw->disk;
  uint32_t start = 0;

  disk->nr_storages =
    draw->wishes->split ? dice_range (draw->dice, 2, 3) : 1;
  disk->storages = g_new0 (struct storage, disk->nr_storages);
  for (unsigned i = 0; i < disk->nr_storages; i++) {
    struct storage *storage = &disk->storages[i];

    storage->cluster_sectors = draw_cluster (draw);
    storage->start = start;
    start += draw_size (draw, storage->cluster_sectors);
    storage->end = start;
  }
}

/* A disk may have grown since the shot below; not when it is split, for the descriptor
 * says where its parts end.
 */
static uint32_t
draw_shot_size (const struct draw *draw, const struct shot *shot,
                unsigned storage)
{
  const struct disk *disk = draw->disk;
  const uint32_t cluster = disk->storages[storage].cluster_sectors;
  uint32_t size = disk->storages[storage].end - disk->storages[storage].start;

  if (shot->parent < 0)
    return size;
  size = disk->shots[shot->parent].deltas[storage].size_sectors;
  if (disk->nr_storages > 1 || size > 2 * MAX_SECTORS
      || !dice_chance (draw->dice, 25))
    return size;
  size += dice_range (draw->dice, 1, MAX (1, 2000 / cluster)) * cluster;
  return oddity (draw, 80) ? size - dice_range (draw->dice, 0, cluster - 1)
                           : size;
}

/* ---- Deltas ------------------------------------------------------------ */

/* The kernel wants whole clusters, as few as the BAT needs; qemu takes more. */
static void
draw_data_offset (const struct draw *draw, struct delta *delta)
{
  const uint32_t cluster = delta->cluster_sectors;
  const uint32_t bat_end = bat_end_of (delta);

  delta->data_sectors = clusters_of (bat_end, cluster) * cluster;
  if (!oddity (draw, 35))
    return;
  if (delta->version == 2)
    delta->data_sectors += dice_range (draw->dice, 1, 2) * cluster;
  else
    delta->data_sectors =
      dice_chance (draw->dice, 50)
        ? 0 : bat_end + dice_range (draw->dice, 0, 2 * cluster);
}

static void
draw_in_use (const struct draw *draw, struct delta *delta)
{
  static const uint32_t with_bitmaps[] = { IN_USE_EXTENSION, IN_USE_CLOSED };
  static const uint32_t by_desktop[] = { IN_USE_PD17, IN_USE_PD22 };

  delta->in_use = IN_USE_CLOSED;
  /* Bits in sector 1 cannot be told from a bitmap that is all set. */
  if (oddity (draw, 15) && data_start_of (delta) > 1) {
    delta->nr_bitmaps = dice_range (draw->dice, 1, MAX_BITMAPS);
    delta->in_use = PICK (draw->dice, with_bitmaps);
  }
  else if (oddity (draw, 15))
    delta->in_use = PICK (draw->dice, by_desktop);
}

/* Where in the file the clusters are. */
static void
draw_places (const struct draw *draw, struct delta *delta)
{
  static const enum host_order orders[] = {
    HOST_IN_ORDER, HOST_REVERSED, HOST_SHUFFLED, HOST_SHUFFLED,
    HOST_FRAGMENTED, HOST_FRAGMENTED,
  };
  /* Only what is made of the file system's blocks becomes a hole. */
  const bool has_holes =
    delta->data_sectors != 0
    && (delta->data_sectors | delta->cluster_sectors) % 8 == 0;

  delta->order = PICK (draw->dice, orders);
  if (dice_chance (draw->dice, 25))
    delta->nr_leaked = dice_range (draw->dice, 1, 3);
  if (dice_chance (draw->dice, 25) && has_holes)
    delta->nr_free = dice_range (draw->dice, 1, 3);
  delta->is_sparse = dice_chance (draw->dice, 50);
  if (dice_chance (draw->dice, 25)) {
    delta->tail = TAIL_PREALLOCATED;
    delta->nr_tail = dice_range (draw->dice, 1, 4);
  }
  else if (oddity (draw, 35))
    delta->tail = TAIL_CUT;
}

static void
draw_delta (const struct draw *draw, const struct shot *shot,
            unsigned storage, unsigned version)
{
  static const unsigned densities[] = { 0, 5, 20, 40, 40, 70, 100 };
  struct delta *delta = &shot->deltas[storage];

  delta->version = version;
  delta->cluster_sectors = draw->disk->storages[storage].cluster_sectors;
  delta->size_sectors = draw_shot_size (draw, shot, storage);
  delta->density = PICK (draw->dice, densities);
  if (version == 1 && oddity (draw, 30))
    delta->size_high = g_rand_int (draw->dice);
  delta->claims_empty = oddity (draw, 20);
  draw_data_offset (draw, delta);
  draw_in_use (draw, delta);
  draw_places (draw, delta);
}

/* Without a header there is little left to say. */
static void
make_raw (struct delta *delta)
{
  delta->is_raw = true;
  delta->in_use = IN_USE_CLOSED;
  delta->nr_bitmaps = delta->nr_leaked = delta->nr_free = delta->nr_tail = 0;
}

/* Not closed: the extension would be stale. */
static void
make_dirty (struct delta *delta)
{
  delta->in_use = IN_USE_OPEN;
  delta->nr_bitmaps = 0;
}

/* ---- Shots ------------------------------------------------------------- */

static int
draw_parent (const struct draw *draw, unsigned index)
{
  if (draw->disk->kind != KIND_TREE || index == 0)
    return (int) index - 1;
  /* At least one fork, where there can be one. */
  return index == 2 ? 0 : (int) dice_range (draw->dice, 0, index - 1);
}

/* Often not of one version with the rest, when that is asked for. */
static unsigned
draw_version (const struct draw *draw, unsigned of_disk)
{
  return draw->wishes->mixed_versions ? dice_range (draw->dice, 1, 2)
                                      : of_disk;
}

static const char *
draw_mark (const struct draw *draw)
{
  static const char *const marks[] = {
    "Temporary", "TemporaryZero", "TemporaryZeroSwap",
  };

  return oddity (draw, 15) ? PICK (draw->dice, marks) : NULL;
}

static unsigned
draw_number (const struct draw *draw)
{
  if (draw->disk->kind == KIND_IMAGE)
    return 1;
  if (draw->wishes->nr_deltas > 0)
    return draw->wishes->nr_deltas;
  return draw->disk->kind == KIND_CHAIN ? dice_range (draw->dice, 1, 5)
                                        : dice_range (draw->dice, 3, 7);
}

static void
draw_shots (const struct draw *draw)
{
  struct disk *disk = draw->disk;
  const unsigned version = draw->wishes->version > 0
                             ? draw->wishes->version
                             : dice_range (draw->dice, 1, 2);
  bool is_raw;

  disk->nr_shots = draw_number (draw);
  disk->shots = g_new0 (struct shot, disk->nr_shots);
  disk->top = disk->nr_shots - 1;
  is_raw = disk->nr_shots > 1 && dice_chance (draw->dice, 25);
  disk->all_plain = is_raw && dice_chance (draw->dice, 50);
  for (unsigned i = 0; i < disk->nr_shots; i++) {
    struct shot *shot = &disk->shots[i];

    shot->guid = draw_guid (draw->dice);
    shot->parent = draw_parent (draw, i);
    shot->mark = i == disk->top ? NULL : draw_mark (draw);
    shot->deltas = g_new0 (struct delta, disk->nr_storages);
    for (unsigned j = 0; j < disk->nr_storages; j++) {
      draw_delta (draw, shot, j, draw_version (draw, version));
      if (i == 0 && is_raw)
        make_raw (&shot->deltas[j]);
      if (i == disk->top && draw->wishes->dirty)
        make_dirty (&shot->deltas[j]);
    }
  }
}

/* ---- Names and descriptor ---------------------------------------------- */

static void
draw_paths (const struct draw *draw)
{
  static const char *const names[] = { "root.hds", "my disk.hds", "a & b.hds" };
  struct disk *disk = draw->disk;
  const char *name =
    oddity (draw, 40) ? PICK (draw->dice, names) : names[0];

  for (unsigned i = 0; i < disk->nr_shots; i++)
    for (unsigned j = 0; j < disk->nr_storages; j++) {
      g_autofree char *guid = draw_guid (draw->dice);
      g_autofree char *part =
        disk->nr_storages > 1 ? g_strdup_printf (".part%u", j) : g_strdup ("");

      disk->shots[i].deltas[j].path =
        g_strconcat (name, part, i > 0 ? "." : "", i > 0 ? guid : "", NULL);
    }
}

static bool
has_grown (const struct disk *disk)
{
  return disk->nr_storages == 1
         && disk->shots[disk->top].deltas[0].size_sectors
              > disk->shots[0].deltas[0].size_sectors;
}

static void
draw_descriptor (const struct draw *draw)
{
  struct disk *disk = draw->disk;
  struct shot *top = &disk->shots[disk->top];

  if (!oddity (draw, 20)) {
    g_free (top->guid);
    top->guid = g_strdup (TOP_GUID);
  }
  disk->root_element =
    oddity (draw, 30) ? "Virtuozzo_disk_image" : "Parallels_disk_image";
  disk->has_version = oddity (draw, 30);
  disk->has_unknown = oddity (draw, 30);
  disk->has_preallocated = oddity (draw, 30);
  disk->is_shuffled = oddity (draw, 25);
  disk->is_upper_case = oddity (draw, 15);
  disk->is_stale = oddity (draw, 50) && has_grown (disk);
}

struct disk *
disk_draw (uint32_t seed, const struct wishes *wishes, GRand *dice)
{
  const struct draw draw = { wishes, dice, g_new0 (struct disk, 1) };

  draw.disk->seed = seed;
  draw.disk->kind = wishes->kind;
  draw_storages (&draw);
  draw_shots (&draw);
  draw_paths (&draw);
  draw_descriptor (&draw);
  return draw.disk;
}

static void
free_delta (struct delta *delta)
{
  for (unsigned i = 0; i < delta->nr_bitmaps; i++)
    g_free (delta->bitmaps[i].bits);
  g_free (delta->content);
  g_free (delta->holds);
  g_free (delta->path);
}

void
disk_free (struct disk *disk)
{
  for (unsigned i = 0; i < disk->nr_shots; i++) {
    for (unsigned j = 0; j < disk->nr_storages; j++)
      free_delta (&disk->shots[i].deltas[j]);
    g_free (disk->shots[i].deltas);
    g_free (disk->shots[i].guid);
  }
  g_free (disk->shots);
  g_free (disk->storages);
  g_free (disk);
}
