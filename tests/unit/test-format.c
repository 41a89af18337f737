/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/format.c: what a header says, what is refused, and the table of limits.
 */

#include <config.h>

#include <string.h>

#include "format.h"
#include "ploop-core.h"
#include "run.h"

#define KIB UINT64_C (1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)
#define TIB (GIB * 1024)

START_TEST (header_survives_encoding_and_decoding)
{
  const struct format_header before = {
    .version = 2,
    .type = 2,
    .heads = 16,
    .cylinders = 0x01020304,
    .cluster_sectors = 2048,
    .nr_entries = 0x05060708,
    .size_sectors = 0x1122334455667788,
    .in_use = FORMAT_IN_USE,
    .data_sectors = 0x0a0b0c0d,
    .flags = 3,
    .extension_sectors = 0x99aabbccddeeff00,
  };
  struct format_header after;
  uint8_t bytes[FORMAT_HEADER_SIZE];

  format_encode_header (&before, bytes);
  ck_assert (memcmp (bytes, "WithouFreSpacExt", 16) == 0);
  ck_assert_uint_eq (bytes[36], 0x88);  /* little-endian */
  ck_assert (format_decode_header (bytes, &after));
  ck_assert_uint_eq (after.version, before.version);
  ck_assert_uint_eq (after.type, before.type);
  ck_assert_uint_eq (after.heads, before.heads);
  ck_assert_uint_eq (after.cylinders, before.cylinders);
  ck_assert_uint_eq (after.cluster_sectors, before.cluster_sectors);
  ck_assert_uint_eq (after.nr_entries, before.nr_entries);
  ck_assert_uint_eq (after.size_sectors, before.size_sectors);
  ck_assert_uint_eq (after.in_use, before.in_use);
  ck_assert_uint_eq (after.data_sectors, before.data_sectors);
  ck_assert_uint_eq (after.flags, before.flags);
  ck_assert_uint_eq (after.extension_sectors, before.extension_sectors);
}
END_TEST

START_TEST (upper_word_of_a_v1_size_is_ignored)
{
  struct format_header header = scratch_header (1, 64, 10), after;
  uint8_t bytes[FORMAT_HEADER_SIZE];

  format_encode_header (&header, bytes);
  memset (bytes + 40, 0xff, 4);
  ck_assert (format_decode_header (bytes, &after));
  ck_assert_uint_eq (after.size_sectors, 640);
}
END_TEST

START_TEST (other_signatures_are_refused)
{
  static const char *const others[] = {
    "WithoutFreeSpac\0", "withoutFreeSpace", "WithouFreSpacExT", "QFI\xfb",
    "<?xml version=\"1", "",
  };
  struct format_header header;
  uint8_t bytes[FORMAT_HEADER_SIZE];

  for (size_t i = 0; i < G_N_ELEMENTS (others); i++) {
    memset (bytes, 0, sizeof bytes);
    memcpy (bytes, others[i], strlen (others[i]));
    ck_assert (!format_decode_header (bytes, &header));
  }
}
END_TEST

/* Each row changes one field of a good header (cluster of 64 sectors, 100
 * entries, file of 1 MiB) and says whether that is refused, and by which words.
 */
struct limit {
  const char *what;
  unsigned version;
  uint32_t type, cluster_sectors, nr_entries, data_sectors;
  uint64_t size_sectors, file_size;
  const char *refused;          /* NULL: accepted */
};

static const struct limit limits[] = {
  { "a good one", 2, 2, 64, 100, 64, 6400, MIB, NULL },
  { "a good v1", 1, 2, 64, 100, 64, 6400, MIB, NULL },
  { "odd type", 2, 3, 64, 100, 64, 6400, MIB, "type is 3" },
  { "no cluster size", 2, 2, 0, 100, 64, 0, MIB, "cluster size is 0" },
  { "1 sector", 2, 2, 1, 100, 1, 100, MIB, NULL },
  { "63 sectors", 1, 2, 63, 100, 63, 6300, MIB, NULL },
  { "504 sectors", 1, 2, 504, 100, 504, 50400, MIB, NULL },
  { "131072 sectors", 2, 2, 131072, 100, 131072, 6400, 64 * MIB, NULL },
  { "largest of qemu", 2, 2, 4186127, 1, 0, 1, 2 * GIB, NULL },
  { "one more", 2, 2, 4186128, 1, 0, 1, 2 * GIB, "cluster size is 4186128" },
  { "largest u32", 2, 2, UINT32_MAX, 1, 0, 1, 2 * GIB, "cluster size is 42" },
  { "no disk", 2, 2, 64, 0, 64, 0, MIB, NULL },
  { "no entries", 2, 2, 64, 0, 64, 1, MIB, "disk size is 1 " },
  { "disk of one sector", 2, 2, 64, 100, 64, 1, MIB, NULL },
  { "disk past its BAT", 2, 2, 64, 100, 64, 6401, MIB, "disk size is 6401 " },
  { "BAT past the file", 2, 2, 64, 262129, 2048, 6400, MIB,
    "number of BAT entries is 262129" },
  { "BAT fills the file", 2, 2, 64, 262128, 2048, 6400, MIB, NULL },
  { "most entries", 2, 2, 64, 536870911, 4194368, 6400, 3 * GIB, NULL },
  { "one more", 2, 2, 64, 536870912, 4194368, 6400, 3 * GIB,
    "number of BAT entries is 536870912" },
  { "most u32", 2, 2, 64, UINT32_MAX, 64, 6400, MIB,
    "number of BAT entries is 4294967295" },
  { "huge disk", 2, 2, 64, 100, 64, UINT64_MAX, MIB, "disk size is 18446744" },
  { "just too huge", 2, 2, 64, 100, 64, (uint64_t) INT64_MAX / 512 + 1, MIB,
    "disk size is 18014398509481984" },
  { "data in the header", 2, 2, 64, 100, 0, 6400, MIB, NULL },
  { "data in the BAT", 1, 2, 1, 1000, 7, 1000, MIB,
    "first data offset is 7 " },
  { "data after the BAT", 1, 2, 1, 1000, 8, 1000, MIB, NULL },
  { "data at the end", 2, 2, 64, 100, 2048, 6400, MIB, NULL },
  { "data past the end", 2, 2, 64, 100, 2112, 6400, MIB,
    "first data offset is 2112 " },
  { "data past the end", 1, 2, 64, 100, 2049, 6400, MIB,
    "first data offset is 2049 " },
  /* As qemu 10 makes them; nothing is left of the disk. */
  { "not that of a cluster", 2, 2, 63, 100, 65, 6300, 63 * 512, NULL },
  { "data far past it", 2, 2, 64, 100, 4294967232, 6400, MIB,
    "first data offset is 4294967232 " },
  { "file of a header", 2, 2, 64, 100, 64, 6400, 64,
    "number of BAT entries is 100" },
};

START_TEST (table_of_limits)
{
  const struct limit *l = &limits[_i];
  const struct format_header header = {
    .version = l->version,
    .type = l->type,
    .cluster_sectors = l->cluster_sectors,
    .nr_entries = l->nr_entries,
    .size_sectors = l->size_sectors,
    .data_sectors = l->data_sectors,
  };
  struct format_layout layout;
  g_autoptr (GError) error = NULL;
  bool ok = format_check_header (&header, l->file_size, &layout, &error);

  ck_assert_msg (ok == (l->refused == NULL), "%s: %s", l->what,
                 error ? error->message : "accepted");
  if (ok)
    return;
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT));
  ck_assert_msg (strstr (error->message, l->refused) != NULL, "%s: %s",
                 l->what, error->message);
}
END_TEST

static struct format_layout
layout_of (unsigned version, uint32_t cluster_sectors, uint32_t nr_entries,
           uint32_t data_sectors)
{
  struct format_header header =
    scratch_header (version, cluster_sectors, nr_entries);
  struct format_layout layout;

  header.data_sectors = data_sectors;
  ck_assert (format_check_header (&header, TIB, &layout, NULL));
  return layout;
}

START_TEST (data_start_follows_qemu)
{
  /* v1: as stored, or after the BAT to the sector. */
  ck_assert_uint_eq (layout_of (1, 63, 261, 63).data_start, 63 * 512);
  ck_assert_uint_eq (layout_of (1, 63, 261, 0).data_start, 3 * 512);
  ck_assert_uint_eq (layout_of (1, 64, 261, 77).data_start, 77 * 512);
  /* v2: on the grid of clusters. */
  ck_assert_uint_eq (layout_of (2, 64, 261, 64).data_start, 64 * 512);
  ck_assert_uint_eq (layout_of (2, 64, 261, 0).data_start, 64 * 512);
  ck_assert_uint_eq (layout_of (2, 64, 261, 200).data_start, 192 * 512);
  ck_assert_uint_eq (layout_of (2, 64, 261, 3).data_start, 64 * 512);
}
END_TEST

START_TEST (entries_and_cells_agree)
{
  static const struct {
    unsigned version;
    uint32_t cluster_sectors, data_sectors;
  } cases[] = { { 1, 63, 3 }, { 1, 2048, 2048 }, { 2, 64, 64 },
                { 2, 131072, 131072 }, { 1, 1, 9 } };

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    const struct format_layout layout =
      layout_of (cases[i].version, cases[i].cluster_sectors, 200,
                 cases[i].data_sectors);
    const uint64_t nr_cells = format_nr_cells (&layout);
    const uint64_t last = nr_cells - 1;

    ck_assert_uint_eq (
      format_entry_offset (&layout, format_cell_entry (&layout, 0)),
      layout.data_start);
    ck_assert_uint_eq (
      format_entry_offset (&layout, format_cell_entry (&layout, last)),
      format_cell_offset (&layout, last));
    /* One more has no 32-bit entry. */
    ck_assert_uint_gt (format_cell_offset (&layout, nr_cells)
                         / layout.entry_unit,
                       UINT32_MAX);
    ck_assert_uint_eq (format_cells_below (&layout, layout.data_start), 0);
    ck_assert_uint_eq (format_cells_below (&layout, layout.data_start + 1), 1);
    ck_assert_uint_eq (format_cells_below (&layout,
                                           format_cell_offset (&layout, 7)),
                       7);
  }
}
END_TEST

START_TEST (geometry_is_ploops)
{
  static const struct {
    uint64_t size_sectors;
    uint32_t heads, cylinders;
  } cases[] = {
    { 4096, 16, 8 },            /* 2 MiB: 32 sectors */
    { 16384, 16, 32 },
    { 204800, 16, 400 },
    { 1032192, 16, 1024 },      /* 63 sectors divide */
    { 1032193, 16, 1024 },      /* above: always 63 sectors */
    { 1048576, 16, 1040 },
    { 16777215, 16, 16644 },
    { 16777216, 16, 32768 },
    { 16385, 1, 16385 },
    { 8, 1, 8 },
    { 16, 2, 1 },               /* 8 sectors, 2 heads */
  };

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    uint32_t heads, cylinders;

    format_geometry (cases[i].size_sectors, &heads, &cylinders);
    ck_assert_uint_eq (heads, cases[i].heads);
    ck_assert_uint_eq (cylinders, cases[i].cylinders);
  }
}
END_TEST

static const struct {
  uint64_t size;
  uint32_t cluster_size;
  unsigned version;
  const char *refused;
} creations[] = {
  { 512, 32 << 10, 2, NULL },
  { 16 * TIB, 1 << 20, 2, NULL },
  { 2 * TIB, 1 << 20, 2, NULL },
  { MIB, 64 << 20, 1, NULL },
  { 0, 1 << 20, 2, "disk size is 0" },
  { 513, 1 << 20, 2, "disk size is 513" },
  { MIB, 16 << 10, 2, "cluster size is 16384" },
  { MIB, 128 << 20, 2, "cluster size is 134217728" },
  { MIB, 3 << 20, 2, "cluster size is 3145728" },
  { MIB, 1 << 20, 3, "format version is 3" },
  { 2 * TIB, 1 << 20, 1, "below 2 TiB" },
  { 2 * TIB - 512, 1 << 20, 1, "below 2 TiB" },
  { 2 * TIB - 16 * MIB, 1 << 20, 1, NULL },
  { 16 * TIB, 32 << 10, 2, "use larger clusters" },
  { UINT64_MAX - 511, 64 << 20, 2, "disk size is 18446744073709551104" },
};

START_TEST (what_can_be_created)
{
  struct format_header header;
  struct format_layout layout;
  g_autoptr (GError) error = NULL;
  bool ok = format_new_header (creations[_i].size, creations[_i].cluster_size,
                               creations[_i].version, &header, &error);

  if (creations[_i].refused) {
    ck_assert (!ok);
    ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT));
    ck_assert_msg (strstr (error->message, creations[_i].refused) != NULL,
                   "%s", error->message);
    return;
  }
  ck_assert_msg (ok, "%s", error ? error->message : "");
  ck_assert (format_check_header (&header,
                                  (uint64_t) header.data_sectors * 512,
                                  &layout, &error));
  ck_assert_uint_eq (layout.size, creations[_i].size);
  ck_assert_uint_eq (layout.cluster_size, creations[_i].cluster_size);
  /* The kernel's rule for the first data offset. */
  ck_assert_uint_eq (layout.data_start,
                     (layout.bat_end + layout.cluster_size - 1)
                       / layout.cluster_size * layout.cluster_size);
  /* A full disk has an entry for each cluster. */
  ck_assert_uint_ge (format_nr_cells (&layout), layout.nr_entries);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, header_survives_encoding_and_decoding);
  tcase_add_test (tcase, upper_word_of_a_v1_size_is_ignored);
  tcase_add_test (tcase, other_signatures_are_refused);
  tcase_add_loop_test (tcase, table_of_limits, 0,
                       (int) G_N_ELEMENTS (limits));
  tcase_add_test (tcase, data_start_follows_qemu);
  tcase_add_test (tcase, entries_and_cells_agree);
  tcase_add_test (tcase, geometry_is_ploops);
  tcase_add_loop_test (tcase, what_can_be_created, 0,
                       (int) G_N_ELEMENTS (creations));
}

int
main (void)
{
  return run_tests ("format", add_tests);
}
