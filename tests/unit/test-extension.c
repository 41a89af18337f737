/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/extension.c: bitmaps as qemu and libploop write them, and every number
 * in them that must be judged before it is used.
 */

#include <config.h>

#include <string.h>

#include "extension.h"
#include "run.h"

#define CLUSTER 32768u
#define FILE_SIZE (UINT64_C (100) * CLUSTER)

static const struct format_layout layout = {
  .size = 1000 * CLUSTER,
  .cluster_size = CLUSTER,
  .entry_unit = CLUSTER,
  .nr_entries = 1000,
  .bat_end = 4064,
  .data_start = CLUSTER,
};

static uint8_t cluster[CLUSTER];

static void
put32 (size_t offset, uint32_t v)
{
  v = GUINT32_TO_LE (v);
  memcpy (cluster + offset, &v, sizeof v);
}

static void
put64 (size_t offset, uint64_t v)
{
  v = GUINT64_TO_LE (v);
  memcpy (cluster + offset, &v, sizeof v);
}

static void
seal (void)
{
  g_autoptr (GChecksum) md5 = g_checksum_new (G_CHECKSUM_MD5);
  gsize length = 16;

  g_checksum_update (md5, cluster + 24, CLUSTER - 24);
  g_checksum_get_digest (md5, cluster + 8, &length);
}

/* A good extension with one bitmap of 1000 clusters' sectors in bits of 128
 * sectors: 500 bits, so an L1 of one.
 */
static void
make_good (void)
{
  memset (cluster, 0, sizeof cluster);
  put64 (0, UINT64_C (0xAB234CEF23DCEA87));
  put64 (24, UINT64_C (0x20385FAE252CB34A));
  put32 (40, 40);               /* data size */
  put64 (48, 64000);            /* disk size, sectors */
  put32 (72, 128);              /* granularity */
  put32 (76, 1);                /* L1 length */
  put64 (80, 640);              /* sector of the bits: cluster 10 */
  seal ();
}

static char *
parse (struct extension *extension)
{
  seal ();
  return extension_parse (cluster, &layout, FILE_SIZE, extension);
}

/* What the change made wrong must be said in these words. */
static void
expect_refused (const char *words)
{
  struct extension extension;
  g_autofree char *wrong = parse (&extension);

  ck_assert_ptr_nonnull (wrong);
  ck_assert_msg (strstr (wrong, words) != NULL, "%s", wrong);
}

START_TEST (good_bitmap_is_read)
{
  struct extension extension;

  make_good ();
  ck_assert_ptr_null (parse (&extension));
  ck_assert_uint_eq (extension.nr_bitmaps, 1);
  ck_assert_uint_eq (extension.bit_clusters->len, 1);
  ck_assert_uint_eq (g_array_index (extension.bit_clusters, uint64_t, 0),
                     10 * CLUSTER);
  extension_clear (&extension);
}
END_TEST

START_TEST (all_clear_all_set_and_empty_tables_name_no_cluster)
{
  struct extension extension;

  for (unsigned value = 0; value < 2; value++) {
    make_good ();
    put64 (80, value);
    ck_assert_ptr_null (parse (&extension));
    ck_assert_uint_eq (extension.bit_clusters->len, 0);
    extension_clear (&extension);
  }
  make_good ();
  put32 (76, 0);
  put32 (40, 32);
  ck_assert_ptr_null (parse (&extension));
  ck_assert_uint_eq (extension.nr_bitmaps, 1);
  extension_clear (&extension);
}
END_TEST

START_TEST (two_bitmaps_are_read)
{
  struct extension extension;

  make_good ();
  memcpy (cluster + 88, cluster + 24, 64);
  put64 (88 + 56, 704);
  ck_assert_ptr_null (parse (&extension));
  ck_assert_uint_eq (extension.nr_bitmaps, 2);
  ck_assert_uint_eq (extension.bit_clusters->len, 2);
  extension_clear (&extension);
}
END_TEST

START_TEST (absurd_numbers_are_named)
{
  struct extension extension;
  g_autofree char *wrong = NULL;

  make_good ();
  cluster[1000] ^= 1;           /* after the seal */
  wrong = extension_parse (cluster, &layout, FILE_SIZE, &extension);
  ck_assert_ptr_nonnull (strstr (wrong, "MD5"));

  make_good ();
  put64 (0, 1);
  expect_refused ("extension magic is 0x0000000000000001");
  make_good ();
  put32 (40, UINT32_MAX);
  expect_refused ("feature data size is 4294967295");
  make_good ();
  put32 (40, 31);
  expect_refused ("data size is 31");
  make_good ();
  put32 (72, 0);
  expect_refused ("granularity is 0");
  make_good ();
  put32 (72, 96);
  expect_refused ("granularity is 96");
  make_good ();
  put32 (76, 2);
  expect_refused ("L1 length is 2");
  make_good ();
  put32 (76, UINT32_MAX);
  expect_refused ("L1 length is 4294967295");
  make_good ();
  put64 (48, UINT64_MAX);
  expect_refused ("disk size is 18446744073709551615");
  make_good ();
  put64 (48, UINT64_C (1) << 40);
  expect_refused ("needs");
  make_good ();
  put64 (80, 2);                /* inside the BAT's cluster */
  expect_refused ("L1 entry 0 is sector 2");
  make_good ();
  put64 (80, 6400);             /* the end of the file */
  expect_refused ("L1 entry 0 is sector 6400");
  make_good ();
  put64 (80, UINT64_MAX);
  expect_refused ("L1 entry 0 is sector 18446744073709551615");
  make_good ();
  put64 (24, 77);
  put64 (32, 1);
  expect_refused ("necessary");
}
END_TEST

/* Put a feature at AT, padded to 8 bytes if ROUNDED; where the next one goes. */
static size_t
put_feature (size_t at, uint64_t magic, uint64_t flags, uint32_t size,
             bool rounded)
{
  put64 (at, magic);
  put64 (at + 8, flags);
  put32 (at + 16, size);
  memset (cluster + at + 24, 0x5a, size);
  return at + 24 + size + (rounded ? -size & 7 : 0);
}

/* Features of any size with bitmaps between them, as both programs would write them. */
static void
make_mixed (bool rounded, const uint32_t sizes[3])
{
  size_t at = 24;

  memset (cluster, 0, sizeof cluster);
  put64 (0, UINT64_C (0xAB234CEF23DCEA87));
  for (unsigned i = 0; i < 3; i++) {
    at = put_feature (at, 0x100 + i, i, sizes[i], rounded);
    at = put_feature (at, UINT64_C (0x20385FAE252CB34A), 0, 40, rounded);
    memset (cluster + at - 40, 0, 40);
    put64 (at - 40, 64000);
    put32 (at - 16, 128);
    put32 (at - 12, 1);
    put64 (at - 8, i);
  }
  put64 (at - 8, 640);
}

static const struct extension_feature *
other (const struct extension *extension, guint i)
{
  return &g_array_index (extension->others, struct extension_feature, i);
}

START_TEST (both_ways_of_padding_are_read_and_kept)
{
  for (uint32_t n = 0; n < 2 * 9 * 9; n++) {
    const bool rounded = n % 2 == 0;
    const uint32_t sizes[3] = { n / 2 % 9, n / 18, 3 };
    struct extension extension, again;

    make_mixed (rounded, sizes);
    seal ();
    ck_assert_ptr_null (
      extension_decode (cluster, &layout, FILE_SIZE, &extension));
    ck_assert_uint_eq (extension.nr_bitmaps, 3);
    ck_assert_uint_eq (extension.nr_unknown, 3);
    ck_assert_uint_eq (extension.bit_clusters->len, 1);
    for (unsigned i = 0; i < 3; i++) {
      ck_assert_uint_eq (other (&extension, i)->magic, 0x100 + i);
      ck_assert_uint_eq (other (&extension, i)->length,
                         24 + sizes[i] + (rounded ? -sizes[i] & 7 : 0));
    }
    extension_encode (&extension, &layout, cluster);
    ck_assert_ptr_null (
      extension_decode (cluster, &layout, FILE_SIZE, &again));
    ck_assert_uint_eq (again.nr_bitmaps, 3);
    ck_assert_uint_eq (again.nr_unknown, 3);
    /* What the last one is padded with cannot be told from what is behind all. */
    for (unsigned i = 0; i < 3; i++) {
      ck_assert (i == 2
                 || other (&again, i)->length == other (&extension, i)->length);
      ck_assert_mem_eq (other (&again, i)->bytes, other (&extension, i)->bytes,
                        24 + sizes[i]);
    }
    extension_clear (&extension);
    extension_clear (&again);
  }
}
END_TEST

START_TEST (flags_say_what_becomes_of_what_is_unknown)
{
  const uint32_t sizes[3] = { 8, 8, 8 };
  struct extension extension;
  g_autofree char *wrong = NULL;

  make_mixed (true, sizes);     /* the flags are 0, 1 and 2 */
  seal ();
  ck_assert_ptr_null (
    extension_decode (cluster, &layout, FILE_SIZE, &extension));
  wrong = extension_check_necessary (&extension);
  ck_assert_ptr_nonnull (strstr (wrong, "0x0000000000000101"));
  extension_remove_droppable (&extension);
  ck_assert_uint_eq (extension.nr_unknown, 2);
  ck_assert_uint_eq (other (&extension, 0)->magic, 0x101);
  ck_assert_uint_eq (other (&extension, 1)->magic, 0x102);
  extension_clear (&extension);
}
END_TEST

/* What is good is written as it was, byte for byte. */
START_TEST (encoded_is_what_was_decoded)
{
  struct extension extension;
  g_autofree uint8_t *before = NULL;

  make_good ();
  before = g_memdup2 (cluster, sizeof cluster);
  ck_assert_ptr_null (parse (&extension));
  ck_assert_uint_eq (extension_length (&extension), 88 + 24);
  memset (cluster, 0xee, sizeof cluster);
  extension_encode (&extension, &layout, cluster);
  ck_assert_mem_eq (cluster, before, sizeof cluster);
  extension_remove_bitmap (&extension, 0);
  ck_assert_uint_eq (extension.bit_clusters->len, 0);
  ck_assert_uint_eq (extension_length (&extension), 24 + 24);
  extension_clear (&extension);
}
END_TEST

START_TEST (place_is_judged)
{
  struct format_header header = scratch_header (2, 64, 1000);
  g_autofree char *a = NULL, *b = NULL;

  header.extension_sectors = 640;
  ck_assert_ptr_null (extension_check_place (&header, &layout, FILE_SIZE));
  header.extension_sectors = 1;
  a = extension_check_place (&header, &layout, FILE_SIZE);
  ck_assert_ptr_nonnull (strstr (a, "extension offset is 1 "));
  header.extension_sectors = UINT64_MAX;
  b = extension_check_place (&header, &layout, FILE_SIZE);
  ck_assert_ptr_nonnull (strstr (b, "18446744073709551615"));
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, good_bitmap_is_read);
  tcase_add_test (tcase,
                  all_clear_all_set_and_empty_tables_name_no_cluster);
  tcase_add_test (tcase, two_bitmaps_are_read);
  tcase_add_test (tcase, absurd_numbers_are_named);
  tcase_add_test (tcase, both_ways_of_padding_are_read_and_kept);
  tcase_add_test (tcase, flags_say_what_becomes_of_what_is_unknown);
  tcase_add_test (tcase, encoded_is_what_was_decoded);
  tcase_add_test (tcase, place_is_judged);
}

int
main (void)
{
  return run_tests ("extension", add_tests);
}
