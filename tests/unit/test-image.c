/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/image.c and lib/request.c through the public API: opening, requests,
 * closing, and what is left when a call fails.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <sys/stat.h>

#include "faults.h"
#include "ploop-core.h"
#include "run.h"

#define CLUSTER 32768u
#define NR_ENTRIES 2000u
#define NR_THREADS 8

/* What the library said. */
static char *said;

static void
listen_to (void *opaque, enum ploop_log_level level, const char *message)
{
  (void) opaque;
  if (level == PLOOP_LOG_WARNING) {
    g_free (said);
    said = g_strdup (message);
  }
}

static const struct ploop_open_options writing = { .log = listen_to };
static const struct ploop_open_options reading = { .read_only = true,
                                                   .log = listen_to };

/* OPTIONS, and what the tests over NBD take for the plugin. */
static struct ploop_open_options
with_parameters (const struct ploop_open_options *options)
{
  const char *parameters = g_getenv ("PLOOP_PARAMETERS");
  struct ploop_open_options all = *options;

  if (parameters && strstr (parameters, "fast-path=off"))
    all.no_fast_path = true;
  if (parameters && strstr (parameters, "cache=none"))
    all.cache = PLOOP_CACHE_NONE;
  return all;
}

static ploop_image *
open_image (const char *path, const struct ploop_open_options *options)
{
  const struct ploop_open_options all = with_parameters (options);
  g_autoptr (GError) error = NULL;
  ploop_image *image;

  g_clear_pointer (&said, g_free);
  image = ploop_open (path, &all, &error);
  ck_assert_msg (image != NULL, "%s", error ? error->message : "");
  fault_reset ();
  return image;
}

static void
close_image (ploop_image *image)
{
  g_autoptr (GError) error = NULL;

  ck_assert_msg (ploop_close (image, &error) == 0, "%s",
                 error ? error->message : "");
}

static char *
empty_image (unsigned version, uint32_t cluster_sectors)
{
  struct format_header header =
    scratch_header (version, cluster_sectors, NR_ENTRIES);

  header.flags = FORMAT_FLAG_EMPTY;
  return scratch_image ("image", &header, NULL, header.data_sectors * 512);
}

static void
write_at (ploop_image *image, char c, size_t length, uint64_t offset,
          unsigned flags)
{
  g_autofree char *buf = g_malloc (length);

  memset (buf, c, length);
  ck_assert_int_eq (ploop_pwrite (image, buf, length, offset, flags), 0);
}

static void
expect_at (ploop_image *image, char c, size_t length, uint64_t offset)
{
  g_autofree char *buf = g_malloc (length);
  size_t i;

  ck_assert_int_eq (ploop_pread (image, buf, length, offset), 0);
  for (i = 0; i < length && buf[i] == c; i++)
    continue;
  ck_assert_msg (i == length, "byte %zu is %d, not %d", (size_t) offset + i,
                 i < length ? buf[i] : 0, c);
}

START_TEST (what_was_written_is_read_also_after_closing)
{
  static const uint32_t clusters[] = { 64, 63, 1, 504, 2048 };
  const uint32_t sectors = clusters[_i / 2];
  const size_t cluster = sectors * 512;
  g_autofree char *path = empty_image (1 + (unsigned) _i % 2, sectors);
  ploop_image *image = open_image (path, &writing);

  write_at (image, 'a', 3 * cluster + 11, cluster / 2 + 1, 0);
  write_at (image, 'b', 100, 5, 0);
  write_at (image, 'z', 1, ploop_size (image) - 1, PLOOP_FUA);
  for (int again = 0; again < 2; again++) {
    expect_at (image, 0, 5, 0);
    expect_at (image, 'b', 100, 5);
    expect_at (image, 'a', 3 * cluster + 11, cluster / 2 + 1);
    expect_at (image, 0, 2 * cluster, cluster / 2 + 1 + 3 * cluster + 11);
    expect_at (image, 'z', 1, ploop_size (image) - 1);
    close_image (image);
    image = open_image (path, &reading);
    ck_assert_ptr_null (said);
  }
  close_image (image);
}
END_TEST

START_TEST (image_that_was_only_read_is_not_touched)
{
  g_autofree char *path = empty_image (2, 64);
  struct stat before, after;
  ploop_image *image;

  ck_assert_int_eq (stat (path, &before), 0);
  image = open_image (path, &writing);
  expect_at (image, 0, 1000, 1000);
  ck_assert_int_eq (ploop_flush (image), 0);
  ck_assert_int_eq (ploop_zero (image, ploop_size (image), 0, PLOOP_FUA), 0);
  close_image (image);
  ck_assert_int_eq (stat (path, &after), 0);
  ck_assert_int_eq (before.st_mtim.tv_sec, after.st_mtim.tv_sec);
  ck_assert_int_eq (before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
}
END_TEST

START_TEST (ranges_and_flags_are_checked)
{
  g_autofree char *path = empty_image (2, 64);
  ploop_image *image = open_image (path, &writing);
  const uint64_t size = ploop_size (image);
  char c = 0;

  ck_assert_int_eq (ploop_pread (image, &c, 1, size), -EINVAL);
  ck_assert_int_eq (ploop_pread (image, &c, 1, UINT64_MAX), -EINVAL);
  ck_assert_int_eq (ploop_pread (image, &c, SIZE_MAX, 1), -EINVAL);
  ck_assert_int_eq (ploop_pread (image, &c, 0, size), 0);
  ck_assert_int_eq (ploop_pwrite (image, &c, 1, size, 0), -EINVAL);
  ck_assert_int_eq (ploop_pwrite (image, &c, 1, 0, 2), -EINVAL);
  ck_assert_int_eq (ploop_zero (image, UINT64_MAX, 1, 0), -EINVAL);
  ck_assert_int_eq (ploop_pwrite (image, &c, 0, size, 0), 0);
  close_image (image);

  image = open_image (path, &reading);
  ck_assert (ploop_is_read_only (image));
  ck_assert_int_eq (ploop_pwrite (image, &c, 1, 0, 0), -EROFS);
  ck_assert_int_eq (ploop_zero (image, 1, 0, 0), -EROFS);
  ck_assert_int_eq (ploop_flush (image), 0);
  close_image (image);
}
END_TEST

START_TEST (forced_writes_cost_one_sync_or_none)
{
  g_autofree char *path = empty_image (2, 64);
  ploop_image *image = open_image (path, &writing);

  write_at (image, 'a', 512, 0, 0);
  ck_assert_int_eq (ploop_flush (image), 0);
  fault_reset ();
  /* To a mapped cluster with a durable entry: a durable write. */
  write_at (image, 'b', 512, 1024, PLOOP_FUA);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 0);
  /* To a new cluster: one sync for data and entry. */
  write_at (image, 'c', 512, 10 * CLUSTER, PLOOP_FUA);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  ck_assert_int_eq (ploop_flush (image), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  /* To a cluster whose entry is only in the page cache. */
  write_at (image, 'd', 512, 11 * CLUSTER, 0);
  write_at (image, 'e', 512, 11 * CLUSTER, PLOOP_FUA);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 2);
  close_image (image);
}
END_TEST

START_TEST (failed_sync_is_told_to_flushes_forced_writes_and_close)
{
  g_autofree char *path = empty_image (2, 64);
  ploop_image *image = open_image (path, &writing);
  g_autoptr (GError) error = NULL;
  char c = 1;

  write_at (image, 'a', 512, 0, 0);
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (ploop_flush (image), -EIO);
  ck_assert_int_eq (ploop_flush (image), -EIO);
  ck_assert_int_eq (ploop_pwrite (image, &c, 1, 0, PLOOP_FUA), -EIO);
  ck_assert_int_eq (ploop_zero (image, 1, 0, PLOOP_FUA), -EIO);
  ck_assert_int_eq (ploop_close (image, &error), -1);
  ck_assert_ptr_nonnull (strstr (error->message, "stays marked as in use"));
  ck_assert_uint_eq (scratch_read_le32 (path, 44), FORMAT_IN_USE);
  image = open_image (path, &writing);
  ck_assert_ptr_nonnull (strstr (said, "was not closed"));
  close_image (image);
}
END_TEST

/* Each call that a write makes fails once, at each place: the write may fail,
 * but afterwards everything works, and what was there before is there.
 */
START_TEST (write_survives_a_failure_at_every_point)
{
  static const enum fault_call calls[] = { FAULT_PWRITE, FAULT_FALLOCATE,
                                           FAULT_FTRUNCATE };
  const enum fault_call call = calls[_i];

  for (unsigned point = 0; point < 8; point++) {
    g_autofree char *path = empty_image (2, 64);
    ploop_image *image = open_image (path, &writing);
    g_autofree char *buf = g_malloc0 (2 * CLUSTER);
    struct ploop_check_result result;
    bool failed;

    write_at (image, 'k', 100, CLUSTER - 50, 0);
    fault_reset ();
    fault_inject (call, ENOSPC, point, 1);
    failed =
      ploop_pwrite (image, buf, 2 * CLUSTER, 10 * CLUSTER - 7, 0) != 0;
    ck_assert (!failed || fault_calls[call] > point);
    fault_reset ();
    expect_at (image, 'k', 100, CLUSTER - 50);
    expect_at (image, 0, 3 * CLUSTER, 9 * CLUSTER);
    write_at (image, 'n', 2 * CLUSTER, 10 * CLUSTER - 7, 0);
    close_image (image);

    image = open_image (path, &reading);
    expect_at (image, 'k', 100, CLUSTER - 50);
    expect_at (image, 'n', 2 * CLUSTER, 10 * CLUSTER - 7);
    close_image (image);
    ck_assert_int_eq (ploop_check (path, NULL, NULL, &result, NULL), 0);
    ck_assert_uint_eq (result.nr_errors, 0);
  }
}
END_TEST

START_TEST (marked_image_is_opened_and_unfinished_entries_are_cleared)
{
  struct format_header header = scratch_header (2, 64, 100);
  uint32_t entries[100] = { [0] = 1, [5] = 2, [6] = 7 };
  g_autofree char *path = NULL;
  ploop_image *image;

  header.in_use = FORMAT_IN_USE;
  path = scratch_image ("marked", &header, entries, 2 * CLUSTER);
  image = open_image (path, &reading);
  ck_assert_ptr_nonnull (strstr (said, " 2 entries"));
  expect_at (image, 0, CLUSTER, 5 * CLUSTER);
  close_image (image);
  ck_assert_uint_eq (scratch_read_le32 (path, format_bat_offset (5)), 2);

  image = open_image (path, &writing);
  /* Host cluster 2 goes to somebody else now: nobody else may name it. */
  write_at (image, 'x', CLUSTER, 50 * CLUSTER, 0);
  expect_at (image, 0, CLUSTER, 5 * CLUSTER);
  close_image (image);
  ck_assert_uint_eq (scratch_read_le32 (path, format_bat_offset (50)), 2);
  ck_assert_uint_eq (scratch_read_le32 (path, format_bat_offset (5)), 0);
  ck_assert_uint_eq (scratch_read_le32 (path, format_bat_offset (6)), 0);
}
END_TEST

/* A copy that was cut short is not a crash: nearly all of its clusters are
 * missing, and clearing their entries would lose what a better copy may have.
 */
START_TEST (marked_image_that_was_cut_off_is_refused)
{
  struct format_header header = scratch_header (2, 2048, 2000);
  g_autofree uint32_t *entries = g_new0 (uint32_t, 2000);
  g_autofree char *path = NULL;
  g_autoptr (GError) error = NULL;

  for (uint32_t i = 0; i < 2000; i++)
    entries[i] = i + 1;
  header.in_use = FORMAT_IN_USE;
  path = scratch_image ("cut", &header, entries, 3 << 20);
  ck_assert_ptr_null (ploop_open (path, &writing, &error));
  ck_assert_ptr_nonnull (strstr (error->message, "past the end of the file"));
}
END_TEST

/* A server was killed after it had answered: its client's flush comes to us. */
START_TEST (first_flush_of_a_marked_image_syncs)
{
  struct format_header header = scratch_header (2, 64, 100);
  g_autofree char *path = NULL;
  ploop_image *image;

  header.in_use = FORMAT_IN_USE;
  path = scratch_image ("killed", &header, NULL, CLUSTER);
  image = open_image (path, &writing);
  ck_assert_int_eq (ploop_flush (image), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  ck_assert_int_eq (ploop_flush (image), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  close_image (image);
}
END_TEST

/* Else a crash would make it look like an interrupted conversion. */
START_TEST (conversion_flag_of_a_closed_image_goes_with_the_mark)
{
  struct format_header header = scratch_header (2, 64, 100);
  g_autofree char *path = NULL;
  ploop_image *image;

  header.flags = FORMAT_FLAG_CONVERSION;
  path = scratch_image ("converted", &header, NULL, CLUSTER);
  image = open_image (path, &writing);
  write_at (image, 'a', 1, 0, 0);
  ck_assert_uint_eq (scratch_read_le32 (path, 52), 0);
  close_image (image);
}
END_TEST

/* What a forced write could not make durable is seen by others; a flush must
 * not say that it is on the disk without having asked.
 */
START_TEST (failed_forced_write_is_not_forgotten)
{
  g_autofree char *path = empty_image (2, 64);
  ploop_image *image = open_image (path, &writing);
  char c = 1;

  write_at (image, 'a', 512, 0, PLOOP_FUA);
  fault_reset ();
  fault_inject (FAULT_PWRITE, EIO, 0, 1);
  ck_assert_int_eq (ploop_pwrite (image, &c, 1, 0, PLOOP_FUA), -EIO);
  ck_assert_int_eq (ploop_flush (image), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 1);
  close_image (image);
}
END_TEST

static const struct {
  const char *words;
  uint32_t in_use, flags, entry, field_offset, field;
} damages[] = {
  { "BAT entry 3 is 90 ", FORMAT_CLOSED, 0, 90, 0, 0 },
  { "BAT entry 3 is 4294967295 ", FORMAT_IN_USE, 0, UINT32_MAX, 0, 0 },
  { "overlaps the host cluster of BAT entry 0", FORMAT_IN_USE, 0, 1, 0, 0 },
  { "version conversion was interrupted", FORMAT_IN_USE, 2, 0, 0, 0 },
  { "cluster size is 0", FORMAT_CLOSED, 0, 0, 28, 0 },
  { "number of BAT entries is 4294967295", FORMAT_CLOSED, 0, 0, 32,
    UINT32_MAX },
  { "first data offset is 4294967295", FORMAT_CLOSED, 0, 0, 48, UINT32_MAX },
};

START_TEST (damaged_image_is_refused_and_not_touched)
{
  struct format_header header = scratch_header (2, 64, 100);
  uint32_t entries[100] = { [0] = 1, [3] = damages[_i].entry };
  g_autofree char *path = NULL, *before = NULL, *after = NULL;
  g_autoptr (GError) error = NULL;
  gsize length;

  header.in_use = damages[_i].in_use;
  header.flags = damages[_i].flags;
  path = scratch_image ("damaged", &header, entries, 4 * CLUSTER);
  if (damages[_i].field_offset != 0)
    scratch_write_le32 (path, damages[_i].field, damages[_i].field_offset);
  ck_assert (g_file_get_contents (path, &before, &length, NULL));
  ck_assert_ptr_null (ploop_open (path, &writing, &error));
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT));
  ck_assert_msg (strstr (error->message, damages[_i].words) != NULL, "%s",
                 error->message);
  ck_assert_ptr_nonnull (strstr (error->message, path));
  ck_assert (g_file_get_contents (path, &after, &length, NULL));
  ck_assert (memcmp (before, after, length) == 0);
}
END_TEST

struct flushed {
  sem_t come;
  int result;
};

static void
take_flush (ploop_request *request, int result)
{
  struct flushed *flushed = request->opaque;

  flushed->result = result;
  sem_post (&flushed->come);
}

START_TEST (disk_that_is_only_read_flushes_at_once)
{
  g_autofree char *path = empty_image (2, CLUSTER / 512);
  struct flushed flushed = { .result = 1 };
  ploop_request request = { .operation = PLOOP_FLUSH, .complete = take_flush,
                            .opaque = &flushed };
  ploop_image *image = open_image (path, &reading);

  ck_assert_int_eq (ploop_flush (image), 0);
  ck_assert_int_eq (sem_init (&flushed.come, 0, 0), 0);
  ck_assert_int_eq (ploop_submit (image, &request), 0);
  while (sem_wait (&flushed.come) == -1)
    continue;
  ck_assert_int_eq (flushed.result, 0);
  close_image (image);
}
END_TEST

START_TEST (image_with_bitmaps_is_opened_read_only)
{
  struct format_header header = scratch_header (2, 64, 100);
  g_autofree char *path = NULL, *stale = NULL;
  ploop_image *image;

  header.in_use = FORMAT_CLOSED_EXTENSION;
  header.extension_sectors = 64;
  path = scratch_image ("bitmaps", &header, NULL, 2 * CLUSTER);
  image = open_image (path, &writing);
  ck_assert (ploop_is_read_only (image));
  ck_assert_ptr_nonnull (strstr (said, "changed-block"));
  close_image (image);

  header.in_use = FORMAT_IN_USE;
  stale = scratch_image ("stale", &header, NULL, 2 * CLUSTER);
  image = open_image (stale, &writing);
  ck_assert (!ploop_is_read_only (image));
  close_image (image);
}
END_TEST

/* ---- Threads ----------------------------------------------------------- */

struct writer {
  ploop_image *image;
  unsigned number;
};

/* All write to the one cluster that still has room. */
static void *
write_last_cluster (void *opaque)
{
  const struct writer *writer = opaque;
  const char c = 'a';

  return ploop_pwrite (writer->image, &c, 1, 7 * 512 + writer->number, 0) == 0
           ? NULL : "write failed";
}

/* Losing the race for the last cluster is not a full disk. */
START_TEST (threads_share_the_last_cluster_that_fits)
{
  g_autofree char *path = empty_image (2, 1);
  ploop_image *image = open_image (path, &writing);
  struct writer writers[NR_THREADS];
  pthread_t threads[NR_THREADS];

  /* Use up what the first extension brought but for one cluster, and let no
   * other succeed.
   */
  write_at (image, 'x', 7 * 512, 0, 0);
  write_at (image, 'x', (NR_ENTRIES - 8) * 512, 8 * 512, 0);
  fault_reset ();
  fault_inject (FAULT_FALLOCATE, ENOSPC, 0, UINT32_MAX);
  for (unsigned i = 0; i < NR_THREADS; i++) {
    writers[i] = (struct writer) { image, i };
    ck_assert_int_eq (
      pthread_create (&threads[i], NULL, write_last_cluster, &writers[i]), 0);
  }
  for (unsigned i = 0; i < NR_THREADS; i++) {
    void *wrong;

    pthread_join (threads[i], &wrong);
    ck_assert_msg (wrong == NULL, "%s", (const char *) wrong);
  }
  fault_reset ();
  close_image (image);
}
END_TEST

/* Each thread owns every eighth sector: all clusters are new to all. */
static void *
write_own_sectors (void *opaque)
{
  const struct writer *writer = opaque;
  uint8_t buf[512];

  memset (buf, 'A' + (int) writer->number, sizeof buf);
  for (uint64_t sector = writer->number; sector < 100 * 64;
       sector += NR_THREADS)
    if (ploop_pwrite (writer->image, buf, sizeof buf, sector * 512,
                      sector % 500 == 0 ? PLOOP_FUA : 0) != 0)
      return "write failed";
  return NULL;
}

START_TEST (threads_write_the_same_new_clusters)
{
  g_autofree char *path = empty_image (2, 64);
  ploop_image *image = open_image (path, &writing);
  struct writer writers[NR_THREADS];
  pthread_t threads[NR_THREADS];
  struct ploop_check_result result;

  for (unsigned i = 0; i < NR_THREADS; i++) {
    writers[i] = (struct writer) { image, i };
    ck_assert_int_eq (
      pthread_create (&threads[i], NULL, write_own_sectors, &writers[i]), 0);
  }
  for (unsigned i = 0; i < NR_THREADS; i++) {
    void *wrong;

    pthread_join (threads[i], &wrong);
    ck_assert_msg (wrong == NULL, "%s", (const char *) wrong);
  }
  close_image (image);

  image = open_image (path, &reading);
  for (uint64_t sector = 0; sector < 100 * 64; sector++)
    expect_at (image, (char) ('A' + sector % NR_THREADS), 512, sector * 512);
  close_image (image);
  ck_assert_int_eq (ploop_check (path, NULL, NULL, &result, NULL), 0);
  ck_assert_uint_eq (result.nr_errors, 0);
  ck_assert_uint_eq (result.nr_allocated, 100);
  ck_assert_uint_le (result.nr_leaked_clusters, NR_THREADS);
}
END_TEST

static struct ploop_state
state_of (const ploop_image *image)
{
  struct ploop_state state;

  ck_assert_int_eq (ploop_get_state (image, &state), 0);
  return state;
}

static uint64_t
nr_failed (const ploop_image *image)
{
  struct ploop_statistics statistics;

  ploop_get_statistics (image, &statistics);
  return statistics.nr_failed;
}

START_TEST (state_and_failures_are_told)
{
  g_autofree char *path = empty_image (2, 64);
  ploop_image *image = open_image (path, &writing);
  struct ploop_state state = state_of (image);

  ck_assert_uint_eq (state.nr_clusters, NR_ENTRIES);
  ck_assert_uint_eq (state.nr_allocated, 0);
  ck_assert_uint_eq (state.nr_free, 0);
  write_at (image, 'a', 10 * CLUSTER, 0, PLOOP_FUA);
  ck_assert_int_eq (ploop_trim (image, 3 * CLUSTER, CLUSTER, 0), 0);
  state = state_of (image);
  ck_assert_uint_eq (state.nr_allocated, 7);
  ck_assert_uint_ge (state.nr_free, 3);
  ck_assert_uint_ge (state.file_size, 10 * CLUSTER);
  ck_assert_uint_gt (state.file_space, 0);
  ck_assert (!state.sync_failed);
  ck_assert_uint_eq (nr_failed (image), 0);
  /* Stopped: what the file has is what closing leaves. */
  ck_assert_int_eq (ploop_stop (image, NULL), 0);
  state = state_of (image);
  ck_assert_uint_eq (state.nr_allocated, 7);
  /* The three holes in the middle; the tail is cut off. */
  ck_assert_uint_eq (state.nr_free, 3);
  close_image (image);

  image = open_image (path, &reading);
  state = state_of (image);
  ck_assert_uint_eq (state.nr_allocated, 7);
  ck_assert_uint_eq (state.nr_free, 0);
  close_image (image);
}
END_TEST

START_TEST (failures_are_counted_and_a_failed_sync_is_remembered)
{
  g_autofree char *path = empty_image (2, 64);
  ploop_image *image = open_image (path, &writing);

  write_at (image, 'a', 512, 0, 0);
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (ploop_flush (image), -EIO);
  ck_assert_uint_eq (nr_failed (image), 1);
  ck_assert (state_of (image).sync_failed);
  ck_assert_int_eq (ploop_flush (image), -EIO);
  ck_assert_uint_eq (nr_failed (image), 2);
  ck_assert_int_eq (ploop_close (image, NULL), -1);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_loop_test (tcase, what_was_written_is_read_also_after_closing, 0,
                       10);
  tcase_add_test (tcase, image_that_was_only_read_is_not_touched);
  tcase_add_test (tcase, ranges_and_flags_are_checked);
  tcase_add_test (tcase, forced_writes_cost_one_sync_or_none);
  tcase_add_test (tcase,
                  failed_sync_is_told_to_flushes_forced_writes_and_close);
  tcase_add_loop_test (tcase, write_survives_a_failure_at_every_point, 0, 3);
  tcase_add_test (tcase,
                  marked_image_is_opened_and_unfinished_entries_are_cleared);
  tcase_add_loop_test (tcase, damaged_image_is_refused_and_not_touched, 0,
                       (int) G_N_ELEMENTS (damages));
  tcase_add_test (tcase, disk_that_is_only_read_flushes_at_once);
  tcase_add_test (tcase, image_with_bitmaps_is_opened_read_only);
  tcase_add_test (tcase, marked_image_that_was_cut_off_is_refused);
  tcase_add_test (tcase, first_flush_of_a_marked_image_syncs);
  tcase_add_test (tcase,
                  conversion_flag_of_a_closed_image_goes_with_the_mark);
  tcase_add_test (tcase, failed_forced_write_is_not_forgotten);
  tcase_add_loop_test (tcase, threads_share_the_last_cluster_that_fits, 0,
                       20);
  tcase_add_loop_test (tcase, threads_write_the_same_new_clusters, 0, 5);
  tcase_add_test (tcase, state_and_failures_are_told);
  tcase_add_test (tcase, failures_are_counted_and_a_failed_sync_is_remembered);
}

int
main (void)
{
  return run_tests ("image", add_tests);
}
