/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Every system call that serves requests fails once, at every point where it
 * can: with EIO, with ENOSPC, interrupted, and, for reads and writes, short.
 *
 * One script of requests runs again and again; the first time the first call of
 * a kind fails, then the second, until the script ends without having come to
 * it.  After each fault:
 *
 *   - the request that met it returns its errno, or succeeds if it was one to
 *     be tried again; no other request fails, but for flushes and forced writes
 *     after a failed sync, which all do;
 *   - each sector reads as its old or its new content;
 *   - closed and opened again, the image holds what was answered, no BAT entry
 *     is wrong, and no host cluster is lost but those that were trimmed.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "faults.h"
#include "format.h"
#include "ploop-core.h"
#include "run.h"

#define CLUSTER 32768u
#define SECTOR 512u
#define NR_CLUSTERS 400u
#define CLUSTER_SECTORS (CLUSTER / SECTOR)
#define NR_SECTORS (NR_CLUSTERS * CLUSTER_SECTORS)
/* The requests of the script go to so many clusters. */
#define NR_USED 45u
#define NR_TRIMMED 13u

struct way {
  const char *name;
  unsigned nr_filled;           /* clusters in the file before the script */
  struct ploop_open_options options;
};

/* What goes past the page cache begins 8 MiB into the file. */
static const struct way ways[] = {
  { "fast path", 4, { .prealloc = 6 * CLUSTER } },
  { "runners", 4, { .prealloc = 6 * CLUSTER, .no_fast_path = true } },
  { "direct", 300, { .prealloc = 6 * CLUSTER, .cache = PLOOP_CACHE_NONE } },
  { "truncate, put off", 4,
    { .prealloc = 6 * CLUSTER, .prealloc_mode = PLOOP_PREALLOC_TRUNCATE,
      .writeback_delay = 1000 } },
  { "writethrough", 4,
    { .prealloc = 6 * CLUSTER, .cache = PLOOP_CACHE_WRITETHROUGH } },
};

/* What a sector may hold, one byte all over, as bits; several after a request
 * that failed.
 */
struct bits {
  uint64_t words[2];
};

struct model {
  struct bits may_hold[NR_SECTORS];
};

static void
add (struct bits *bits, uint8_t value)
{
  bits->words[value / 64] |= UINT64_C (1) << value % 64;
}

static bool
has (const struct bits *bits, uint8_t value)
{
  return bits->words[value / 64] >> value % 64 & 1;
}

struct script {
  ploop_image *image;
  struct model *model;
  unsigned nr_filled;
  enum fault_call call;
  int errnum;
  bool sync_failed;             /* a flush failed: they all do from now on */
  unsigned nr_failed;           /* requests */
};

/* The first sector of the script's clusters. */
#define AT(cluster) \
  ((uint64_t) ((int64_t) script->nr_filled + (cluster)) * CLUSTER_SECTORS)

/* ---- Requests and what may come of them -------------------------------- */

/* The fault may have been met, and hit something that is not tried again. */
static bool
may_fail (const struct script *script)
{
  return script->errnum != 0 && script->errnum != EINTR
         && fault_calls[script->call] > 0;
}

static void
expect (struct script *script, int r, const char *what)
{
  if (r == 0)
    return;
  ck_assert_msg (may_fail (script), "%s failed with %d for no reason", what, r);
  ck_assert_int_eq (r, -script->errnum);
  /* After a failed sync, what needs another one fails too. */
  ck_assert_msg (script->nr_failed++ == 0 || script->call == FAULT_FDATASYNC,
                 "%s failed after the fault", what);
}

static void
set (struct script *script, uint64_t sector, uint64_t nr, uint8_t value, int r)
{
  for (uint64_t i = sector; i < sector + nr; i++) {
    if (r == 0)
      script->model->may_hold[i] = (struct bits) { { 0, 0 } };
    add (&script->model->may_hold[i], value);
  }
}

static void
write_at (struct script *script, uint64_t sector, uint64_t nr, uint8_t value,
          unsigned flags)
{
  g_autofree uint8_t *buf = g_malloc (nr * SECTOR);
  int r;

  memset (buf, value, nr * SECTOR);
  r = ploop_pwrite (script->image, buf, nr * SECTOR, sector * SECTOR, flags);
  set (script, sector, nr, value, r);
  expect (script, r, "write");
}

static void
zero_at (struct script *script, uint64_t sector, uint64_t nr, unsigned flags)
{
  int r = ploop_zero (script->image, nr * SECTOR, sector * SECTOR, flags);

  set (script, sector, nr, 0, r);
  expect (script, r, "zero");
}

static void
trim_at (struct script *script, unsigned cluster, uint64_t nr)
{
  int r = ploop_trim (script->image, nr * CLUSTER, AT (cluster) * SECTOR, 0);

  /* This library makes it zeros, whole clusters as they are. */
  set (script, AT (cluster), nr * CLUSTER_SECTORS, 0, r);
  expect (script, r, "trim");
}

static void
flush (struct script *script)
{
  int r = ploop_flush (script->image);

  ck_assert_msg (!script->sync_failed || r == -EIO,
                 "a flush returned %d after one whose sync failed", r);
  expect (script, r, "flush");
  if (r != 0 && script->call == FAULT_FDATASYNC)
    script->sync_failed = true;
}

/* No ck_assert here: each writes to a pipe. */
static void
check_sector (struct model *model, uint64_t sector, const uint8_t *bytes)
{
  struct bits *may_hold = &model->may_hold[sector];

  if (memcmp (bytes, bytes + 1, SECTOR - 1) != 0)
    ck_abort_msg ("sector %" G_GUINT64_FORMAT " is torn", sector);
  if (bytes[0] >= 128 || !has (may_hold, bytes[0]))
    ck_abort_msg ("sector %" G_GUINT64_FORMAT " holds %u, which it must not",
                  sector, bytes[0]);
  *may_hold = (struct bits) { { 0, 0 } };
  add (may_hold, bytes[0]);
}

/* Only where the script has been. */
static void
read_all (struct script *script)
{
  const uint64_t first = AT (-2);
  const uint64_t nr = (NR_USED + 2) * CLUSTER_SECTORS;
  g_autofree uint8_t *buf = g_malloc (nr * SECTOR);
  int r = ploop_pread (script->image, buf, nr * SECTOR, first * SECTOR);

  expect (script, r, "read");
  for (uint64_t i = 0; r == 0 && i < nr; i++)
    check_sector (script->model, first + i, buf + i * SECTOR);
}

/* ---- The script -------------------------------------------------------- */

static void
run_script (struct script *script)
{
  write_at (script, AT (0) + 8, 8, 1, 0);
  write_at (script, AT (1) + 3, 2 * CLUSTER_SECTORS, 2, 0);
  write_at (script, AT (0) + 12, 5, 3, 0);
  write_at (script, AT (0) + 40, 8, 4, PLOOP_FUA);
  flush (script);
  write_at (script, AT (0) + 40, 8, 5, PLOOP_FUA);
  write_at (script, AT (5), 8, 6, PLOOP_FUA);
  /* What is there from before. */
  write_at (script, AT (-1) + 8, 64, 7, 0);
  zero_at (script, AT (1) + 10, 30, 0);
  read_all (script);
  trim_at (script, 2, 1);
  flush (script);
  write_at (script, AT (2), 16, 8, 0);
  for (unsigned i = 10; i < 30; i++)
    write_at (script, AT (i) + i, 8, (uint8_t) i, i % 5 == 0 ? PLOOP_FUA : 0);
  trim_at (script, 8, 12);
  flush (script);
  flush (script);
  for (unsigned i = 8; i < 20; i++)
    write_at (script, AT (i), CLUSTER_SECTORS, (uint8_t) (i + 50), 0);
  flush (script);
  zero_at (script, AT (10), 2 * CLUSTER_SECTORS, PLOOP_UNMAP);
  zero_at (script, AT (13) + 9, CLUSTER_SECTORS, PLOOP_UNMAP | PLOOP_FUA);
  read_all (script);
}

/* Fill the first clusters of a new image; the script touches the last two. */
static char *
make_template (const struct way *way, struct model *model)
{
  const struct format_header header = scratch_header (2, 64, NR_CLUSTERS);
  const size_t length = way->nr_filled * CLUSTER;
  g_autofree uint8_t *buf = g_malloc (length);
  char *path = scratch_image ("template", &header, NULL, CLUSTER);
  ploop_image *image = ploop_open (path, NULL, NULL);

  memset (model, 0, sizeof *model);
  for (unsigned i = 0; i < NR_SECTORS; i++)
    add (&model->may_hold[i], i < way->nr_filled * CLUSTER_SECTORS ? 99 : 0);
  memset (buf, 99, length);
  ck_assert_int_eq (ploop_pwrite (image, buf, length, 0, 0), 0);
  ck_assert_int_eq (ploop_close (image, NULL), 0);
  return path;
}

static char *
copy_of (const char *template)
{
  char *path = scratch_path ("faults");
  g_autofree char *bytes = NULL;
  gsize length;

  ck_assert (g_file_get_contents (template, &bytes, &length, NULL));
  ck_assert (g_file_set_contents_full (path, bytes, (gssize) length,
                                       G_FILE_SET_CONTENTS_NONE, 0600, NULL));
  return path;
}

static void
report (void *opaque, enum ploop_finding finding, const char *message)
{
  (void) opaque;
  if (finding == PLOOP_FINDING_ERROR)
    printf ("%s\n", message);
}

/* CLOSED: the image ended in the orderly way, so nothing may be left over. */
static void
check_file (struct script *script, const char *path, bool closed)
{
  struct ploop_check_result result;

  fault_reset ();
  ck_assert_int_eq (ploop_check (path, report, NULL, &result, NULL), 0);
  ck_assert_uint_eq (result.nr_errors, 0);
  if (closed)
    ck_assert_uint_le (result.nr_leaked_clusters, NR_TRIMMED);
  script->image = ploop_open (path, NULL, NULL);
  ck_assert_ptr_nonnull (script->image);
  script->errnum = 0;
  script->sync_failed = false;
  read_all (script);
  /* And it serves on. */
  write_at (script, AT (40), 70, 77, PLOOP_FUA);
  flush (script);
  read_all (script);
  ck_assert_int_eq (ploop_close (script->image, NULL), 0);
}

/* Run the script with a fault at call number SKIP.  Returns false when it did
 * not come to that.
 */
static bool
run_with_fault (const struct way *way, const char *template,
                const struct model *filled, enum fault_call call, int errnum,
                unsigned skip)
{
  g_autofree char *path = copy_of (template);
  g_autofree struct model *model = g_memdup2 (filled, sizeof *filled);
  struct script script = {
    .model = model,
    .nr_filled = way->nr_filled,
    .call = call,
    .errnum = errnum,
  };
  bool met;
  int r;

  script.image = ploop_open (path, &way->options, NULL);
  ck_assert_ptr_nonnull (script.image);
  fault_reset ();
  fault_inject (call, errnum, skip, 1);
  run_script (&script);
  r = ploop_close (script.image, NULL);
  met = fault_calls[call] > skip;
  ck_assert_msg (r == 0 || (met && errnum != 0 && errnum != EINTR),
                 "closing failed for no reason");
  ck_assert_msg (r != 0 || !script.sync_failed,
                 "closing succeeds after a failed sync");
  check_file (&script, path, r == 0);
  unlink (path);
  return met;
}

/* Every point of what is not tried again, and one of three of the rest; more or
 * less with PLOOP_TEST_SCALE.
 */
static unsigned
scaled_stride (int errnum)
{
  const char *scale = g_getenv ("PLOOP_TEST_SCALE");
  const unsigned percent = scale ? (unsigned) atoi (scale) : 100;
  const unsigned stride = (errnum == EIO ? 100 : 300) / MAX (percent, 1);

  return MAX (stride, 1);
}

static void
run_all (const struct way *way, enum fault_call call, int errnum,
         const char *what)
{
  static struct model filled;
  g_autofree char *template = make_template (way, &filled);
  const unsigned stride = scaled_stride (errnum);
  unsigned skip = (unsigned) g_random_int_range (0, (gint32) stride);
  unsigned nr = 0;

  for (; run_with_fault (way, template, &filled, call, errnum, skip);
       skip += stride)
    nr++;
  printf ("%s: %s at %u points\n", way->name, what, nr);
  ck_assert (nr > 0 || stride > 1);
}

/* ---- The tests, each for every way ------------------------------------- */

#define FAULT_TEST(name, call, errnum) \
  START_TEST (name) \
  { \
    run_all (&ways[_i], call, errnum, #name); \
  } \
  END_TEST

FAULT_TEST (reads_fail, FAULT_PREAD, EIO)
FAULT_TEST (reads_are_interrupted, FAULT_PREAD, EINTR)
FAULT_TEST (reads_are_short, FAULT_PREAD, 0)
FAULT_TEST (writes_fail, FAULT_PWRITE, EIO)
FAULT_TEST (writes_find_no_space, FAULT_PWRITE, ENOSPC)
FAULT_TEST (writes_are_interrupted, FAULT_PWRITE, EINTR)
FAULT_TEST (writes_are_short, FAULT_PWRITE, 0)
FAULT_TEST (syncs_fail, FAULT_FDATASYNC, EIO)
FAULT_TEST (syncs_are_interrupted, FAULT_FDATASYNC, EINTR)
FAULT_TEST (truncations_fail, FAULT_FTRUNCATE, EIO)
FAULT_TEST (truncations_find_no_space, FAULT_FTRUNCATE, ENOSPC)
FAULT_TEST (truncations_are_interrupted, FAULT_FTRUNCATE, EINTR)
FAULT_TEST (allocations_fail, FAULT_FALLOCATE, EIO)
FAULT_TEST (allocations_find_no_space, FAULT_FALLOCATE, ENOSPC)
FAULT_TEST (allocations_are_interrupted, FAULT_FALLOCATE, EINTR)

static void
add_tests (TCase *tcase)
{
  const int end = G_N_ELEMENTS (ways);

  tcase_add_loop_test (tcase, reads_fail, 0, end);
  tcase_add_loop_test (tcase, reads_are_interrupted, 0, end);
  tcase_add_loop_test (tcase, reads_are_short, 0, end);
  tcase_add_loop_test (tcase, writes_fail, 0, end);
  tcase_add_loop_test (tcase, writes_find_no_space, 0, end);
  tcase_add_loop_test (tcase, writes_are_interrupted, 0, end);
  tcase_add_loop_test (tcase, writes_are_short, 0, end);
  tcase_add_loop_test (tcase, syncs_fail, 0, end);
  tcase_add_loop_test (tcase, syncs_are_interrupted, 0, end);
  tcase_add_loop_test (tcase, truncations_fail, 0, end);
  tcase_add_loop_test (tcase, truncations_find_no_space, 0, end);
  tcase_add_loop_test (tcase, truncations_are_interrupted, 0, end);
  tcase_add_loop_test (tcase, allocations_fail, 0, end);
  tcase_add_loop_test (tcase, allocations_find_no_space, 0, end);
  tcase_add_loop_test (tcase, allocations_are_interrupted, 0, end);
}

int
main (void)
{
  fault_no_syncs = true;
  return run_tests ("faults", add_tests);
}
