/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/map-disk.c and lib/map-file.c: what is told of a chain, in which order, and how
 * it ends early.  That maps are true is what tests/interop/test-map.sh is about.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "faults.h"
#include "ploop-core.h"
#include "run.h"

#define CLUSTER 32768u
#define NR_LOWER 4u
#define NR_UPPER 6u

/* What was told, as text: a line a call. */
struct record {
  GString *text;
  unsigned nr_left;             /* calls until it is ended */
};

static bool
goes_on (struct record *record)
{
  return --record->nr_left > 0;
}

static bool
take_disk (void *opaque, uint64_t size, unsigned nr_deltas)
{
  struct record *record = opaque;

  g_string_append_printf (record->text, "disk %u %u\n",
                          (unsigned) (size / CLUSTER), nr_deltas);
  return goes_on (record);
}

static bool
take_delta (void *opaque, const struct ploop_map_delta *delta)
{
  struct record *record = opaque;

  g_string_append_printf (record->text, "delta %u level %u version %u\n",
                          delta->index, delta->level, delta->version);
  return goes_on (record);
}

static bool
take_extent (void *opaque, const struct ploop_map_extent *extent)
{
  static const char *const kinds[] = { "data", "zero", "unmapped" };
  struct record *record = opaque;

  g_string_append_printf (record->text, "extent %g+%g %s",
                          (double) extent->offset / CLUSTER,
                          (double) extent->length / CLUSTER,
                          kinds[extent->kind]);
  if (extent->kind != PLOOP_MAP_UNMAPPED)
    g_string_append_printf (record->text, " %u@%g", extent->delta,
                            (double) extent->host_offset / CLUSTER);
  g_string_append_c (record->text, '\n');
  return goes_on (record);
}

static bool
take_range (void *opaque, const struct ploop_map_range *range)
{
  static const char *const uses[] = {
    "metadata", "data", "hidden", "extension", "leaked", "free",
  };
  struct record *record = opaque;

  g_string_append_printf (record->text, "range %u %g+%g %s", range->delta,
                          (double) range->offset / CLUSTER,
                          (double) range->length / CLUSTER, uses[range->use]);
  if (range->use == PLOOP_USE_DATA || range->use == PLOOP_USE_HIDDEN)
    g_string_append_printf (record->text, " %g",
                            (double) range->guest_offset / CLUSTER);
  g_string_append_c (record->text, '\n');
  return goes_on (record);
}

static bool
take_usage (void *opaque, const struct ploop_map_usage *usage)
{
  struct record *record = opaque;

  g_string_append_printf (record->text, "usage %u: %u in %u, %u\n",
                          usage->delta, usage->nr_allocated,
                          usage->nr_fragments, usage->nr_least_fragments);
  return goes_on (record);
}

static const struct ploop_map_visitor all = {
  .disk = take_disk,
  .delta = take_delta,
  .extent = take_extent,
  .range = take_range,
  .usage = take_usage,
};

/* ---- A chain ----------------------------------------------------------- */

static void
write_cluster (const char *path, unsigned host_cluster)
{
  g_autofree uint8_t *bytes = g_malloc (CLUSTER);

  memset (bytes, 1, CLUSTER);
  scratch_write (path, bytes, CLUSTER, (uint64_t) host_cluster * CLUSTER);
}

/* Its disk ends half a cluster before its last cluster does; all of them have data.
 * Host cluster 3 is leaked, and 4 is a hole.
 */
static char *
make_lower (void)
{
  static const uint32_t entries[NR_LOWER] = { 2, 1, 0, 5 };
  struct format_header header = scratch_header (2, CLUSTER / 512, NR_LOWER);
  char *path;

  header.size_sectors -= CLUSTER / 512 / 2;
  path = scratch_image ("lower", &header, entries, 6 * CLUSTER);
  for (unsigned i = 1; i <= 5; i++)
    if (i != 4)
      write_cluster (path, i);
  return path;
}

/* The disk ends before the last entry's cluster. */
static char *
make_upper (void)
{
  static const uint32_t entries[NR_UPPER] = { 0, 1, 0, 0, 0, 2 };
  struct format_header header = scratch_header (2, CLUSTER / 512, NR_UPPER);
  char *path;

  header.size_sectors -= CLUSTER / 512;
  path = scratch_image ("upper", &header, entries, 3 * CLUSTER);
  write_cluster (path, 1);
  write_cluster (path, 2);
  return path;
}

static const char told[] =
  "disk 5 2\n"
  "delta 0 level 0 version 2\n"
  "delta 1 level 1 version 2\n"
  "extent 0+1 data 0@2\n"
  "extent 1+1 data 1@1\n"
  "extent 2+1 unmapped\n"
  "extent 3+0.5 data 0@5\n"
  "extent 3.5+0.5 zero 0@5.5\n"
  "extent 4+1 unmapped\n"
  "range 0 0+1 metadata\n"
  "range 0 1+1 hidden 1\n"
  "range 0 2+1 data 0\n"
  "range 0 3+1 leaked\n"
  "range 0 4+1 free\n"
  "range 0 5+1 data 3\n"
  "usage 0: 3 in 3, 2\n"
  "range 1 0+1 metadata\n"
  "range 1 1+1 data 1\n"
  "range 1 2+1 hidden 5\n"
  "usage 1: 2 in 2, 2\n";
#define NR_TOLD 20u

/* How many calls the lines of TEXT are. */
static unsigned
count_lines (const char *text)
{
  unsigned nr = 0;

  for (; *text; text++)
    nr += *text == '\n';
  return nr;
}

/* Map the chain, up to NR calls. */
static int
map_chain (const struct ploop_map_visitor *visitor, unsigned nr,
           GString *text, GError **error)
{
  g_autofree char *lower = make_lower (), *upper = make_upper ();
  const char *const bases[] = { lower, NULL };
  const struct ploop_map_options options = { .bases = bases };
  struct record record = { text, nr };

  return ploop_map_disk (upper, &options, visitor, &record, error);
}

START_TEST (chain_is_told_in_order)
{
  g_autoptr (GString) text = g_string_new (NULL);

  ck_assert_int_eq (map_chain (&all, UINT_MAX, text, NULL), 0);
  ck_assert_str_eq (text->str, told);
}
END_TEST

START_TEST (visitor_ends_it_at_any_call)
{
  g_autoptr (GString) text = g_string_new (NULL);
  const unsigned nr = (unsigned) _i;

  ck_assert_int_eq (map_chain (&all, nr, text, NULL), 0);
  ck_assert_uint_eq (count_lines (text->str), nr);
  ck_assert (g_str_has_prefix (told, text->str));
}
END_TEST

START_TEST (what_nobody_wants_is_left_out)
{
  const struct ploop_map_visitor visitors[] = {
    { NULL },
    { .extent = take_extent },
    { .usage = take_usage },
    { .delta = take_delta, .range = take_range },
  };
  const unsigned nr_lines[] = { 0, 6, 2, 11 };

  for (size_t i = 0; i < G_N_ELEMENTS (visitors); i++) {
    g_autoptr (GString) text = g_string_new (NULL);

    ck_assert_int_eq (map_chain (&visitors[i], UINT_MAX, text, NULL), 0);
    ck_assert_uint_eq (count_lines (text->str), nr_lines[i]);
  }
}
END_TEST

/* Whichever read fails: what was told before it is true, and if that is not all,
 * there is an error.
 */
START_TEST (file_that_cannot_be_read_is_an_error)
{
  unsigned nr_skipped = 0, nr_errors = 0, nr_half_told = 0;

  do {
    g_autoptr (GString) text = g_string_new (NULL);
    g_autoptr (GError) error = NULL;
    int r;

    fault_reset ();
    fault_inject (FAULT_PREAD, EIO, nr_skipped, 1);
    r = map_chain (&all, UINT_MAX, text, &error);
    ck_assert (g_str_has_prefix (told, text->str));
    ck_assert (r == 0 ? g_str_equal (told, text->str)
                      : strstr (error->message, "Input/output error") != NULL);
    nr_errors += r == -1;
    nr_half_told += r == -1 && text->len > 0;
  } while (fault_calls[FAULT_PREAD] > nr_skipped++);
  fault_reset ();
  /* The headers, and each BAT twice. */
  ck_assert_uint_ge (nr_errors, 6);
  ck_assert_uint_eq (nr_half_told, 2);
}
END_TEST

START_TEST (damaged_image_is_told_nothing_of)
{
  g_autofree char *path = make_upper ();
  struct record record = { g_string_new (NULL), UINT_MAX };
  g_autoptr (GError) error = NULL;

  scratch_write_le32 (path, 1, format_bat_offset (3));
  ck_assert_int_eq (ploop_map_disk (path, NULL, &all, &record, &error), -1);
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT));
  ck_assert_uint_eq (record.text->len, 0);
  g_string_free (record.text, TRUE);
}
END_TEST

/* An entry of an image that was never closed, past the end of its file. */
START_TEST (unfinished_cluster_is_unmapped)
{
  g_autofree char *path = make_upper ();
  g_autoptr (GString) text = g_string_new (NULL);
  const struct ploop_map_visitor visitor = {
    .extent = take_extent,
    .usage = take_usage,
  };
  struct record record = { text, UINT_MAX };

  scratch_write_le32 (path, FORMAT_IN_USE, FORMAT_IN_USE_OFFSET);
  scratch_write_le32 (path, 9, format_bat_offset (0));
  ck_assert_int_eq (ploop_map_disk (path, NULL, &visitor, &record, NULL), 0);
  ck_assert_str_eq (text->str, "extent 0+1 unmapped\nextent 1+1 data 0@1\n"
                               "extent 2+3 unmapped\nusage 0: 2 in 2, 2\n");
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, chain_is_told_in_order);
  tcase_add_loop_test (tcase, visitor_ends_it_at_any_call, 1, NR_TOLD + 1);
  tcase_add_test (tcase, what_nobody_wants_is_left_out);
  tcase_add_test (tcase, file_that_cannot_be_read_is_an_error);
  tcase_add_test (tcase, damaged_image_is_told_nothing_of);
  tcase_add_test (tcase, unfinished_cluster_is_unmapped);
}

int
main (void)
{
  return run_tests ("map-disk", add_tests);
}
