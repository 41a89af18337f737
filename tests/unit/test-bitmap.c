/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/bitmap.c and lib/bitmap-update.c: bits are read as they are stored, whatever the
 * granularity; a change that fails leaves the bitmaps that there were and a file as
 * long as it was; and bitmaps are carried over to another delta before the first one
 * loses them.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "bitmap.h"
#include "bitmap-update.h"
#include "faults.h"
#include "ploop-core.h"
#include "run.h"

#define CLUSTER 32768u
#define NR_ENTRIES 600u

static const uint8_t uuid[BITMAP_UUID_SIZE] = { 1, 2, 3, 4, 5, 6, 7, 8,
                                                9, 10, 11, 12, 13, 14, 15, 16 };

static char *
new_image (uint32_t cluster_sectors, uint32_t nr_entries)
{
  const struct format_header header =
    scratch_header (2, cluster_sectors, nr_entries);

  return scratch_image ("bitmap", &header, NULL,
                        (uint64_t) header.data_sectors * 512);
}

static struct delta *
open_delta (const char *path)
{
  struct delta *delta = delta_open (path, DELTA_LOCK_WRITER, NULL);

  ck_assert_ptr_nonnull (delta);
  return delta;
}

/* ---- Bitmaps as text --------------------------------------------------- */

/* A character a bit; # is set. */
static char *
text_of (const struct delta *delta, const struct extension_bitmap *bitmap)
{
  const uint64_t nr = extension_nr_bits (bitmap);
  char *text = g_strnfill (nr, '.');
  struct bitmap_reader reader;
  uint64_t from, to, before = 0;
  int r;

  bitmap_read_begin (&reader, delta, bitmap);
  while ((r = bitmap_read_run (&reader, &from, &to, NULL)) > 0) {
    ck_assert_uint_lt (from, to);
    ck_assert_uint_le (to, nr);
    ck_assert (before == 0 || from > before);
    memset (text + from, '#', to - from);
    before = to;
  }
  ck_assert_int_eq (r, 0);
  bitmap_read_end (&reader);
  return text;
}

/* All bitmaps of a file; "" when it has none. */
static char *
text_of_file (const char *path)
{
  struct delta *delta = delta_open (path, DELTA_LOCK_READER, NULL);
  g_autoptr (GString) text = g_string_new ("");
  struct extension extension;

  ck_assert_ptr_nonnull (delta);
  if (bitmap_get_state (&delta->header) == BITMAP_VALID) {
    ck_assert (bitmap_load (delta, &extension, NULL));
    for (guint i = 0; i < extension.bitmaps->len; i++) {
      const struct extension_bitmap *bitmap =
        &g_array_index (extension.bitmaps, struct extension_bitmap, i);
      g_autofree char *bits = text_of (delta, bitmap);

      g_string_append_printf (text, "%u %s\n", bitmap->granularity, bits);
    }
    extension_clear (&extension);
  }
  delta_close (delta);
  return g_string_free (g_steal_pointer (&text), FALSE);
}

/* ---- Making them ------------------------------------------------------- */

/* Add a bitmap with nothing set; its number. */
static guint
add_empty (struct bitmap_update *update, uint32_t granularity, uint8_t name)
{
  struct extension_bitmap bitmap = {
    .size_sectors = update->delta->header.size_sectors,
    .granularity = granularity,
    .uuid = { name },
  };

  bitmap.nr_l1_needed =
    extension_nr_l1 (&update->delta->layout, extension_nr_bits (&bitmap));
  bitmap.nr_l1 = (uint32_t) bitmap.nr_l1_needed;
  bitmap.l1 = g_new0 (uint64_t, bitmap.nr_l1);
  extension_add_bitmap (&update->new, &bitmap);
  return update->new.bitmaps->len - 1;
}

/* Let the image PATH carry a bitmap whose bits are those of TEXT. */
static void
make_bitmap (const char *path, uint32_t granularity, const char *text)
{
  struct delta *delta = open_delta (path);
  const uint64_t nr = strlen (text);
  g_autofree uint8_t *bits = g_malloc0 (delta->layout.cluster_size);
  struct bitmap_update update;
  struct extension_bitmap *bitmap;
  guint i;

  ck_assert (bitmap_update_begin (&update, delta, false, NULL, NULL));
  i = add_empty (&update, granularity, 77);
  bitmap = &g_array_index (update.new.bitmaps, struct extension_bitmap, i);
  ck_assert_uint_eq (extension_nr_bits (bitmap), nr);
  ck_assert_uint_le (nr, 8 * delta->layout.cluster_size);
  for (uint64_t j = 0; j < nr; j++)
    if (text[j] == '#')
      bits[j / 8] |= (uint8_t) (1u << j % 8);
  /* Behind the guest's clusters, of which there are none, and not where the
   * extension goes.
   */
  bitmap->l1[0] = (delta->layout.data_start + 7 * delta->layout.cluster_size)
                  / FORMAT_SECTOR_SIZE;
  scratch_write (path, bits, delta->layout.cluster_size,
                 bitmap->l1[0] * FORMAT_SECTOR_SIZE);
  extension_update_clusters (&update.new);
  ck_assert (bitmap_update_commit (&update, NULL));
  bitmap_update_end (&update);
  delta_close (delta);
}

static char *
random_text (GRand *random, uint64_t nr)
{
  char *text = g_strnfill (nr, '.');
  const int dirty = g_rand_int_range (random, 1, 100);

  for (uint64_t i = 0; i < nr; i++)
    if (g_rand_int_range (random, 0, 100) < dirty)
      text[i] = '#';
  return text;
}

/* ---- Tests ------------------------------------------------------------- */

START_TEST (uuids_are_read_and_written_in_order)
{
  uint8_t bytes[BITMAP_UUID_SIZE];
  char text[BITMAP_UUID_TEXT];

  bitmap_format_uuid (uuid, text);
  ck_assert_str_eq (text, "01020304-0506-0708-090a-0b0c0d0e0f10");
  ck_assert (bitmap_parse_uuid (text, bytes));
  ck_assert_mem_eq (bytes, uuid, sizeof uuid);
  ck_assert (
    bitmap_parse_uuid ("{01020304-0506-0708-090A-0B0C0D0E0F10}", bytes));
  ck_assert_mem_eq (bytes, uuid, sizeof uuid);
  ck_assert (!bitmap_parse_uuid ("", bytes));
  ck_assert (!bitmap_parse_uuid ("01020304-0506-0708-090a-0b0c0d0e0f1", bytes));
  ck_assert (
    !bitmap_parse_uuid ("{01020304-0506-0708-090a-0b0c0d0e0f10", bytes));
  ck_assert (
    !bitmap_parse_uuid ("01020304x0506-0708-090a-0b0c0d0e0f10", bytes));
}
END_TEST

START_TEST (runs_are_those_that_were_stored)
{
  GRand *random = g_rand_new_with_seed (41);

  for (unsigned i = 0; i < 20; i++) {
    g_autofree char *path = new_image (64, NR_ENTRIES);
    g_autofree char *text = random_text (random, NR_ENTRIES * 64 / 8);
    g_autofree char *want = g_strdup_printf ("8 %s\n", text);
    g_autofree char *got = NULL;

    make_bitmap (path, 8, text);
    got = text_of_file (path);
    ck_assert_str_eq (got, want);
  }
  g_rand_free (random);
}
END_TEST

/* Set in TEXT, of bits of GRANULARITY, what OTHER has, of bits of OTHER_GRANULARITY. */
static void
merge_text (char *text, uint32_t granularity, const char *other,
            uint32_t other_granularity)
{
  for (uint64_t i = 0; other[i] != '\0'; i++)
    if (other[i] == '#')
      for (uint64_t sector = i * other_granularity;
           sector < (i + 1) * other_granularity; sector++)
        if (sector / granularity < strlen (text))
          text[sector / granularity] = '#';
}

START_TEST (merged_bitmap_has_what_either_has)
{
  static const uint32_t granularities[] = { 4, 8, 64, 1024, 1u << 22 };
  const uint32_t nr_sectors = NR_ENTRIES * 64;
  GRand *random = g_rand_new_with_seed (42);

  for (unsigned i = 0; i < 25; i++) {
    const uint32_t g1 = granularities[i % 5], g2 = granularities[i / 5];
    g_autofree char *path = new_image (64, NR_ENTRIES);
    g_autofree char *other = new_image (64, NR_ENTRIES);
    g_autofree char *a = random_text (random, (nr_sectors + g1 - 1) / g1);
    g_autofree char *b = random_text (random, (nr_sectors + g2 - 1) / g2);
    g_autofree char *want = NULL, *got = NULL;
    const char name[] = "4d000000-0000-0000-0000-000000000000";

    make_bitmap (path, g1, a);
    make_bitmap (other, g2, b);
    /* make_bitmap's own has another name: let both have this. */
    ck_assert_int_eq (ploop_merge_bitmap (path, name, other, name, NULL, NULL,
                                          NULL), 0);
    merge_text (a, g1, b, g2);
    want = g_strdup_printf ("%u %s\n", g1, a);
    got = text_of_file (path);
    ck_assert_str_eq (got, want);
  }
  g_rand_free (random);
}
END_TEST

/* A bitmap of three clusters of bits, of which the second has all set. */
static char *
new_image_of_three (void)
{
  char *path = new_image (1, 9000);

  ck_assert_int_eq (ploop_add_bitmap (path, NULL, 512, false, NULL, NULL, NULL),
                    0);
  return path;
}

START_TEST (bitmaps_move_to_a_delta_of_other_clusters)
{
  g_autofree char *from_path = new_image (64, NR_ENTRIES);
  g_autofree char *to_path = new_image (2, NR_ENTRIES * 32);
  GRand *random = g_rand_new_with_seed (43);
  g_autofree char *bits = random_text (random, NR_ENTRIES * 64 / 4);
  g_autofree char *before = NULL, *after = NULL, *left = NULL;
  struct delta *from, *to;
  uint64_t size;

  size = scratch_size (from_path);
  make_bitmap (from_path, 4, bits);
  ck_assert_int_eq (ploop_add_bitmap (from_path, NULL, 4096, true, NULL, NULL,
                                      NULL), 0);
  before = text_of_file (from_path);
  from = open_delta (from_path);
  to = open_delta (to_path);
  ck_assert (bitmap_move (from, to, NULL, NULL));
  ck_assert_uint_eq (from->header.in_use, FORMAT_CLOSED);
  ck_assert_uint_eq (to->header.in_use, FORMAT_CLOSED_EXTENSION);
  ck_assert_uint_eq (to->file_size, scratch_size (to_path));
  delta_close (from);
  delta_close (to);
  after = text_of_file (to_path);
  left = text_of_file (from_path);
  ck_assert_str_eq (after, before);
  ck_assert_str_eq (left, "");
  ck_assert_uint_eq (scratch_size (from_path), size);
  g_rand_free (random);
}
END_TEST

START_TEST (bitmaps_do_not_move_onto_others_nor_when_stale)
{
  g_autofree char *from_path = new_image_of_three ();
  g_autofree char *to_path = new_image_of_three ();
  g_autofree char *text = NULL, *text_before = text_of_file (to_path);
  g_autoptr (GError) error = NULL;
  struct delta *from = open_delta (from_path), *to = open_delta (to_path);

  ck_assert (!bitmap_move (from, to, NULL, &error));
  ck_assert_ptr_nonnull (strstr (error->message, "has bitmaps already"));
  delta_close (from);
  delta_close (to);
  text = text_of_file (to_path);
  ck_assert_str_eq (text, text_before);

  scratch_write_le32 (from_path, FORMAT_CLOSED, FORMAT_IN_USE_OFFSET);
  ck_assert_int_eq (ploop_remove_bitmap (to_path, NULL, NULL, NULL, NULL), 0);
  from = open_delta (from_path);
  to = open_delta (to_path);
  ck_assert (bitmap_move (from, to, NULL, NULL));
  ck_assert_uint_eq (to->header.extension_sectors, 0);
  ck_assert_uint_ne (from->header.extension_sectors, 0);
  delta_close (from);
  delta_close (to);
}
END_TEST

/* What is left of a move that fails: FROM has what it had, or TO has it. */
static void
check_failed_move (const char *from_path, const char *to_path,
                   const char *before)
{
  g_autofree char *from = text_of_file (from_path);
  g_autofree char *to = text_of_file (to_path);

  ck_assert (strcmp (from, before) == 0 || strcmp (to, before) == 0);
}

START_TEST (move_that_fails_loses_nothing)
{
  static const enum fault_call calls[] = { FAULT_PWRITE, FAULT_FDATASYNC,
                                           FAULT_PREAD };

  for (size_t i = 0; i < G_N_ELEMENTS (calls); i++)
    for (unsigned skip = 0, hit = 1; hit > 0; skip++) {
      g_autofree char *from_path = new_image (64, NR_ENTRIES);
      g_autofree char *to_path = new_image (64, NR_ENTRIES);
      g_autofree char *before = NULL;
      struct delta *from, *to;

      make_bitmap (from_path, 1u << 20, "#");
      before = text_of_file (from_path);
      from = open_delta (from_path);
      to = open_delta (to_path);
      fault_reset ();
      fault_inject (calls[i], EIO, skip, 1);
      bitmap_move (from, to, NULL, NULL);
      hit = fault_calls[calls[i]] > skip;
      fault_reset ();
      delta_close (from);
      delta_close (to);
      check_failed_move (from_path, to_path, before);
    }
}
END_TEST

static int
merge_in (const char *path, const char *other, GError **error)
{
  const char name[] = "4d000000-0000-0000-0000-000000000000";

  return ploop_merge_bitmap (path, name, other, name, NULL, NULL, error);
}

START_TEST (change_that_fails_leaves_what_there_was)
{
  static const enum fault_call calls[] = { FAULT_PWRITE, FAULT_FDATASYNC,
                                           FAULT_PREAD };
  static const int errors[] = { EIO, ENOSPC };
  GRand *random = g_rand_new_with_seed (44);
  g_autofree char *other = new_image (64, NR_ENTRIES);
  g_autofree char *bits = random_text (random, NR_ENTRIES);

  make_bitmap (other, 64, bits);
  for (size_t i = 0; i < G_N_ELEMENTS (calls); i++)
    for (unsigned skip = 0, hit = 1; hit > 0; skip++) {
      g_autofree char *path = new_image (64, NR_ENTRIES);
      g_autofree char *before = NULL, *after = NULL;
      g_autofree char *want = g_strdup_printf ("64 %s\n", bits);
      g_autofree char *clear = g_strnfill (NR_ENTRIES, '.');
      uint64_t size;
      bool failed;
      g_autoptr (GError) error = NULL;

      make_bitmap (path, 64, clear);
      before = text_of_file (path);
      size = scratch_size (path);
      fault_reset ();
      fault_inject (calls[i], errors[skip % 2], skip, 1);
      failed = merge_in (path, other, &error) == -1;
      hit = fault_calls[calls[i]] > skip;
      fault_reset ();
      after = text_of_file (path);
      if (failed && strstr (error->message, "or the new ones"))
        ck_assert (strcmp (after, before) == 0 || strcmp (after, want) == 0);
      else if (failed) {
        ck_assert_str_eq (after, before);
        ck_assert_uint_eq (scratch_size (path), size);
      }
      else
        ck_assert_str_eq (after, want);
      ck_assert_int_eq (merge_in (path, other, NULL), 0);
    }
  g_rand_free (random);
}
END_TEST

static void
count_warning (void *opaque, enum ploop_log_level level, const char *message)
{
  unsigned *nr = opaque;

  (void) message;
  if (level == PLOOP_LOG_WARNING)
    (*nr)++;
}

START_TEST (space_that_does_not_come_back_is_only_a_warning)
{
  static const enum fault_call calls[] = { FAULT_FTRUNCATE, FAULT_FALLOCATE };

  for (size_t i = 0; i < G_N_ELEMENTS (calls); i++) {
    g_autofree char *path = new_image_of_three ();
    g_autofree char *text = NULL;
    unsigned nr_warnings = 0;
    const struct ploop_bitmap_options options = {
      .log = count_warning,
      .log_opaque = &nr_warnings,
    };

    /* The next extension goes behind this one. */
    fault_inject (calls[i], EIO, 0, 1);
    if (calls[i] == FAULT_FTRUNCATE)
      ck_assert_int_eq (ploop_remove_bitmap (path, NULL, &options, NULL, NULL),
                        0);
    else
      ck_assert_int_eq (ploop_add_bitmap (path, NULL, 0, false, &options, NULL,
                                          NULL), 0);
    fault_reset ();
    ck_assert_uint_eq (nr_warnings, 1);
    text = text_of_file (path);
    ck_assert_int_eq (text[0] == '\0', calls[i] == FAULT_FTRUNCATE);
  }
}
END_TEST

START_TEST (one_cluster_in_two_places_is_damage)
{
  g_autofree char *path = new_image_of_three ();
  struct delta *delta = open_delta (path);
  struct bitmap_update update;
  struct extension_bitmap *bitmap;
  struct extension extension;
  g_autoptr (GError) error = NULL;

  ck_assert (bitmap_update_begin (&update, delta, false, NULL, NULL));
  bitmap = &g_array_index (update.new.bitmaps, struct extension_bitmap, 0);
  ck_assert_uint_eq (bitmap->nr_l1, 3);
  bitmap->l1[0] = bitmap->l1[2] = delta->layout.data_start / 512 + 5;
  extension_update_clusters (&update.new);
  ck_assert (bitmap_update_commit (&update, NULL));
  bitmap_update_end (&update);
  ck_assert (!bitmap_load (delta, &extension, &error));
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT));
  ck_assert_ptr_nonnull (strstr (error->message, "two clusters overlap"));
  delta_close (delta);
  ck_assert_int_eq (ploop_remove_bitmap (path, NULL, NULL, NULL, NULL), 0);
}
END_TEST

/* Bitmaps of absurd size cost nothing. */
START_TEST (empty_table_of_an_endless_disk_is_read_at_once)
{
  g_autofree char *path = new_image (64, NR_ENTRIES);
  struct delta *delta = open_delta (path);
  const struct extension_bitmap bitmap = {
    .size_sectors = FORMAT_MAX_SIZE_SECTORS,
    .granularity = 1,
  };
  struct bitmap_reader reader;
  uint64_t from, to;

  bitmap_read_begin (&reader, delta, &bitmap);
  ck_assert_int_eq (bitmap_read_run (&reader, &from, &to, NULL), 0);
  bitmap_read_end (&reader);
  delta_close (delta);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, uuids_are_read_and_written_in_order);
  tcase_add_test (tcase, runs_are_those_that_were_stored);
  tcase_add_test (tcase, merged_bitmap_has_what_either_has);
  tcase_add_test (tcase, bitmaps_move_to_a_delta_of_other_clusters);
  tcase_add_test (tcase, bitmaps_do_not_move_onto_others_nor_when_stale);
  tcase_add_test (tcase, move_that_fails_loses_nothing);
  tcase_add_test (tcase, change_that_fails_leaves_what_there_was);
  tcase_add_test (tcase, space_that_does_not_come_back_is_only_a_warning);
  tcase_add_test (tcase, one_cluster_in_two_places_is_damage);
  tcase_add_test (tcase, empty_table_of_an_endless_disk_is_read_at_once);
}

int
main (void)
{
  fault_no_syncs = true;
  return run_tests ("bitmap", add_tests);
}
