/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/growing.c: whatever is written, in order, to an image whose size comes last is
 * what the image reads as, wherever its table had to grow; it is clean, and has no
 * clusters but those.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "growing.h"
#include "ploop-core.h"
#include "run.h"

#define MAX_WRITES 64u
#define MAX_LENGTH (100u << 10)

/* Data of one write: no byte is 0. */
struct piece {
  uint64_t offset;
  size_t length;
};

static void
fill (uint8_t *buf, const struct piece *piece)
{
  for (size_t i = 0; i < piece->length; i++)
    buf[i] = (uint8_t) (1 + (piece->offset + i * 7) % 255);
}

static int
new_file (char **path)
{
  int fd;

  *path = scratch_path ("growing.hds");
  fd = open (*path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  ck_assert_int_ge (fd, 0);
  return fd;
}

/* Write PIECES to a new image, and end it.  Returns its name (g_free). */
static char *
make_image (uint32_t cluster_size, unsigned version,
            const struct piece *pieces, unsigned nr, uint64_t size)
{
  g_autofree uint8_t *buf = g_malloc (MAX_LENGTH);
  g_autoptr (GError) error = NULL;
  char *path;
  const int fd = new_file (&path);
  struct growing *growing = growing_begin (fd, cluster_size, version);

  for (unsigned i = 0; i < nr; i++) {
    fill (buf, &pieces[i]);
    ck_assert_int_eq (growing_write (growing, buf, pieces[i].length,
                                     pieces[i].offset), 0);
  }
  ck_assert_int_eq (growing_end (growing, size, &error), 0);
  growing_free (growing);
  close (fd);
  return path;
}

/* Everything between FROM and TO that is within 64 KiB of one of them is zeros. */
static void
expect_zeros (ploop_image *image, uint64_t from, uint64_t to)
{
  const size_t length = (size_t) MIN (to - from, 64u << 10);
  g_autofree uint8_t *buf = g_malloc (length + 1);

  for (unsigned end = 0; end < 2 && length > 0; end++) {
    ck_assert_int_eq (ploop_pread (image, buf, length,
                                   end ? to - length : from), 0);
    ck_assert (buf[0] == 0 && memcmp (buf, buf + 1, length - 1) == 0);
  }
}

static void
expect_content (const char *path, const struct piece *pieces, unsigned nr,
                uint64_t size)
{
  const struct ploop_open_options options = { .read_only = true };
  g_autoptr (GError) error = NULL;
  g_autofree uint8_t *buf = g_malloc (MAX_LENGTH);
  g_autofree uint8_t *want = g_malloc (MAX_LENGTH);
  ploop_image *image = ploop_open (path, &options, &error);
  uint64_t position = 0;

  ck_assert_msg (image != NULL, "%s", error ? error->message : "");
  ck_assert_uint_eq (ploop_size (image), size);
  for (unsigned i = 0; i < nr; i++) {
    expect_zeros (image, position, pieces[i].offset);
    ck_assert_int_eq (ploop_pread (image, buf, pieces[i].length,
                                   pieces[i].offset), 0);
    fill (want, &pieces[i]);
    ck_assert_mem_eq (buf, want, pieces[i].length);
    position = pieces[i].offset + pieces[i].length;
  }
  expect_zeros (image, position, size);
  ploop_close (image, NULL);
}

static void
on_finding (void *opaque G_GNUC_UNUSED, enum ploop_finding kind,
            const char *message)
{
  /* That there are holes is only a note. */
  ck_assert_msg (kind == PLOOP_FINDING_NOTE, "%s", message);
}

/* As the kernel wants it, and not larger than its clusters. */
static void
expect_sound (const char *path, uint32_t cluster_size)
{
  g_autoptr (GError) error = NULL;
  struct ploop_check_result result;
  struct ploop_info info;
  uint64_t table;

  ck_assert_int_eq (ploop_check (path, on_finding, NULL, &result, &error), 0);
  ck_assert_int_eq (ploop_get_info (path, &info, &error), 0);
  table = (64 + UINT64_C (4) * info.nr_clusters + cluster_size - 1)
          / cluster_size;
  ck_assert_uint_eq (info.data_offset, table * cluster_size);
  ck_assert_uint_eq (info.file_size,
                     (table + info.nr_allocated) * cluster_size);
  ck_assert_uint_eq (info.flags, info.nr_allocated == 0);
}

/* In order, with gaps that are mostly small, and a few that need much more table. */
static unsigned
choose_pieces (GRand *rand, uint64_t max, struct piece *pieces)
{
  const unsigned nr = (unsigned) g_rand_int_range (rand, 0, MAX_WRITES);
  uint64_t offset = 0;
  unsigned i;

  for (i = 0; i < nr; i++) {
    if (g_rand_int_range (rand, 0, 8) == 0)
      offset += (uint64_t) g_rand_double_range (rand, 0, (double) max / 8);
    else if (g_rand_boolean (rand))
      offset += (uint64_t) g_rand_int_range (rand, 0, 1 << 20);
    if (offset + MAX_LENGTH > max)
      break;
    pieces[i].offset = offset;
    pieces[i].length = (size_t) g_rand_int_range (rand, 1, MAX_LENGTH);
    offset += pieces[i].length;
  }
  return i;
}

START_TEST (what_was_written_in_order_is_the_disk)
{
  const guint32 seed = g_random_int ();
  GRand *rand = g_rand_new_with_seed (seed);

  fprintf (stderr, "seed %u\n", seed);
  for (unsigned run = 0; run < 24; run++) {
    struct piece pieces[MAX_WRITES];
    const uint32_t cluster_size = 32768u << g_rand_int_range (rand, 0, 6);
    const unsigned version = 1 + run % 2;
    const uint64_t max = UINT64_C (1) << g_rand_int_range (rand, 20, 36);
    const unsigned nr = choose_pieces (rand, max, pieces);
    const uint64_t end =
      nr > 0 ? pieces[nr - 1].offset + pieces[nr - 1].length : 1;
    const uint64_t size =
      (end + (run % 3 == 0 ? max : 0) + 511) / 512 * 512;
    g_autofree char *path =
      make_image (cluster_size, version, pieces, nr, size);

    expect_content (path, pieces, nr, size);
    expect_sound (path, cluster_size);
    unlink (path);
  }
  g_rand_free (rand);
}
END_TEST

/* All clusters of a disk whose table needs three clusters more than one. */
START_TEST (clusters_in_the_way_of_the_table_are_moved)
{
  const uint32_t cluster_size = 32768;
  const uint64_t step = 8192;   /* entries of a cluster of table */
  struct piece pieces[6];

  for (unsigned i = 0; i < 5; i++)
    pieces[i] = (struct piece) { i * cluster_size, cluster_size };
  pieces[5] = (struct piece) { 3 * step * cluster_size, 512 };
  for (unsigned version = 1; version <= 2; version++) {
    const uint64_t size = 3 * step * cluster_size + 512;
    g_autofree char *path =
      make_image (cluster_size, version, pieces, 6, size);

    expect_content (path, pieces, 6, size);
    expect_sound (path, cluster_size);
  }
}
END_TEST

START_TEST (what_no_image_can_hold_is_refused)
{
  const uint64_t limit = UINT64_C (2) << 40;
  g_autoptr (GError) error = NULL;
  g_autofree char *path = NULL;
  const int fd = new_file (&path);
  struct growing *growing = growing_begin (fd, 1 << 20, 1);
  uint8_t header[64];

  ck_assert_int_eq (growing_write (growing, "x", 1, limit), -EFBIG);
  ck_assert_int_eq (growing_write (growing, "x", 1, limit - 1), 0);
  /* With its table, that is too large after all. */
  ck_assert_int_eq (growing_end (growing, limit - 512, &error), -1);
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT));
  growing_free (growing);
  ck_assert_int_eq (pread (fd, header, sizeof header, 0), sizeof header);
  for (size_t i = 0; i < sizeof header; i++)
    ck_assert_uint_eq (header[i], 0);
  close (fd);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, what_was_written_in_order_is_the_disk);
  tcase_add_test (tcase, clusters_in_the_way_of_the_table_are_moved);
  tcase_add_test (tcase, what_no_image_can_hold_is_refused);
}

int
main (void)
{
  return run_tests ("growing", add_tests);
}
