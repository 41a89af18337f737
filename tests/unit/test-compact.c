/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/compact.c: the guest's disk stays what it is, whatever fails and whenever
 * it is interrupted; what is moved is durable before its old place is given up;
 * and the file is as small as its clusters in the end.
 *
 * An image here is a drawing, a character a cell of the file: a letter is a
 * guest cluster, a the first; a dot is free and a hole, # is free and holds
 * garbage.  Upper-case letters are clusters whose second half is a hole.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "delta.h"
#include "faults.h"
#include "ploop-core.h"
#include "run.h"

#define NR_ENTRIES 8u

struct shape {
  unsigned version;
  uint32_t cluster_sectors;
  bool packed;                  /* v1: the data begins right behind the BAT */
};

static const struct shape shapes[] = {
  { 1, 64, false }, { 2, 64, false },  { 1, 63, true }, { 2, 63, false },
  { 1, 504, true }, { 2, 504, false }, { 1, 1, true },  { 2, 4096, false },
};

struct scene {
  char *path;
  struct format_header header;
  uint64_t cluster_size, data_start;
  uint8_t *disk;                /* what the guest reads */
};

/* ---- Images ------------------------------------------------------------ */

/* No two sectors of the disk hold the same, and none holds zeros. */
static void
fill_cluster (uint8_t *bytes, unsigned index, uint64_t length)
{
  for (uint64_t i = 0; i < length; i++)
    bytes[i] = (uint8_t) (1 + (index * 7 + i / 512 * 3 + i % 13) % 255);
}

static void
put_cluster (const struct scene *scene, char what, uint64_t offset)
{
  const bool half = g_ascii_isupper (what);
  const unsigned index = (unsigned) (g_ascii_tolower (what) - 'a');
  const uint64_t length =
    half ? scene->cluster_size / 1024 * 512 : scene->cluster_size;
  uint8_t *bytes = scene->disk + index * scene->cluster_size;

  fill_cluster (bytes, index, length);
  if (length > 0)
    scratch_write (scene->path, bytes, length, offset);
}

static void
put_garbage (const struct scene *scene, uint64_t offset)
{
  g_autofree uint8_t *bytes = g_malloc (scene->cluster_size);

  memset (bytes, 0xee, scene->cluster_size);
  scratch_write (scene->path, bytes, scene->cluster_size, offset);
}

/* Draw CELLS, with SHIFT bytes between the first and where it would be. */
static struct scene
draw_shifted (const struct shape *shape, const char *cells, uint64_t shift)
{
  struct scene scene = {
    .header =
      scratch_header (shape->version, shape->cluster_sectors, NR_ENTRIES),
    .cluster_size = shape->cluster_sectors * 512,
  };
  uint32_t entries[NR_ENTRIES] = { 0 };
  const uint64_t unit = shape->version == 1 ? 512 : scene.cluster_size;

  if (shape->packed)
    scene.header.data_sectors = 0;
  scene.data_start =
    shape->packed ? 512 : (uint64_t) scene.header.data_sectors * 512;
  scene.disk = g_malloc0 (NR_ENTRIES * scene.cluster_size);
  for (unsigned i = 0; cells[i]; i++)
    if (g_ascii_isalpha (cells[i]))
      entries[g_ascii_tolower (cells[i]) - 'a'] = (uint32_t) (
        (scene.data_start + shift + i * scene.cluster_size) / unit);
  scene.path = scratch_image (
    "compact", &scene.header, entries,
    scene.data_start + shift + strlen (cells) * scene.cluster_size);
  for (unsigned i = 0; cells[i]; i++) {
    const uint64_t offset = scene.data_start + shift + i * scene.cluster_size;

    if (g_ascii_isalpha (cells[i]))
      put_cluster (&scene, cells[i], offset);
    else if (cells[i] == '#')
      put_garbage (&scene, offset);
  }
  return scene;
}

static struct scene
draw (const struct shape *shape, const char *cells)
{
  return draw_shifted (shape, cells, 0);
}

static void
clear_scene (struct scene *scene)
{
  unlink (scene->path);
  g_free (scene->path);
  g_free (scene->disk);
}

/* ---- What must hold ---------------------------------------------------- */

static void
assert_disk (const struct scene *scene)
{
  const struct ploop_open_options options = { .read_only = true };
  const size_t size = NR_ENTRIES * scene->cluster_size;
  g_autofree uint8_t *bytes = g_malloc (size);
  g_autoptr (GError) error = NULL;
  ploop_image *image = ploop_open (scene->path, &options, &error);

  ck_assert_msg (image, "%s", error ? error->message : "");
  ck_assert_int_eq (ploop_pread (image, bytes, size, 0), 0);
  ck_assert_int_eq (ploop_close (image, NULL), 0);
  for (size_t i = 0; i < size; i += 512)
    if (memcmp (bytes + i, scene->disk + i, 512) != 0)
      ck_abort_msg ("sector %zu has changed", i / 512);
}

/* It reads as before, and is sound. */
static void
assert_same (const struct scene *scene)
{
  struct ploop_check_result result;

  ck_assert_int_eq (ploop_check (scene->path, NULL, NULL, &result, NULL), 0);
  ck_assert_uint_eq (result.nr_errors, 0);
  assert_disk (scene);
}

static uint32_t
in_use (const struct scene *scene)
{
  return scratch_read_le32 (scene->path, FORMAT_IN_USE_OFFSET);
}

static uint64_t
size_of_cells (const struct scene *scene, unsigned nr)
{
  return scene->data_start + nr * scene->cluster_size;
}

/* Nothing is left to do. */
static void
assert_compact (const struct scene *scene, unsigned nr_clusters)
{
  struct ploop_check_result result;

  assert_same (scene);
  ck_assert_uint_eq (in_use (scene), FORMAT_CLOSED);
  ck_assert_uint_eq (scratch_size (scene->path),
                     size_of_cells (scene, nr_clusters));
  ck_assert_int_eq (ploop_check (scene->path, NULL, NULL, &result, NULL), 0);
  ck_assert_uint_eq (result.nr_leaks, 0);
  ck_assert_uint_eq (result.nr_allocated, nr_clusters);
}

static struct ploop_compact_result
compact_with (const struct scene *scene,
              const struct ploop_compact_options *options)
{
  struct ploop_compact_result result;
  g_autoptr (GError) error = NULL;
  const int r =
    ploop_compact (scene->path, options, NULL, NULL, &result, &error);

  ck_assert_msg (r == 0, "%s", error ? error->message : "no message");
  ck_assert (!result.interrupted);
  ck_assert_uint_eq (result.file_size_after, scratch_size (scene->path));
  return result;
}

static struct ploop_compact_result
compact (const struct scene *scene)
{
  return compact_with (scene, NULL);
}

static unsigned
nr_changing_calls (void)
{
  return fault_calls[FAULT_PWRITE] + fault_calls[FAULT_FALLOCATE]
         + fault_calls[FAULT_FTRUNCATE];
}

/* ---- What is moved ----------------------------------------------------- */

START_TEST (highest_clusters_fill_the_lowest_free_cells)
{
  struct scene scene = draw (&shapes[_i], "a.b#..cdE#fG.#");
  const struct ploop_compact_result result = compact (&scene);

  assert_compact (&scene, 7);
  ck_assert_uint_eq (result.nr_moved, 4);
  ck_assert_uint_gt (result.bytes_copied, 0);
  ck_assert_uint_eq (result.file_size_before, size_of_cells (&scene, 14));
  clear_scene (&scene);
}
END_TEST

START_TEST (order_is_kept)
{
  const struct shape shape = { 2, 64, false };
  struct scene scene = draw (&shape, "...c.b.a");

  compact (&scene);
  assert_compact (&scene, 3);
  /* BAT and header take one cluster. */
  ck_assert_uint_eq (scratch_read_le32 (scene.path, format_bat_offset (0)), 3);
  ck_assert_uint_eq (scratch_read_le32 (scene.path, format_bat_offset (1)), 2);
  ck_assert_uint_eq (scratch_read_le32 (scene.path, format_bat_offset (2)), 1);
  clear_scene (&scene);
}
END_TEST

START_TEST (nothing_is_done_when_there_is_nothing_to_do)
{
  struct scene scene = draw (&shapes[_i], "bacD");
  struct ploop_compact_result result;

  fault_reset ();
  result = compact (&scene);
  ck_assert_uint_eq (nr_changing_calls (), 0);
  ck_assert_uint_eq (fault_calls[FAULT_FDATASYNC], 0);
  ck_assert_uint_eq (result.nr_moved, 0);
  assert_compact (&scene, 4);
  clear_scene (&scene);
}
END_TEST

START_TEST (empty_disk_keeps_no_data)
{
  struct scene scene = draw (&shapes[_i], "..##.#");

  compact (&scene);
  assert_compact (&scene, 0);
  clear_scene (&scene);
}
END_TEST

START_TEST (tail_is_cut_off_without_moves)
{
  struct scene scene = draw (&shapes[_i], "ab#.");
  const struct ploop_compact_result result = compact (&scene);

  ck_assert_uint_eq (result.nr_moved, 0);
  assert_compact (&scene, 2);
  clear_scene (&scene);
}
END_TEST

/* What is missing from a file that ends inside a cluster reads as zeros, also
 * where there was garbage.
 */
START_TEST (cluster_that_the_file_cuts_off_is_moved)
{
  struct scene scene = draw (&shapes[1], "#b#a");
  const uint64_t left = scene.cluster_size / 2;

  ck_assert_int_eq (truncate (scene.path,
                              (off_t) (size_of_cells (&scene, 3) + left)), 0);
  memset (scene.disk + left, 0, scene.cluster_size - left);
  compact (&scene);
  assert_compact (&scene, 2);
  clear_scene (&scene);
}
END_TEST

START_TEST (clusters_off_the_grid_stay)
{
  const struct shape shape = { 1, 64, false };
  struct scene scene = draw_shifted (&shape, "a....b", 5 * 512);
  const uint64_t end = size_of_cells (&scene, 6) + 5 * 512;

  /* c and d on the grid: behind b, and in front of it. */
  ck_assert_int_eq (truncate (scene.path,
                              (off_t) size_of_cells (&scene, 12)), 0);
  for (unsigned i = 0; i < 2; i++) {
    const uint64_t offset = size_of_cells (&scene, i == 0 ? 10 : 4);

    put_cluster (&scene, (char) ('c' + i), offset);
    scratch_write_le32 (scene.path, (uint32_t) (offset / 512),
                        format_bat_offset (2 + i));
  }
  put_garbage (&scene, size_of_cells (&scene, 8));
  put_garbage (&scene, size_of_cells (&scene, 3));

  ck_assert_uint_eq (compact (&scene).nr_moved, 2);
  assert_same (&scene);
  ck_assert_uint_eq (in_use (&scene), FORMAT_CLOSED);
  ck_assert_uint_eq (scratch_size (scene.path), end);
  /* a takes most of cell 0 and a bit of cell 1. */
  ck_assert_uint_eq (scratch_read_le32 (scene.path, format_bat_offset (3)),
                     size_of_cells (&scene, 2) / 512);
  ck_assert_uint_eq (scratch_read_le32 (scene.path, format_bat_offset (2)),
                     size_of_cells (&scene, 3) / 512);
  clear_scene (&scene);
}
END_TEST

/* ---- Holes ------------------------------------------------------------- */

static bool
holes_are_told (const struct scene *scene)
{
  struct delta *delta = delta_open (scene->path, DELTA_LOCK_NONE, NULL);
  const bool told = delta->holes_are_true;

  delta_close (delta);
  return told;
}

START_TEST (holes_stay_holes)
{
  const struct ploop_compact_options dry_run = { .dry_run = true };
  const struct shape shape = { 2, 2048, false };
  struct scene scene = draw (&shape, "a##Bc.D");
  struct ploop_compact_result said, done;

  if (holes_are_told (&scene)) {
    ck_assert_int_eq (ploop_compact (scene.path, &dry_run, NULL, NULL, &said,
                                     NULL), 0);
    done = compact (&scene);
    ck_assert_uint_eq (done.bytes_copied, 3 << 19);
    /* The garbage is gone, but for what the file system takes for itself. */
    ck_assert_uint_le (done.allocated_after + (2 << 20),
                       done.allocated_before + 65536);
    ck_assert_uint_le (done.allocated_after, said.allocated_after + 65536);
    ck_assert_uint_le (said.allocated_after, done.allocated_after + 65536);
    assert_compact (&scene, 4);
  }
  clear_scene (&scene);
}
END_TEST

START_TEST (holes_are_kept_out)
{
  const struct ploop_compact_options options = { .keep_holes_out = true };
  const struct shape shape = { 2, 2048, false };
  struct scene scene = draw (&shape, "a..c#B#D");

  struct ploop_compact_result result;

  fault_reset ();
  result = compact_with (&scene, &options);
  ck_assert_uint_eq (result.bytes_copied, 2 << 20);
  ck_assert_uint_eq (fault_calls[FAULT_FALLOCATE], 0);
  assert_compact (&scene, 4);
  clear_scene (&scene);
}
END_TEST

/* ---- Looking first ----------------------------------------------------- */

START_TEST (dry_run_says_what_comes_and_changes_nothing)
{
  const struct ploop_compact_options options = { .dry_run = true,
                                                 .keep_holes_out = _i % 2 };
  const struct ploop_compact_options really = { .keep_holes_out = _i % 2 };
  struct scene scene = draw (&shapes[_i / 2], "a##b.Cd#e.#");
  struct ploop_compact_result said, done;

  fault_reset ();
  ck_assert_int_eq (ploop_compact (scene.path, &options, NULL, NULL, &said,
                                   NULL), 0);
  ck_assert_uint_eq (nr_changing_calls (), 0);
  done = compact_with (&scene, &really);
  ck_assert_uint_eq (said.nr_moved, done.nr_moved);
  /* Neighbours that share a block make one of data of it. */
  if (scene.data_start % 4096 == 0 && scene.cluster_size % 4096 == 0)
    ck_assert_uint_eq (said.bytes_copied, done.bytes_copied);
  ck_assert_uint_eq (said.file_size_before, done.file_size_before);
  ck_assert_uint_eq (said.file_size_after, done.file_size_after);
  ck_assert_uint_le (said.allocated_after, said.allocated_before);
  assert_compact (&scene, 5);
  clear_scene (&scene);
}
END_TEST

/* ---- Order ------------------------------------------------------------- */

/* What the hook has seen, of one image at a time. */
static struct {
  uint64_t data_start;
  bool marked;                  /* and synced */
  bool header_written, data_written, bat_written;       /* since a sync */
  unsigned nr_bat_writes, nr_cuts, nr_data_syncs;
  const char *wrong;
} seen;

static void
expect (bool condition, const char *what)
{
  if (!condition && !seen.wrong)
    seen.wrong = what;
}

static void
see_write (uint64_t offset)
{
  if (offset < FORMAT_HEADER_SIZE) {
    expect (!seen.bat_written, "closed before the BAT was synced");
    seen.header_written = true;
    return;
  }
  expect (seen.marked, "changed before the mark was synced");
  if (offset >= seen.data_start) {
    seen.data_written = true;
    return;
  }
  expect (!seen.data_written, "BAT written before the data was synced");
  seen.bat_written = true;
  seen.nr_bat_writes++;
}

static int
see (const struct fault_event *event)
{
  switch (event->call) {
  case FAULT_PWRITE:
    see_write (event->offset);
    break;
  case FAULT_FALLOCATE:
    /* A hole is copied, or free space given back. */
    expect (seen.marked, "cleared before the mark was synced");
    expect (!seen.bat_written, "cleared before the BAT was synced");
    seen.data_written = true;
    break;
  case FAULT_FTRUNCATE:
    expect (seen.marked, "cut off before the mark was synced");
    expect (!seen.bat_written, "cut off before the BAT was synced");
    seen.nr_cuts++;
    break;
  case FAULT_FDATASYNC:
    seen.nr_data_syncs += seen.data_written;
    seen.marked = seen.marked || seen.header_written;
    seen.header_written = seen.data_written = seen.bat_written = false;
    break;
  default:
    break;
  }
  return 0;
}

START_TEST (old_place_is_given_up_when_the_entry_is_durable)
{
  struct scene scene = draw (&shapes[_i], "#####abCde");
  /* Two clusters: three batches. */
  const struct ploop_compact_options options = {
    .batch = 2 * scene.cluster_size,
  };

  memset (&seen, 0, sizeof seen);
  seen.data_start = scene.data_start;
  fault_reset ();
  fault_hook = see;
  ck_assert_uint_eq (compact_with (&scene, &options).nr_moved, 5);
  fault_reset ();
  ck_assert_msg (!seen.wrong, "%s", seen.wrong);
  ck_assert (seen.marked && !seen.header_written);
  ck_assert_uint_eq (seen.nr_bat_writes, 3);
  ck_assert_uint_eq (seen.nr_cuts, 3);
  ck_assert_uint_eq (seen.nr_data_syncs, 3);
  assert_compact (&scene, 5);
  clear_scene (&scene);
}
END_TEST

/* ---- Interrupted ------------------------------------------------------- */

struct patience {
  unsigned nr_calls, limit;
  uint64_t nr_bytes_done, nr_bytes;
};

static bool
lose_patience (void *opaque, uint64_t nr_bytes_done, uint64_t nr_bytes)
{
  struct patience *patience = opaque;

  ck_assert_uint_le (nr_bytes_done, nr_bytes);
  ck_assert_uint_ge (nr_bytes_done, patience->nr_bytes_done);
  ck_assert_uint_lt (patience->nr_calls, patience->limit);
  patience->nr_bytes_done = nr_bytes_done;
  patience->nr_bytes = nr_bytes;
  return ++patience->nr_calls < patience->limit;
}

/* Returns whether it was interrupted. */
static bool
interrupt_at (const struct shape *shape, unsigned limit)
{
  struct scene scene = draw (shape, "a.b#..cdE#fG.#");
  struct patience patience = { .limit = limit };
  struct ploop_compact_result result;

  ck_assert_int_eq (ploop_compact (scene.path, NULL, lose_patience, &patience,
                                   &result, NULL), 0);
  assert_same (&scene);
  ck_assert_uint_eq (in_use (&scene), FORMAT_CLOSED);
  ck_assert_uint_eq (result.file_size_after, scratch_size (scene.path));
  if (!result.interrupted)
    ck_assert_uint_eq (patience.nr_bytes_done, patience.nr_bytes);
  else {
    ck_assert_uint_eq (patience.nr_calls, limit);
    ck_assert_uint_lt (result.nr_moved, 4);
    ck_assert_uint_eq (compact (&scene).nr_moved, 4 - result.nr_moved);
  }
  assert_compact (&scene, 7);
  clear_scene (&scene);
  return result.interrupted;
}

START_TEST (interrupted_image_is_closed_and_goes_on_later)
{
  unsigned limit = 1;

  while (interrupt_at (&shapes[_i], limit))
    limit++;
  /* At the start, and after each cluster but the last. */
  ck_assert_uint_ge (limit, 5);
}
END_TEST

/* ---- System calls that fail -------------------------------------------- */

struct fault {
  enum fault_call call;
  int errnum;                   /* 0: short */
};

static const struct fault kinds[] = {
  { FAULT_PREAD, EIO },       { FAULT_PREAD, EINTR },
  { FAULT_PREAD, 0 },         { FAULT_PWRITE, EIO },
  { FAULT_PWRITE, ENOSPC },   { FAULT_PWRITE, EINTR },
  { FAULT_PWRITE, 0 },        { FAULT_FALLOCATE, EIO },
  { FAULT_FALLOCATE, ENOSPC },{ FAULT_FALLOCATE, EINTR },
  { FAULT_FALLOCATE, EOPNOTSUPP },
  { FAULT_FTRUNCATE, EIO },   { FAULT_FTRUNCATE, EINTR },
  { FAULT_FDATASYNC, EIO },   { FAULT_FDATASYNC, ENOSPC },
  { FAULT_FDATASYNC, EINTR },
};

/* Nobody needs to hear of it. */
static bool
is_dealt_with (const struct fault *fault)
{
  return fault->errnum == 0 || fault->errnum == EINTR
         || fault->errnum == EOPNOTSUPP;
}

static void
assert_error (const struct scene *scene, const struct fault *fault,
              const GError *error)
{
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM));
  ck_assert_msg (strstr (error->message, scene->path)
                 && strstr (error->message, g_strerror (fault->errnum)),
                 "%s", error->message);
  /* An image that is still marked is one that ERROR says so of. */
  if (!strstr (error->message, "marked"))
    ck_assert_uint_eq (in_use (scene), FORMAT_CLOSED);
  if (fault->call == FAULT_FDATASYNC)
    ck_assert_uint_eq (in_use (scene), FORMAT_IN_USE);
}

/* Returns whether it came to call number SKIP. */
static bool
fail_at (const struct shape *shape, const struct fault *fault, unsigned skip,
         unsigned nr)
{
  struct scene scene = draw (shape, "a.b#..cdE#fG.#");
  /* Two clusters, so that there are several. */
  const struct ploop_compact_options options = {
    .batch = 2 * scene.cluster_size,
  };
  struct ploop_compact_result result;
  g_autoptr (GError) error = NULL;
  bool met;
  int r;

  fault_reset ();
  fault_inject (fault->call, fault->errnum, skip, nr);
  r = ploop_compact (scene.path, &options, NULL, NULL, &result, &error);
  met = fault_calls[fault->call] > skip;
  fault_reset ();
  ck_assert_msg (r == 0 || met, "failed for no reason: %s",
                 error ? error->message : "");
  ck_assert_msg (r == 0 || !is_dealt_with (fault), "%s",
                 error ? error->message : "");
  if (r < 0)
    assert_error (&scene, fault, error);
  assert_same (&scene);
  /* Space that came back may have been enough. */
  ck_assert (r < 0 || !met || is_dealt_with (fault)
             || fault->errnum == ENOSPC);
  compact (&scene);
  assert_compact (&scene, 7);
  clear_scene (&scene);
  return met;
}

/* NR calls in a row fail, beginning with each; with PLOOP_TEST_SCALE below 100, with
 * one of three, by chance.
 */
static void
fail_everywhere (const struct shape *shape, const struct fault *fault,
                 unsigned nr)
{
  const char *scale = g_getenv ("PLOOP_TEST_SCALE");
  const unsigned stride = scale && atoi (scale) < 100 ? 3 : 1;
  unsigned skip = (unsigned) g_random_int_range (0, (gint32) stride);
  unsigned nr_met = 0;

  for (; fail_at (shape, fault, skip, nr); skip += stride)
    nr_met++;
  ck_assert (nr_met > 0 || stride > 1 || fault->call == FAULT_FALLOCATE);
}

START_TEST (each_call_may_fail)
{
  for (unsigned s = 0; s < G_N_ELEMENTS (shapes); s += 3)
    fail_everywhere (&shapes[s], &kinds[_i], 1);
}
END_TEST

START_TEST (each_call_may_fail_from_now_on)
{
  const struct fault *fault = &kinds[_i];

  if (fault->errnum == 0 || fault->errnum == EINTR)
    return;                     /* for ever: nobody could go on */
  fail_everywhere (&shapes[3], fault, 1000);
}
END_TEST

/* ---- What it is not done to -------------------------------------------- */

static void
assert_refused (const struct scene *scene, enum ploop_error code,
                const char *text)
{
  g_autoptr (GError) error = NULL;

  fault_reset ();
  ck_assert_int_eq (ploop_compact (scene->path, NULL, NULL, NULL, NULL,
                                   &error), -1);
  ck_assert_msg (g_error_matches (error, PLOOP_ERROR, (int) code),
                 "%s", error->message);
  ck_assert_msg (strstr (error->message, text)
                 && strstr (error->message, scene->path),
                 "%s", error->message);
  ck_assert_uint_eq (nr_changing_calls (), 0);
}

START_TEST (image_with_changed_block_bitmaps_is_refused)
{
  struct scene scene = draw (&shapes[1], "a.b");

  scratch_write_le32 (scene.path, 128, 56);
  assert_refused (&scene, PLOOP_ERROR_ARGUMENT, "extension offset is 128");
  scratch_write_le32 (scene.path, FORMAT_CLOSED_EXTENSION,
                      FORMAT_IN_USE_OFFSET);
  assert_refused (&scene, PLOOP_ERROR_ARGUMENT, "extension offset is 128");
  clear_scene (&scene);
}
END_TEST

START_TEST (half_converted_image_is_refused)
{
  struct scene scene = draw (&shapes[1], "a.b");

  scratch_write_le32 (scene.path, FORMAT_IN_USE, FORMAT_IN_USE_OFFSET);
  scratch_write_le32 (scene.path, FORMAT_FLAG_CONVERSION, 52);
  assert_refused (&scene, PLOOP_ERROR_CORRUPT, "flags are 2");
  clear_scene (&scene);
}
END_TEST

START_TEST (damaged_image_is_refused)
{
  struct scene scene = draw (&shapes[1], "a.b");

  scratch_write_le32 (scene.path, 1, format_bat_offset (7));
  assert_refused (&scene, PLOOP_ERROR_CORRUPT, "BAT entry 7 is 1");
  scratch_write_le32 (scene.path, 99, format_bat_offset (7));
  assert_refused (&scene, PLOOP_ERROR_CORRUPT, "BAT entry 7 is 99");
  clear_scene (&scene);
}
END_TEST

START_TEST (image_in_use_is_refused)
{
  struct scene scene = draw (&shapes[1], "a.b");
  ploop_image *image = ploop_open (scene.path, NULL, NULL);

  assert_refused (&scene, PLOOP_ERROR_IN_USE, "");
  ck_assert_int_eq (ploop_close (image, NULL), 0);
  compact (&scene);
  assert_compact (&scene, 2);
  clear_scene (&scene);
}
END_TEST

/* ---- What was not closed ----------------------------------------------- */

START_TEST (image_that_was_not_closed_is_closed)
{
  struct scene scene = draw (&shapes[_i], "a.bC#");

  scratch_write_le32 (scene.path, FORMAT_IN_USE, FORMAT_IN_USE_OFFSET);
  /* A stale extension, and a cluster that was never flushed. */
  scratch_write_le32 (scene.path, 128, 56);
  scratch_write_le32 (scene.path,
                      (uint32_t) (size_of_cells (&scene, 5)
                                  / (shapes[_i].version == 1
                                       ? 512 : scene.cluster_size)),
                      format_bat_offset (7));
  compact (&scene);
  assert_compact (&scene, 3);
  ck_assert_uint_eq (scratch_read_le32 (scene.path, 56), 0);
  ck_assert_uint_eq (scratch_read_le32 (scene.path, format_bat_offset (7)), 0);
  clear_scene (&scene);
}
END_TEST

/* What the page cache holds of its BAT may not be what is on the disk. */
START_TEST (image_that_was_not_closed_is_synced_before_its_bat_is_read)
{
  struct scene scene = draw (&shapes[1], "a.b");
  g_autoptr (GError) error = NULL;

  scratch_write_le32 (scene.path, FORMAT_IN_USE, FORMAT_IN_USE_OFFSET);
  fault_reset ();
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_int_eq (ploop_compact (scene.path, NULL, NULL, NULL, NULL,
                                   &error), -1);
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM));
  /* The header only. */
  ck_assert_uint_eq (fault_calls[FAULT_PREAD], 1);
  ck_assert_uint_eq (nr_changing_calls (), 0);
  fault_reset ();
  compact (&scene);
  assert_compact (&scene, 2);
  clear_scene (&scene);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  const int nr_shapes = G_N_ELEMENTS (shapes);
  const int nr_kinds = G_N_ELEMENTS (kinds);

  tcase_add_loop_test (tcase, highest_clusters_fill_the_lowest_free_cells, 0,
                       nr_shapes);
  tcase_add_test (tcase, order_is_kept);
  tcase_add_loop_test (tcase, nothing_is_done_when_there_is_nothing_to_do, 0,
                       nr_shapes);
  tcase_add_loop_test (tcase, empty_disk_keeps_no_data, 0, nr_shapes);
  tcase_add_loop_test (tcase, tail_is_cut_off_without_moves, 0, nr_shapes);
  tcase_add_test (tcase, cluster_that_the_file_cuts_off_is_moved);
  tcase_add_test (tcase, clusters_off_the_grid_stay);
  tcase_add_test (tcase, holes_stay_holes);
  tcase_add_test (tcase, holes_are_kept_out);
  tcase_add_loop_test (tcase, dry_run_says_what_comes_and_changes_nothing, 0,
                       2 * nr_shapes);
  tcase_add_loop_test (tcase, old_place_is_given_up_when_the_entry_is_durable,
                       0, nr_shapes);
  tcase_add_loop_test (tcase, interrupted_image_is_closed_and_goes_on_later, 0,
                       nr_shapes);
  tcase_add_loop_test (tcase, each_call_may_fail, 0, nr_kinds);
  tcase_add_loop_test (tcase, each_call_may_fail_from_now_on, 0, nr_kinds);
  tcase_add_test (tcase, image_with_changed_block_bitmaps_is_refused);
  tcase_add_test (tcase, half_converted_image_is_refused);
  tcase_add_test (tcase, damaged_image_is_refused);
  tcase_add_test (tcase, image_in_use_is_refused);
  tcase_add_loop_test (tcase, image_that_was_not_closed_is_closed, 0,
                       nr_shapes);
  tcase_add_test (tcase,
                  image_that_was_not_closed_is_synced_before_its_bat_is_read);
}

int
main (void)
{
  return run_tests ("compact", add_tests);
}
