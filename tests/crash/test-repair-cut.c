/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Power cuts at every instant of a repair, with any part of what was not synced lost.
 *
 * Each round draws an image, off the grid or on it, and damages it: entries that share a
 * place or overlap, that point past the end of the file, near to it and far, or into the
 * BAT; entries of clusters that were never flushed; leaks; changed-block bitmaps, sound
 * or not.  It is repaired, and cut at each event that the recorder has seen.  What a
 * guest cluster was before says what it may be then:
 *
 *   readable    reads the same
 *   damaged     still has its entry, and nobody takes that for a cluster that was never
 *               flushed; or reads as zeros.  A lower delta never shows through
 *   lost        still counts as unallocated, or is: a lower delta does show through
 *
 * A new entry shares its place with no other, and bitmaps are never called valid that are
 * not.  Some of what is left is repaired again, and must be sound then.
 *
 * At the end the same is done with syncs that do nothing: that must be noticed.
 */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include <glib.h>

#include "drawn.h"
#include "ploop-core.h"
#include "reader.h"
#include "recorder.h"
#include "rounds.h"
#include "rules.h"

#define SECTOR 512u
#define NR_SECTORS 1500u
#define NR_ROUNDS 60u
/* Past the end of the file, but so near that it may never have been flushed. */
#define PREALLOCATION (UINT64_C (128) << 20)
#define VALID_EXTENSION 0x312e3276u     /* in use */

enum kind { UNMAPPED, READABLE, DAMAGED, LOST };

struct round {
  uint32_t seed;
  struct reader_shape shape;
  unsigned used, damaged, garbage;      /* per cent of clusters, of these, of free
                                           cells */
  unsigned patience;            /* calls until it is interrupted; 0: never */
  bool in_use, off_grid, ends_inside;
  bool has_bitmap, bitmap_is_damaged;
};

/* What every guest cluster was. */
struct cluster {
  enum kind kind;
  uint32_t entry;
  uint8_t *bytes;               /* of a readable one, with zeros past the end of file */
};

static const char *image_path, *cut_path;
static struct cluster *clusters;
static uint64_t extension, bits;        /* bytes; 0: there is none */
static bool extension_stays;
static unsigned nr_calls_left;
static bool is_recorded;
static uint64_t closing;        /* a moment, before the image is closed */

/* ---- Images ------------------------------------------------------------ */

static uint32_t
get32 (const uint8_t *p)
{
  return p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16
         | (uint32_t) p[3] << 24;
}

static void
put32 (uint8_t *p, uint32_t v)
{
  for (int i = 0; i < 4; i++)
    p[i] = (uint8_t) (v >> 8 * i);
}

static void
put64 (uint8_t *p, uint64_t v)
{
  put32 (p, (uint32_t) v);
  put32 (p + 4, (uint32_t) (v >> 32));
}

static uint64_t
cluster_bytes (const struct round *round)
{
  return (uint64_t) round->shape.cluster_sectors * SECTOR;
}

static uint64_t
entry_unit (const struct round *round)
{
  return round->shape.version == 1 ? SECTOR : cluster_bytes (round);
}

static uint32_t
get_entry (const uint8_t *bytes, uint32_t i)
{
  return get32 (bytes + 64 + 4 * (uint64_t) i);
}

static void
draw_shape (GRand *random, struct reader_shape *shape)
{
  const uint32_t cluster = DRAW (random, 1, 8, 16, 63, 64);

  *shape = (struct reader_shape) {
    .version = DRAW (random, 1, 2),
    .cluster_sectors = cluster,
    .nr_sectors = NR_SECTORS,
    .nr_entries = (NR_SECTORS + cluster - 1) / cluster,
  };
  if (shape->version == 2 || drawn_chance (random, 50))
    shape->data_sectors =
      ((64 + 4 * shape->nr_entries + SECTOR - 1) / SECTOR + cluster - 1)
      / cluster * cluster;
}

static struct round
draw_round (uint32_t seed)
{
  GRand *random = g_rand_new_with_seed (seed);
  struct round round = { .seed = seed };

  draw_shape (random, &round.shape);
  round.used = DRAW (random, 5, 40, 90);
  round.damaged = DRAW (random, 2, 10, 50);
  round.garbage = DRAW (random, 0, 50);
  round.patience = DRAW (random, 0, 0, 0, 0, 2, 5);
  round.in_use = drawn_chance (random, 40);
  round.off_grid = round.shape.version == 1 && drawn_chance (random, 50);
  round.ends_inside = drawn_chance (random, 50);
  round.has_bitmap = !round.in_use && round.shape.cluster_sectors > 1
                     && drawn_chance (random, 50);
  round.bitmap_is_damaged = drawn_chance (random, 20);
  g_rand_free (random);
  return round;
}

/* A place by chance, which may be that of another. */
static uint32_t
draw_damage (const struct round *round, const uint8_t *bytes, uint64_t size,
             GRand *random)
{
  const uint64_t unit = entry_unit (round);
  const uint64_t some = (uint64_t) g_rand_int_range (random, 0, 40);
  const uint32_t other =
    get_entry (bytes, (uint32_t) g_rand_int_range (
                        random, 0, (gint32) round->shape.nr_entries));

  switch (g_rand_int_range (random, 0, 8)) {
  case 0:
    return (uint32_t) (size / unit + some % 4);
  case 1:
    return (uint32_t) (size / unit + some);
  case 2:
    return (uint32_t) ((size + PREALLOCATION) / unit + some);
  case 3:
    return G_MAXUINT32 - (uint32_t) some;
  case 4:
    return round->shape.version == 1 ? 1 : (uint32_t) (size / unit + 1);
  case 5:
    /* Across the end. */
    return size / unit < 40 + reader_data_start (&round->shape) / unit
             ? 0 : (uint32_t) (size / unit - 1 - (round->off_grid ? some : 0));
  default:
    return other == 0 ? 0 : other + (round->off_grid ? (uint32_t) some % 3 : 0);
  }
}

/* Changed-block bitmaps: one, in cells CELL and the next one. */
static void
put_bitmap (const struct round *round, uint8_t *bytes, uint64_t offset)
{
  const uint64_t cluster = cluster_bytes (round);
  uint8_t *const at = bytes + offset;
  g_autoptr (GChecksum) md5 = g_checksum_new (G_CHECKSUM_MD5);
  gsize length = 16;

  extension = offset;
  bits = offset + cluster;
  memset (bytes + bits, 0x5a, cluster);
  memset (at, 0, cluster);
  put64 (at, G_GUINT64_CONSTANT (0xAB234CEF23DCEA87));
  put64 (at + 24, G_GUINT64_CONSTANT (0x20385FAE252CB34A));
  put32 (at + 24 + 16, 40);
  put64 (at + 48, NR_SECTORS);
  put32 (at + 48 + 24, 1);
  put32 (at + 48 + 28, 1);
  put64 (at + 48 + 32, bits / SECTOR);
  g_checksum_update (md5, at + 24, (gssize) (cluster - 24));
  g_checksum_get_digest (md5, at + 8, &length);
  if (round->bitmap_is_damaged)
    at[8] ^= 1;
  put64 (bytes + 56, offset / SECTOR);
  put32 (bytes + 44, VALID_EXTENSION);
}

static void
stamp_cluster (const struct round *round, uint8_t *bytes, uint32_t index,
               uint64_t offset)
{
  const uint32_t nr = round->shape.cluster_sectors;

  for (uint32_t i = 0; i < nr; i++)
    rules_stamp (bytes + offset + (uint64_t) i * SECTOR,
                 (uint64_t) index * nr + i, rules_new_number ());
}

/* The whole file in memory: *SIZE bytes (g_free). */
static uint8_t *
make_bytes (const struct round *round, uint64_t *size, GRand *random)
{
  const uint64_t cluster = cluster_bytes (round);
  const uint32_t nr = round->shape.nr_entries;
  uint64_t at = reader_data_start (&round->shape);
  g_autofree uint8_t *head = reader_make (&round->shape, size);
  uint8_t *bytes = g_malloc0 (at + (3 * (uint64_t) nr + 4) * cluster);

  memcpy (bytes, head, at);
  bytes[52] = 0;                /* not empty */
  if (round->in_use)
    memcpy (bytes + 44, "Ynot", 4);
  if (round->off_grid)
    at += SECTOR * (uint64_t) g_rand_int_range (
                     random, 0, (gint32) round->shape.cluster_sectors);
  for (uint32_t i = 0; i < nr; i++) {
    if (drawn_chance (random, round->garbage)) {
      memset (bytes + at, 'g', cluster);
      at += cluster;
    }
    if (round->has_bitmap && i == nr / 2) {
      put_bitmap (round, bytes, at);
      at += 2 * cluster;
    }
    if (drawn_chance (random, round->used)) {
      reader_put_entry (&round->shape, bytes, i, at);
      stamp_cluster (round, bytes, i, at);
      at += cluster;
    }
  }
  if (round->ends_inside && round->shape.cluster_sectors > 1
      && at > reader_data_start (&round->shape) + cluster)
    at -= SECTOR * (uint64_t) g_rand_int_range (
                     random, 1, (gint32) round->shape.cluster_sectors);
  *size = at;
  for (uint32_t i = 0; i < nr; i++)
    if (drawn_chance (random, round->damaged))
      put32 (bytes + 64 + 4 * (uint64_t) i,
             draw_damage (round, bytes, *size, random));
  return bytes;
}

/* ---- Judging ----------------------------------------------------------- */

/* A file as it is, or as a cut has left it. */
struct file {
  const struct round *round;
  const uint8_t *bytes;
  uint64_t size, data_start;
  uint32_t in_use;
};

static struct file
open_file (const struct round *round, const uint8_t *bytes, uint64_t size)
{
  return (struct file) {
    .round = round,
    .bytes = bytes,
    .size = size,
    .data_start = reader_data_start (&round->shape),
    .in_use = get32 (bytes + 44),
  };
}

static uint64_t
place_of (const struct file *file, uint32_t i)
{
  return get_entry (file->bytes, i) * entry_unit (file->round);
}

static enum kind
kind_of (const struct file *file, uint32_t i)
{
  const uint64_t place = place_of (file, i);

  if (place == 0)
    return UNMAPPED;
  if (place >= file->data_start && place < file->size)
    return READABLE;
  return place >= file->data_start && file->in_use == READER_IN_USE
             && place < file->size + PREALLOCATION
           ? LOST : DAMAGED;
}

/* What a cluster that is readable reads as (g_free). */
static uint8_t *
read_cluster (const struct file *file, uint32_t i)
{
  const uint64_t place = place_of (file, i);
  const uint64_t cluster = cluster_bytes (file->round);
  uint8_t *bytes = g_malloc0 (cluster);

  memcpy (bytes, file->bytes + place, MIN (cluster, file->size - place));
  return bytes;
}

static bool
is_zero (const uint8_t *bytes, uint64_t length)
{
  return length == 0
         || (bytes[0] == 0 && memcmp (bytes, bytes + 1, length - 1) == 0);
}

static void
forget_clusters (void)
{
  for (uint32_t i = 0; clusters && i < NR_SECTORS; i++)
    g_free (clusters[i].bytes);
  g_clear_pointer (&clusters, g_free);
}

static bool
overlap (const struct file *file, uint64_t a, uint64_t b)
{
  const uint64_t cluster = cluster_bytes (file->round);

  return a < b + cluster && b < a + cluster;
}

static void
remember (const struct round *round, const uint8_t *bytes, uint64_t size)
{
  const struct file file = open_file (round, bytes, size);

  clusters = g_new0 (struct cluster, NR_SECTORS);
  extension_stays = extension > 0 && !round->bitmap_is_damaged
                    && bits < size;
  for (uint32_t i = 0; i < round->shape.nr_entries; i++) {
    clusters[i].kind = kind_of (&file, i);
    clusters[i].entry = get_entry (bytes, i);
    if (clusters[i].kind == READABLE) {
      clusters[i].bytes = read_cluster (&file, i);
      if (extension > 0 && (overlap (&file, place_of (&file, i), extension)
                            || overlap (&file, place_of (&file, i), bits)))
        extension_stays = false;
    }
    else if (clusters[i].kind == DAMAGED)
      extension_stays = false;
  }
}

/* A place that is new is nobody else's. */
static void
check_place (const struct file *file, uint32_t i)
{
  for (uint32_t j = 0; j < file->round->shape.nr_entries; j++)
    if (j != i && kind_of (file, j) == READABLE
        && overlap (file, place_of (file, i), place_of (file, j)))
      rules_break ("cluster %u was put where %u is", i, j);
}

static void
check_cluster (const struct file *file, uint32_t i)
{
  const struct cluster *cluster = &clusters[i];
  const enum kind kind = kind_of (file, i);
  g_autofree uint8_t *bytes =
    kind == READABLE ? read_cluster (file, i) : NULL;

  if (cluster->kind == UNMAPPED || cluster->kind == LOST) {
    if (kind != UNMAPPED && !(kind == LOST && cluster->kind == LOST))
      rules_break ("cluster %u was %u and hides a lower one now", i, cluster->kind);
  }
  else if (kind != READABLE && kind != cluster->kind)
    rules_break ("cluster %u: a lower one shows through", i);
  else if (kind == READABLE
           && (cluster->kind == READABLE
                 ? memcmp (bytes, cluster->bytes, cluster_bytes (file->round)) != 0
                 : !is_zero (bytes, cluster_bytes (file->round))))
    rules_break ("cluster %u reads as something else", i);
  else if (get_entry (file->bytes, i) != cluster->entry)
    check_place (file, i);
}

static bool
has_true_bitmap (const struct file *file)
{
  const uint64_t cluster = cluster_bytes (file->round);

  for (uint64_t i = 0; i < cluster && bits + i < file->size; i++)
    if (file->bytes[bits + i] != 0x5a)
      return false;
  return get32 (file->bytes + 56) == extension / SECTOR;
}

/* CHANGED: something of it was repaired. */
static void
check_extension (const struct file *file, bool changed)
{
  if (extension == 0 || !changed)
    return;
  if (file->in_use == VALID_EXTENSION
      && !(extension_stays && has_true_bitmap (file)))
    rules_break ("bitmaps are called valid that are not");
}

static void
check_disk (const struct file *file, bool changed)
{
  for (uint32_t i = 0; i < file->round->shape.nr_entries && !rules_broken; i++)
    check_cluster (file, i);
  if (!rules_broken)
    check_extension (file, changed);
}

static void
find (void *opaque, enum ploop_finding finding, const char *message)
{
  (void) opaque;
  /* Leaks there are: what is smaller than a block cannot be given back. */
  if (finding == PLOOP_FINDING_ERROR)
    rules_break ("check: %s", message);
}

/* Repaired: all sound, and closed. */
static void
check_file (const struct round *round, const char *path, bool changed, bool whole)
{
  g_autofree char *bytes = NULL;
  struct ploop_check_result result;
  struct file file;
  gsize size;

  if (!g_file_get_contents (path, &bytes, &size, NULL))
    g_error ("%s: %s", path, g_strerror (errno));
  file = open_file (round, (const uint8_t *) bytes, size);
  check_disk (&file, changed);
  if (rules_broken || !whole)
    return;
  if (file.in_use != READER_CLOSED && file.in_use != VALID_EXTENSION)
    rules_break ("it is not closed");
  for (uint32_t i = 0; i < round->shape.nr_entries && !rules_broken; i++)
    if (kind_of (&file, i) == READABLE)
      check_place (&file, i);
    else if (kind_of (&file, i) != UNMAPPED)
      rules_break ("entry %u was not repaired", i);
  if (!rules_broken && ploop_check (path, find, NULL, &result, NULL) == -1)
    rules_break ("it cannot be checked");
}

/* ---- Repairing --------------------------------------------------------- */

static bool
on_progress (void *opaque, uint64_t nr_bytes_done, uint64_t nr_bytes)
{
  (void) opaque;
  (void) nr_bytes_done;
  (void) nr_bytes;
  if (is_recorded)
    closing = recorder_now ();
  return nr_calls_left == 0 || --nr_calls_left > 0;
}

static void
repair (const struct round *round, const char *path, unsigned patience)
{
  const struct ploop_repair_options options = {
    .all = true,
    .backup = PLOOP_BACKUP_NEVER,
  };
  struct ploop_repair_result result;
  g_autoptr (GError) error = NULL;

  nr_calls_left = patience;
  if (ploop_repair (path, &options, NULL, NULL, on_progress, NULL, &result, &error)
      == -1)
    rules_break ("it cannot be repaired: %s", error->message);
  else
    check_file (round, path, result.changed && !result.interrupted,
                !result.interrupted);
  if (!rules_broken && !result.interrupted && is_recorded && extension > 0
      && result.extension_dropped == extension_stays)
    rules_break ("the extension was %s", extension_stays ? "dropped" : "kept");
  ploop_repair_result_clear (&result);
}

static void
check_cut (const struct recorder_cut *cut, uint64_t moment, void *opaque)
{
  const struct file file = open_file (opaque, cut->bytes, cut->size);

  check_disk (&file, cut->changed);
  if (!rules_broken && cut->changed && moment <= closing
      && (file.in_use == READER_CLOSED || file.in_use == VALID_EXTENSION))
    rules_break ("changed, but not marked as in use");
}

/* Go on with what cuts have left; nothing is recorded any more. */
static void
repair_left_over (const struct round *round, const GArray *left_over)
{
  for (guint i = 0; i < left_over->len && !rules_broken; i++) {
    recorder_cut_save (g_array_index (left_over, struct rounds_left, i).cut, cut_path);
    repair (round, cut_path, 0);
    rounds_count_resumed ();
  }
}

/* Has the recorder seen all that was done? */
static void
check_recorder (uint64_t end, GRand *random)
{
  g_autoptr (recorder_cut_t) all = recorder_cut (end, 1, false, random);

  if (!recorder_cut_is_file (all, image_path))
    g_error ("the file was changed in a way that the recorder does not see");
}

static char *
describe_round (const struct round *round)
{
  return g_strdup_printf (
    "PLOOP_TEST_SEED=%u: version %u, %u sectors a cluster, data at sector %u; of a "
    "hundred %u clusters used, %u damaged, %u garbage; patience %u%s%s%s%s%s",
    round->seed, round->shape.version, round->shape.cluster_sectors,
    round->shape.data_sectors, round->used, round->damaged, round->garbage,
    round->patience, round->in_use ? ", in use" : "",
    round->off_grid ? ", off the grid" : "",
    round->ends_inside ? ", ends inside" : "",
    round->has_bitmap ? ", bitmap" : "",
    round->has_bitmap && round->bitmap_is_damaged ? " damaged" : "");
}

static void
run_round (uint32_t seed, bool broken_sync)
{
  const struct recorder_faults no_faults = { .data_eio = 0 };
  struct round round = draw_round (seed);
  GRand *random = g_rand_new_with_seed (seed + 1);
  g_autoptr (GArray) left_over = NULL;
  g_autofree uint8_t *bytes = NULL;
  uint64_t size, end;

  extension = bits = 0;
  bytes = make_bytes (&round, &size, random);
  drawn_save (image_path, bytes, size);
  remember (&round, bytes, size);
  recorder_start (image_path, &no_faults, seed);
  is_recorded = true;
  closing = 0;
  repair (&round, image_path, round.patience);
  end = recorder_now ();
  is_recorded = false;
  check_recorder (end, random);
  if (!rules_broken)
    left_over = rounds_cut (end, broken_sync, random, check_cut, &round);
  recorder_stop ();
  if (left_over)
    repair_left_over (&round, left_over);
  if (rules_broken && !broken_sync) {
    g_autofree char *text = describe_round (&round);

    fprintf (stderr, "%s\n", text);
  }
  forget_clusters ();
  g_rand_free (random);
}

int
main (void)
{
  image_path = rounds_path ("image");
  cut_path = rounds_path ("cut");
  return rounds_main (NR_ROUNDS, run_round);
}
