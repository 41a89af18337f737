/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Power cuts at every instant of a change of changed-block bitmaps, with any part of
 * what was not synced lost: every sector of the disk reads as before, and the image
 * carries the bitmaps that it had, or those that it was to have, whole.  While it has
 * any it is not marked as in use, for that would make them stale; when it has none and
 * is not marked, there is nothing behind its clusters that qemu would take for zeros.
 *
 * Each round draws an image with bitmaps of random bits, in small clusters so that
 * they take many, lets one be added, merged into or removed, and cuts at each event
 * that the recorder has seen.  What is left is read by this test's own reader.  Some
 * of it is changed again.
 *
 * At the end the same is done with syncs that do nothing: that must be noticed.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "ploop-core.h"
#include "reader.h"
#include "recorder.h"
#include "rules.h"

#define SECTOR 512u
#define NR_SECTORS 40000u
#define NR_ROUNDS 120u
#define NR_LEFT_OVER 4u
#define MAX_BITMAPS 3u

#define CLOSED_EXTENSION 0x312e3276u

enum operation { ADD, ADD_SET, MERGE, REMOVE, REMOVE_ALL, NR_OPERATIONS };

struct round {
  uint32_t seed;
  struct reader_shape shape;
  struct recorder_faults faults;
  unsigned used;                /* per cent of clusters */
  unsigned nr_bitmaps;
  uint32_t granularities[MAX_BITMAPS];  /* sectors */
  unsigned dirty[MAX_BITMAPS];  /* per thousand of bits that begin a run */
  enum operation operation;
};

static char *image_path, *cut_path;
static uint64_t nr_states, nr_changed;

/* ---- Chance ------------------------------------------------------------ */

static unsigned
draw_one (GRand *random, const unsigned *values, size_t nr)
{
  return values[g_rand_int_range (random, 0, (gint32) nr)];
}

#define DRAW(random, ...)                                                    \
  draw_one ((random), (const unsigned[]){ __VA_ARGS__ },                      \
            G_N_ELEMENTS (((const unsigned[]){ __VA_ARGS__ })))

static bool
chance (GRand *random, unsigned per_thousand)
{
  return (unsigned) g_rand_int_range (random, 0, 1000) < per_thousand;
}

static struct round
draw_round (uint32_t seed)
{
  GRand *random = g_rand_new_with_seed (seed);
  const uint32_t cluster = DRAW (random, 1, 2, 8, 63);
  struct round round = {
    .seed = seed,
    .shape = {
      .version = DRAW (random, 1, 2),
      .cluster_sectors = cluster,
      .nr_sectors = NR_SECTORS,
      .nr_entries = (NR_SECTORS + cluster - 1) / cluster,
    },
    .used = DRAW (random, 0, 1, 3),
    .nr_bitmaps = DRAW (random, 0, 1, 2, 3),
    .operation = (enum operation) g_rand_int_range (random, 0, NR_OPERATIONS),
    .faults.no_punch = chance (random, 250),
    .faults.no_zero_range = chance (random, 250),
  };

  round.shape.data_sectors =
    ((64 + 4 * round.shape.nr_entries + SECTOR - 1) / SECTOR + cluster - 1)
    / cluster * cluster;
  for (unsigned i = 0; i < MAX_BITMAPS; i++) {
    round.granularities[i] = DRAW (random, 4, 8, 16, 64, 1024);
    round.dirty[i] = DRAW (random, 0, 2, 50, 500, 999);
  }
  if (round.operation == MERGE && round.nr_bitmaps < 2)
    round.nr_bitmaps = 2;
  if (round.operation >= REMOVE && round.nr_bitmaps == 0)
    round.nr_bitmaps = 1;
  g_rand_free (random);
  return round;
}

/* ---- Numbers ----------------------------------------------------------- */

static uint64_t
get (const uint8_t *bytes, unsigned size)
{
  uint64_t value = 0;

  for (unsigned i = size; i-- > 0;)
    value = value << 8 | bytes[i];
  return value;
}

static void
put (uint8_t *bytes, unsigned size, uint64_t value)
{
  for (unsigned i = 0; i < size; i++)
    bytes[i] = (uint8_t) (value >> 8 * i);
}

static void
digest (const uint8_t *extension, uint64_t cluster, uint8_t md5[16])
{
  g_autoptr (GChecksum) sum = g_checksum_new (G_CHECKSUM_MD5);
  gsize length = 16;

  g_checksum_update (sum, extension + 24, (gssize) (cluster - 24));
  g_checksum_get_digest (sum, md5, &length);
}

static const uint8_t magic[] = { 0x87, 0xea, 0xdc, 0x23,
                                 0xef, 0x4c, 0x23, 0xab };
static const uint8_t bitmap_magic[] = { 0x4a, 0xb3, 0x2c, 0x25,
                                        0xae, 0x5f, 0x38, 0x20 };

/* ---- Images ------------------------------------------------------------ */

static uint64_t
cluster_bytes (const struct round *round)
{
  return (uint64_t) round->shape.cluster_sectors * SECTOR;
}

static uint32_t
nr_bits_of (uint32_t granularity)
{
  return (NR_SECTORS + granularity - 1) / granularity;
}

static void
name_bitmap (uint8_t uuid[16], unsigned i)
{
  memset (uuid, (int) (0x11 * (i + 1)), 16);
}

/* Append a cluster of zeros; its offset. */
static uint64_t
append (GByteArray *file, uint64_t cluster)
{
  const guint offset = file->len;

  g_byte_array_set_size (file, offset + (guint) cluster);
  memset (file->data + offset, 0, cluster);
  return offset;
}

static void
fill_bits (uint8_t *bits, uint64_t nr, unsigned dirty, GRand *random)
{
  bool set = false;

  for (uint64_t i = 0; i < nr; i++) {
    if (chance (random, set ? 300 : dirty))
      set = !set;
    if (set)
      bits[i / 8] |= (uint8_t) (1u << i % 8);
  }
}

/* Put bitmap I of the round at AT of the EXTENSION.  Returns where it ends. */
static uint64_t
put_bitmap (const struct round *round, unsigned i, GByteArray *file,
            uint8_t *extension, uint64_t at, GRand *random)
{
  const uint64_t cluster = cluster_bytes (round);
  const uint32_t nr_bits = nr_bits_of (round->granularities[i]);
  const uint32_t nr_l1 =
    (uint32_t) ((nr_bits + 8 * cluster - 1) / (8 * cluster));
  uint8_t *data = extension + at + 24;

  memcpy (extension + at, bitmap_magic, 8);
  put (extension + at + 16, 4, 32 + 8 * nr_l1);
  put (data, 8, NR_SECTORS);
  name_bitmap (data + 8, i);
  put (data + 24, 4, round->granularities[i]);
  put (data + 28, 4, nr_l1);
  for (uint32_t j = 0; j < nr_l1; j++) {
    uint64_t offset;

    if (round->dirty[i] == 0 || round->dirty[i] == 999) {
      put (data + 32 + 8 * j, 8, round->dirty[i] != 0);
      continue;
    }
    offset = append (file, cluster);
    fill_bits (file->data + offset, MIN (8 * cluster, nr_bits), round->dirty[i],
               random);
    put (data + 32 + 8 * j, 8, offset / SECTOR);
  }
  return at + 24 + 32 + 8 * nr_l1;
}

static void
put_extension (const struct round *round, GByteArray *file, GRand *random)
{
  const uint64_t cluster = cluster_bytes (round);
  g_autofree uint8_t *extension = g_malloc0 (cluster + 1000);
  uint64_t at = 24;

  if (round->nr_bitmaps == 0)
    return;
  memcpy (extension, magic, 8);
  for (unsigned i = 0; i < round->nr_bitmaps; i++)
    at = put_bitmap (round, i, file, extension, at, random);
  if (at + 24 > cluster)
    g_error ("bitmaps do not fit");
  digest (extension, cluster, extension + 8);
  put (file->data + 56, 8, file->len / SECTOR);
  put (file->data + 44, 4, CLOSED_EXTENSION);
  g_byte_array_append (file, extension, (guint) cluster);
}

static void
put_clusters (const struct round *round, GByteArray *file, GRand *random)
{
  const uint64_t cluster = cluster_bytes (round);

  for (uint32_t i = 0; i < round->shape.nr_entries; i++) {
    uint64_t offset;

    if ((unsigned) g_rand_int_range (random, 0, 100) >= round->used)
      continue;
    offset = append (file, cluster);
    reader_put_entry (&round->shape, file->data, i, offset);
    for (uint64_t j = 0; j < cluster / SECTOR; j++)
      rules_stamp (file->data + offset + j * SECTOR,
                   i * (cluster / SECTOR) + j, rules_new_number ());
  }
}

static GByteArray *
make_image (const struct round *round, GRand *random)
{
  GByteArray *file = g_byte_array_new ();
  uint64_t size;
  g_autofree uint8_t *head = reader_make (&round->shape, &size);

  g_byte_array_append (file, head, (guint) size);
  put_clusters (round, file, random);
  put_extension (round, file, random);
  return file;
}

static void
save (const char *path, const GByteArray *file)
{
  if (!g_file_set_contents (path, (const char *) file->data, file->len, NULL))
    g_error ("%s: %s", path, g_strerror (errno));
}

/* ---- Reading ----------------------------------------------------------- */

/* Add what a bitmap says to TEXT. */
static char *
read_bitmap (const uint8_t *bytes, uint64_t size, uint64_t cluster,
             const uint8_t *data, GString *text)
{
  const uint32_t granularity = (uint32_t) get (data + 24, 4);
  const uint64_t nr_l1 = get (data + 28, 4);
  const uint32_t nr_bits = nr_bits_of (granularity);

  if (get (data, 8) != NR_SECTORS
      || nr_l1 != (nr_bits + 8 * cluster - 1) / (8 * cluster))
    return g_strdup ("a bitmap is damaged");
  for (unsigned i = 0; i < 16; i++)
    g_string_append_printf (text, "%02x", data[8 + i]);
  g_string_append_printf (text, " %u ", granularity);
  for (uint32_t i = 0; i < nr_bits; i++) {
    const uint64_t entry = get (data + 32 + i / (8 * cluster) * 8, 8);
    const uint64_t at = entry * SECTOR + i / 8 % cluster;

    if (entry > 1 && at >= size)
      return g_strdup ("a bitmap's cluster is past the end");
    g_string_append_c (text, entry == 0   ? '.'
                             : entry == 1 ? '#'
                             : bytes[at] >> i % 8 & 1 ? '#'
                                                      : '.');
  }
  g_string_append_c (text, '\n');
  return NULL;
}

/* All that the image's bitmaps say (g_free); or *FAULT. */
static char *
read_bitmaps (const uint8_t *bytes, uint64_t size, char **fault)
{
  const uint64_t cluster = get (bytes + 28, 4) * SECTOR;
  const uint64_t offset = get (bytes + 56, 8) * SECTOR;
  const uint64_t in_use = get (bytes + 44, 4);
  g_autoptr (GString) text = g_string_new ("");
  const uint8_t *extension = bytes + offset, *at = extension + 24;
  uint8_t md5[16];

  *fault = NULL;
  if (offset == 0) {
    if (in_use != READER_CLOSED && in_use != READER_IN_USE)
      *fault = g_strdup_printf ("in use is %" G_GINT64_MODIFIER "x", in_use);
    return g_string_free (g_steal_pointer (&text), FALSE);
  }
  if (in_use != CLOSED_EXTENSION)
    *fault = g_strdup ("its bitmaps are stale");
  else if (offset + cluster > size)
    *fault = g_strdup ("the extension is past the end");
  else {
    digest (extension, cluster, md5);
    if (memcmp (extension, magic, 8) != 0 || memcmp (extension + 8, md5, 16))
      *fault = g_strdup ("the extension is damaged");
  }
  while (!*fault && get (at, 8) != 0) {
    *fault = read_bitmap (bytes, size, cluster, at + 24, text);
    at += 24 + get (at + 16, 4);
  }
  return g_string_free (g_steal_pointer (&text), FALSE);
}

static const uint8_t *
sector_or_zeroes (const struct reader *reader, uint64_t sector)
{
  static const uint8_t zeroes[SECTOR];
  const uint8_t *bytes = reader_sector (reader, sector);

  return bytes ? bytes : zeroes;
}

/* What the reader knows nothing of is taken away for its time. */
static void
check_disk (uint8_t *bytes, uint64_t size, GByteArray *original)
{
  uint8_t kept[20], kept_original[20];
  struct reader reader, first;
  g_autofree char *fault = NULL, *never = NULL;

  memcpy (kept, bytes + 44, sizeof kept);
  memcpy (kept_original, original->data + 44, sizeof kept);
  memset (bytes + 44, 0, 4);
  memset (bytes + 56, 0, 8);
  memset (original->data + 44, 0, 4);
  memset (original->data + 56, 0, 8);
  fault = reader_open (&reader, bytes, size);
  if (!fault && get (kept, 4) == READER_CLOSED)
    for (uint64_t i = reader_data_end (&reader); i < size; i++)
      if (bytes[i] != 0) {
        rules_break ("it is closed, with something behind its clusters");
        break;
      }
  never = reader_open (&first, original->data, original->len);
  if (fault || never)
    rules_break ("%s", fault ? fault : never);
  for (uint64_t i = 0; i < NR_SECTORS && !rules_broken; i++)
    if (memcmp (sector_or_zeroes (&first, i), sector_or_zeroes (&reader, i),
                SECTOR) != 0)
      rules_break ("sector %" G_GUINT64_FORMAT " has changed", i);
  memcpy (bytes + 44, kept, sizeof kept);
  memcpy (original->data + 44, kept_original, sizeof kept);
}

static char *
read_file_bitmaps (const char *path, uint64_t *size)
{
  g_autofree char *bytes = NULL;
  char *fault, *text;

  if (!g_file_get_contents (path, &bytes, size, NULL))
    g_error ("%s: %s", path, g_strerror (errno));
  text = read_bitmaps ((const uint8_t *) bytes, *size, &fault);
  if (!fault && get ((const uint8_t *) bytes + 44, 4) == READER_IN_USE)
    fault = g_strdup ("it is not closed");
  if (fault)
    rules_break ("%s", fault);
  g_free (fault);
  return text;
}

/* ---- Changing ---------------------------------------------------------- */

static const char *
uuid_text (unsigned i)
{
  static const char *const names[] = {
    "11111111-1111-1111-1111-111111111111",
    "22222222-2222-2222-2222-222222222222",
    "33333333-3333-3333-3333-333333333333",
  };

  return names[i];
}

static void
change (const struct round *round, const char *path)
{
  static const char added[] = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee";
  g_autoptr (GError) error = NULL;
  int r = -1;

  switch (round->operation) {
  case ADD:
  case ADD_SET:
    r = ploop_add_bitmap (path, added, 65536, round->operation == ADD_SET, NULL,
                          NULL, &error);
    break;
  case MERGE:
    r = ploop_merge_bitmap (path, uuid_text (1), NULL, uuid_text (0), NULL, NULL,
                            &error);
    break;
  case REMOVE:
    r = ploop_remove_bitmap (path, uuid_text (0), NULL, NULL, &error);
    break;
  case REMOVE_ALL:
    r = ploop_remove_bitmap (path, NULL, NULL, NULL, &error);
    break;
  case NR_OPERATIONS:
    break;
  }
  if (r == -1)
    rules_break ("%s", error ? error->message : "?");
}

/* ---- Cutting ----------------------------------------------------------- */

struct states {
  char *before, *after;
  GByteArray *original;
};

static void
check_cut (const struct recorder_cut *cut, const struct states *states)
{
  char *fault;
  g_autofree char *text = read_bitmaps (cut->bytes, cut->size, &fault);

  nr_states++;
  if (fault)
    rules_break ("%s", fault);
  else if (strcmp (text, states->before) != 0
           && strcmp (text, states->after) != 0)
    rules_break ("the bitmaps are neither the old nor the new ones");
  g_free (fault);
  if (!rules_broken)
    check_disk (cut->bytes, cut->size, states->original);
}

static void
cut_at (uint64_t moment, uint64_t end, bool broken_sync,
        const struct states *states, GRand *random, GPtrArray *left_over)
{
  static const double keeps[] = { 0, 0.5, 0.9, 1 };

  for (size_t i = 0; i < G_N_ELEMENTS (keeps) && !rules_broken; i++) {
    recorder_cut_t *cut =
      recorder_cut (moment, keeps[i], broken_sync, random);

    check_cut (cut, states);
    if (rules_broken && !broken_sync)
      fprintf (stderr, "cut at %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT
               ", keeping %.1f\n", moment, end, keeps[i]);
    if (left_over->len < NR_LEFT_OVER && chance (random, 100))
      g_ptr_array_add (left_over, cut);
    else
      recorder_cut_free (cut);
  }
}

/* What cuts have left can be changed again: to carry none at last, with all space
 * given back.
 */
static void
change_left_over (const struct states *states, const GPtrArray *left_over)
{
  g_autoptr (GError) error = NULL;

  for (guint i = 0; i < left_over->len && !rules_broken; i++) {
    g_autofree char *text = NULL;
    g_autofree char *bytes = NULL;
    struct ploop_check_result result;
    uint64_t size;

    recorder_cut_save (g_ptr_array_index (left_over, i), cut_path);
    /* Does nothing to one with bitmaps. */
    ploop_compact (cut_path, NULL, NULL, NULL, NULL, NULL);
    if (ploop_add_bitmap (cut_path, NULL, 0, true, NULL, NULL, &error) == -1
        || ploop_remove_bitmap (cut_path, NULL, NULL, NULL, &error) == -1
        || ploop_check (cut_path, NULL, NULL, &result, &error) == -1) {
      rules_break ("%s", error->message);
      return;
    }
    text = read_file_bitmaps (cut_path, &size);
    if (text[0] != '\0')
      rules_break ("bitmaps are left");
    if (result.nr_errors + result.nr_leaks > 0)
      rules_break ("it is not clean in the end");
    if (!g_file_get_contents (cut_path, &bytes, &size, NULL))
      g_error ("%s: %s", cut_path, g_strerror (errno));
    check_disk ((uint8_t *) bytes, size, states->original);
    nr_changed++;
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

static void
describe_round (const struct round *round)
{
  fprintf (stderr, "PLOOP_TEST_SEED=%u: version %u, %u sectors a cluster, %u of a "
           "hundred used, operation %d on %u bitmaps:", round->seed,
           round->shape.version, round->shape.cluster_sectors, round->used,
           round->operation, round->nr_bitmaps);
  for (unsigned i = 0; i < round->nr_bitmaps; i++)
    fprintf (stderr, " %u sectors a bit, %u dirty;", round->granularities[i],
             round->dirty[i]);
  fprintf (stderr, "%s%s\n", round->faults.no_punch ? " no punch" : "",
           round->faults.no_zero_range ? " no zero range" : "");
}

static void
run_round (uint32_t seed, bool broken_sync)
{
  const struct round round = draw_round (seed);
  GRand *random = g_rand_new_with_seed (seed + 1);
  g_autoptr (GPtrArray) left_over =
    g_ptr_array_new_with_free_func ((GDestroyNotify) recorder_cut_free);
  struct states states = { .original = make_image (&round, random) };
  uint64_t size, end;

  save (image_path, states.original);
  states.before = read_file_bitmaps (image_path, &size);
  recorder_start (image_path, &round.faults, seed);
  change (&round, image_path);
  end = recorder_now ();
  states.after = read_file_bitmaps (image_path, &size);
  check_recorder (end, random);
  for (uint64_t moment = 0; moment <= end && !rules_broken; moment++)
    cut_at (moment, end, broken_sync, &states, random, left_over);
  recorder_stop ();
  if (!broken_sync)
    change_left_over (&states, left_over);
  if (rules_broken && !broken_sync)
    describe_round (&round);
  g_byte_array_unref (states.original);
  g_free (states.before);
  g_free (states.after);
  g_rand_free (random);
}

/* ---- All rounds -------------------------------------------------------- */

static unsigned
number_from (const char *name, unsigned otherwise)
{
  const char *value = g_getenv (name);

  return value ? (unsigned) strtoul (value, NULL, 0) : otherwise;
}

static void
run_rounds (uint32_t seed)
{
  const unsigned nr =
    MAX (NR_ROUNDS * number_from ("PLOOP_TEST_SCALE", 100) / 100, 1);

  printf ("%u rounds, PLOOP_TEST_SEED=%u\n", nr, seed);
  fflush (stdout);
  for (unsigned i = 0; i < nr && !rules_broken; i++)
    run_round (seed + 1000 * i, false);
}

static void
run_without_syncs (uint32_t seed)
{
  for (unsigned i = 0; i < 20 && !rules_broken; i++)
    run_round (seed + 1000 * i, true);
  if (rules_broken) {
    printf ("without syncs, as it must be: %s\n", rules_broken);
    rules_forget_broken ();
  }
  else
    rules_break ("syncs that do nothing go unnoticed: this test cannot fail");
}

static void
clean_up (char *directory)
{
  unlink (image_path);
  unlink (cut_path);
  rmdir (directory);
  g_free (image_path);
  g_free (cut_path);
  g_free (directory);
}

int
main (void)
{
  const uint32_t seed = number_from ("PLOOP_TEST_SEED", g_random_int ());
  char *directory;
  bool broken;

  /* In memory, where that is offered: nothing here need really be durable. */
  if (!g_getenv ("TMPDIR") && access ("/dev/shm", W_OK) == 0)
    g_setenv ("TMPDIR", "/dev/shm", TRUE);
  directory = g_dir_make_tmp ("ploop-crash-XXXXXX", NULL);
  image_path = g_build_filename (directory, "image", NULL);
  cut_path = g_build_filename (directory, "cut", NULL);
  run_rounds (seed);
  printf ("%" G_GUINT64_FORMAT " crash states, %" G_GUINT64_FORMAT
          " changed again\n", nr_states, nr_changed);
  if (!rules_broken)
    run_without_syncs (seed);
  broken = rules_broken != NULL;
  if (broken)
    fprintf (stderr, "%s\n", rules_broken);
  rules_forget_broken ();
  clean_up (directory);
  return broken ? EXIT_FAILURE : EXIT_SUCCESS;
}
