/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/direct.c and its use in lib/delta.c: requests of any alignment arrive
 * past the page cache as through it, nobody undoes a neighbour's write, and
 * where the file system refuses, the page cache does the work.
 *
 * Most tests raise the block size to 4096, so that whatever the disk below,
 * there is less than a block to write.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "delta.h"
#include "direct.h"
#include "faults.h"
#include "ploop-core.h"
#include "run.h"

#define BLOCK 4096u
#define MIB (UINT64_C (1) << 20)

/* ---- What faults.c does not fail --------------------------------------- */

static int direct_open_errnum;          /* of open with O_DIRECT; 0: none */
static bool memory_is_out;

int __real_open (const char *, int, ...);
int __real_posix_memalign (void **, size_t, size_t);
int __wrap_open (const char *, int, ...);
int __wrap___open_2 (const char *, int);
int __wrap_posix_memalign (void **, size_t, size_t);

int
__wrap_open (const char *path, int flags, ...)
{
  va_list args;
  mode_t mode = 0;

  if (flags & O_CREAT) {
    va_start (args, flags);
    mode = (mode_t) va_arg (args, int);
    va_end (args);
  }
  if ((flags & O_DIRECT) && direct_open_errnum != 0) {
    errno = direct_open_errnum;
    return -1;
  }
  return __real_open (path, flags, mode);
}

/* What open becomes with _FORTIFY_SOURCE. */
int
__wrap___open_2 (const char *path, int flags)
{
  return __wrap_open (path, flags);
}

int
__wrap_posix_memalign (void **memory, size_t alignment, size_t size)
{
  return memory_is_out ? ENOMEM
                       : __real_posix_memalign (memory, alignment, size);
}

#ifdef STATX_DIOALIGN
static const uint32_t *told_alignments; /* block, memory; NULL: the truth */

int __real_statx (int, const char *, int, unsigned, struct statx *);
int __wrap_statx (int, const char *, int, unsigned, struct statx *);

int
__wrap_statx (int fd, const char *path, int flags, unsigned mask,
              struct statx *st)
{
  int r = __real_statx (fd, path, flags, mask, st);

  if (r == 0 && told_alignments) {
    st->stx_mask |= STATX_DIOALIGN;
    st->stx_dio_offset_align = told_alignments[0];
    st->stx_dio_mem_align = told_alignments[1];
  }
  return r;
}
#endif

/* ---- Images ------------------------------------------------------------ */

static unsigned nr_warnings;
static char last_warning[1000];

static void
count_warnings (void *opaque, enum ploop_log_level level, const char *message)
{
  (void) opaque;
  if (level != PLOOP_LOG_WARNING)
    return;
  nr_warnings++;
  g_strlcpy (last_warning, message, sizeof last_warning);
}

/* Before each test. */
static void
reset (void)
{
  fault_reset ();
  nr_warnings = 0;
  direct_open_errnum = 0;
  memory_is_out = false;
#ifdef STATX_DIOALIGN
  told_alignments = NULL;
#endif
}

static const struct log test_log = { count_warnings, NULL };

/* Where direct I/O begins in the images here: their BAT is small. */
static uint64_t
start (void)
{
  return (uint64_t) sysconf (_SC_PAGESIZE) << 11;
}

/* An image that goes on for AFTER bytes where direct I/O has begun. */
static char *
image_with (uint64_t after)
{
  const struct format_header header = scratch_header (2, 64, 100);

  return scratch_image ("direct", &header, NULL, start () + after);
}

static struct delta *
open_locked (const char *path, enum delta_lock lock)
{
  g_autoptr (GError) error = NULL;
  struct delta *delta = delta_open (path, lock, &error);

  ck_assert_msg (delta != NULL, "%s", error ? error->message : "");
  return delta;
}

static struct delta *
open_direct (const char *path, enum delta_lock lock)
{
  struct delta *delta = open_locked (path, lock);

  ck_assert_msg (delta_use_direct (delta, &test_log), "%s", last_warning);
  ck_assert_uint_eq (delta->direct_start, start ());
  ck_assert_uint_le (delta->direct->block_size, BLOCK);
  delta->direct->block_size = BLOCK;
  delta->direct->memory_alignment = BLOCK;
  fault_reset ();
  return delta;
}

/* Everything must have gone the direct way. */
static void
close_direct (struct delta *delta)
{
  ck_assert (!delta->direct->stopped);
  ck_assert_uint_eq (nr_warnings, 0);
  delta_close (delta);
}

/* Read through the page cache, by somebody else. */
static void
expect_in_file (const char *path, const void *bytes, size_t length,
                uint64_t offset)
{
  g_autofree char *there = g_malloc (length);

  scratch_read (path, there, length, offset);
  ck_assert (memcmp (there, bytes, length) == 0);
}

static void
expect_read (const struct delta *delta, const void *bytes, size_t length,
             uint64_t offset)
{
  g_autofree char *there = g_malloc (length);

  memset (there, 'r', length);
  ck_assert_int_eq (delta_pread (delta, there, length, offset), 0);
  ck_assert (memcmp (there, bytes, length) == 0);
}

static void
fill (char *buf, size_t length)
{
  for (size_t i = 0; i < length; i++)
    buf[i] = (char) g_random_int ();
}

/* Aligned memory (free). */
static char *
aligned (size_t size)
{
  void *memory;

  ck_assert_int_eq (__real_posix_memalign (&memory, BLOCK, size), 0);
  return memory;
}

/* The kernel's short direct reads and writes are whole blocks; those of
 * faults.h are one byte, which only a descriptor without O_DIRECT does.
 */
static void
take_direct_away (const char *path, struct direct *direct)
{
  int fd = __real_open (path, O_RDWR);

  ck_assert_int_ge (fd, 0);
  ck_assert_int_ge (dup2 (fd, direct->fd), 0);
  close (fd);
}

/* ---- Alignment --------------------------------------------------------- */

#define WINDOW (16u * BLOCK)

struct model {
  const char *path;
  struct delta *delta;
  char *memory;                 /* aligned */
  char bytes[WINDOW];           /* at start () + MIB */
  unsigned nr_writes;
};

static void
write_and_compare (struct model *model, size_t from, size_t length,
                   size_t misaligned)
{
  const uint64_t offset = start () + MIB + from;
  char *buf = model->memory + misaligned;
  int r;

  fill (buf, length);
  memcpy (model->bytes + from, buf, length);
  r = model->nr_writes++ % 7 == 0
        ? delta_pwrite_durable (model->delta, buf, length, offset)
        : delta_pwrite (model->delta, buf, length, offset);
  ck_assert_int_eq (r, 0);
  ck_assert (memcmp (model->bytes + from, buf, length) == 0);
  expect_in_file (model->path, model->bytes, WINDOW, start () + MIB);

  memset (buf, 'r', length);
  ck_assert_int_eq (delta_pread (model->delta, buf, length, offset), 0);
  ck_assert (memcmp (model->bytes + from, buf, length) == 0);
}

/* With blocks of 4096 bytes, and with the disk's own. */
START_TEST (every_alignment_writes_and_reads_as_the_model)
{
  static const size_t heads[] = { 0, 1, 511, 512, 2048, 4095 };
  static const size_t lengths[] = { 1, 511, 512, 513, 4095, 4096, 4097,
                                    8191, 8192, 8193, 12288, 14000 };
  static const size_t misalignments[] = { 0, 1, 512, 4095 };
  g_autofree char *path = image_with (4 * MIB);
  struct model *model = g_new0 (struct model, 1);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  unsigned n = 0;

  if (_i == 1)
    delta->direct->block_size = delta->direct->memory_alignment = 512;
  model->path = path;
  model->delta = delta;
  model->memory = aligned (WINDOW);
  for (size_t h = 0; h < G_N_ELEMENTS (heads); h++)
    for (size_t l = 0; l < G_N_ELEMENTS (lengths); l++)
      for (size_t m = 0; m < G_N_ELEMENTS (misalignments); m++)
        write_and_compare (model, heads[h] + n++ % 12 * BLOCK, lengths[l],
                           misalignments[m]);
  free (model->memory);
  g_free (model);
  close_direct (delta);
}
END_TEST

START_TEST (request_larger_than_a_bounce_buffer_is_sliced)
{
  const size_t length = 2 * DIRECT_BUFFER_SIZE + 5000;
  g_autofree char *path = image_with (8 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  g_autofree char *out = g_malloc (length + 1);

  fill (out, length + 1);
  ck_assert_int_eq (delta_pwrite (delta, out + 1, length, start () + 700), 0);
  expect_in_file (path, out + 1, length, start () + 700);
  expect_read (delta, out + 1, length, start () + 700);
  close_direct (delta);
}
END_TEST

START_TEST (request_is_split_where_direct_begins)
{
  g_autofree char *path = image_with (MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  char out[2000];

  fill (out, sizeof out);
  ck_assert_int_eq (delta_pwrite (delta, out, sizeof out, start () - 900), 0);
  /* Through the cache; and a block, read, modified, written. */
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 2);
  ck_assert_uint_eq (fault_calls[FAULT_PREAD], 1);
  expect_in_file (path, out, sizeof out, start () - 900);
  expect_read (delta, out, sizeof out, start () - 900);
  /* What lies below altogether costs no block. */
  fault_reset ();
  ck_assert_int_eq (delta_pwrite (delta, out, 4, start () - 4), 0);
  ck_assert_uint_eq (fault_calls[FAULT_PWRITE], 1);
  ck_assert_uint_eq (fault_calls[FAULT_PREAD], 0);
  expect_in_file (path, out, 4, start () - 4);
  close_direct (delta);
}
END_TEST

START_TEST (direct_begins_behind_the_bat)
{
  /* A BAT that ends just behind the first boundary. */
  const uint32_t nr_entries = (uint32_t) (start () / FORMAT_ENTRY_SIZE);
  const struct format_header header = scratch_header (2, 2048, nr_entries);
  g_autofree char *path =
    scratch_image ("bat", &header, NULL, 2 * start () + MIB);
  struct delta *delta = open_locked (path, DELTA_LOCK_WRITER);

  ck_assert (delta_use_direct (delta, &test_log));
  ck_assert_uint_eq (delta->direct_start, 2 * start ());
  delta_close (delta);
}
END_TEST

/* ---- The end of the file ----------------------------------------------- */

START_TEST (file_that_ends_inside_a_block_reads_on_as_zeros)
{
  const uint64_t end = start () + 2 * BLOCK + 1000;
  g_autofree char *path = image_with (end - start ());
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  char *buf = aligned (6 * BLOCK);
  char model[6 * BLOCK] = { 0 };

  fill (model, 2 * BLOCK + 1000);
  scratch_write (path, model, 2 * BLOCK + 1000, start ());
  for (size_t misaligned = 0; misaligned < 2; misaligned++) {
    memset (buf, 'r', 6 * BLOCK);
    ck_assert_int_eq (delta_pread (delta, buf + misaligned, 5 * BLOCK,
                                   start () + misaligned), 0);
    ck_assert (memcmp (buf + misaligned, model + misaligned, 5 * BLOCK) == 0);
  }
  expect_read (delta, model + 5 * BLOCK, 300, end + 10);
  expect_read (delta, model + 4 * BLOCK, 8192, end + 100 * BLOCK);
  /* Reading has not changed the size. */
  ck_assert_uint_eq (scratch_size (path), end);
  free (buf);
  close_direct (delta);
}
END_TEST

START_TEST (write_where_the_file_ends_fills_the_block_with_zeros)
{
  const uint64_t end = start () + 2 * BLOCK + 1000;
  g_autofree char *path = image_with (end - start ());
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  char model[4 * BLOCK] = { 0 };

  fill (model, 2 * BLOCK + 1000);
  scratch_write (path, model, 2 * BLOCK + 1000, start ());
  fill (model + 2 * BLOCK + 900, 300);
  ck_assert_int_eq (delta_pwrite (delta, model + 2 * BLOCK + 900, 300,
                                  end - 100), 0);
  ck_assert_uint_eq (scratch_size (path), start () + 3 * BLOCK);
  expect_in_file (path, model, 3 * BLOCK, start ());
  expect_read (delta, model, sizeof model, start ());
  close_direct (delta);
}
END_TEST

/* By the file system, and by writing where it cannot. */
START_TEST (zeroed_range_reads_as_zeros)
{
  g_autofree char *path = image_with (4 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  g_autofree char *model = g_malloc (MIB);

  if (_i == 1)
    fault_inject (FAULT_FALLOCATE, EOPNOTSUPP, 0, 100);
  fill (model, MIB);
  ck_assert_int_eq (delta_pwrite (delta, model, MIB, start () + MIB), 0);
  memset (model + 1000, 0, 600000);
  ck_assert_int_eq (delta_zero (delta, 600000, start () + MIB + 1000), 0);
  expect_in_file (path, model, MIB, start () + MIB);
  expect_read (delta, model, MIB, start () + MIB);
  close_direct (delta);
}
END_TEST

/* ---- Neighbours -------------------------------------------------------- */

/* A thread that changes a range again and again, and looks whether the change
 * is still there.
 */
struct hammer {
  struct delta *delta;
  uint64_t offset;
  size_t length;
  size_t unchecked;             /* from the start: others write there too */
  void (*change) (struct hammer *, char *);
  unsigned nr_lost;
  int result;
  pthread_t thread;
};

#define NR_ROUNDS 400

static void
change_by_write (struct hammer *hammer, char *buf)
{
  hammer->result |=
    delta_pwrite (hammer->delta, buf, hammer->length, hammer->offset);
}

static void
change_by_zero (struct hammer *hammer, char *buf)
{
  change_by_write (hammer, buf);
  memset (buf, 0, hammer->length);
  hammer->result |=
    delta_zero (hammer->delta, hammer->length, hammer->offset);
}

static void
change_by_punch (struct hammer *hammer, char *buf)
{
  change_by_write (hammer, buf);
  if (delta_punch (hammer->delta, hammer->length, hammer->offset) == 0)
    memset (buf, 0, hammer->length);
}

/* The range is the end of the file: cut it off and let it grow again. */
static void
change_by_truncate (struct hammer *hammer, char *buf)
{
  change_by_write (hammer, buf);
  memset (buf, 0, hammer->length);
  hammer->result |= delta_truncate (hammer->delta, hammer->offset);
  hammer->result |=
    delta_truncate (hammer->delta, hammer->offset + hammer->length);
}

static void *
run_hammer (void *opaque)
{
  struct hammer *hammer = opaque;
  char *expected = aligned (4 * BLOCK), *there = aligned (4 * BLOCK);
  const size_t from = hammer->unchecked, n = hammer->length - from;

  for (int i = 0; i < NR_ROUNDS; i++) {
    memset (expected, i + 1, hammer->length);
    hammer->change (hammer, expected);
    hammer->result |= delta_pread (hammer->delta, there, hammer->length,
                                   hammer->offset);
    hammer->nr_lost += memcmp (expected + from, there + from, n) != 0;
  }
  free (expected);
  free (there);
  return NULL;
}

static void
hammer_together (struct hammer *hammers, size_t nr)
{
  for (size_t i = 0; i < nr; i++)
    ck_assert_int_eq (pthread_create (&hammers[i].thread, NULL, run_hammer,
                                      &hammers[i]), 0);
  for (size_t i = 0; i < nr; i++)
    pthread_join (hammers[i].thread, NULL);
  for (size_t i = 0; i < nr; i++) {
    ck_assert_int_eq (hammers[i].result, 0);
    ck_assert_msg (hammers[i].nr_lost == 0, "hammer %zu: %u changes lost", i,
                   hammers[i].nr_lost);
  }
}

START_TEST (writes_to_parts_of_a_block_do_not_undo_each_other)
{
  g_autofree char *path = image_with (4 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  const uint64_t at = start () + MIB;
  struct hammer hammers[] = {
    { delta, at + 100, 200, 0, change_by_write, 0, 0, 0 },
    { delta, at + 300, 212, 0, change_by_write, 0, 0, 0 },
    { delta, at + 512, 1024, 0, change_by_write, 0, 0, 0 },
    { delta, at + 4000, BLOCK, 0, change_by_write, 0, 0, 0 },
  };

  hammer_together (hammers, G_N_ELEMENTS (hammers));
  close_direct (delta);
}
END_TEST

/* What they overlap is anybody's; the rest of the blocks is not. */
START_TEST (part_of_a_block_does_not_undo_the_whole)
{
  g_autofree char *path = image_with (4 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  /* Two regions. */
  const uint64_t at = start () + 2 * MIB - BLOCK;
  struct hammer hammers[] = {
    { delta, at, 3 * BLOCK, BLOCK + 200, change_by_write, 0, 0, 0 },
    { delta, at + 100, 200, 200, change_by_write, 0, 0, 0 },
    { delta, at + BLOCK + 100, 100, 100, change_by_write, 0, 0, 0 },
  };

  hammer_together (hammers, G_N_ELEMENTS (hammers));
  close_direct (delta);
}
END_TEST

START_TEST (range_holds_the_stripes_of_its_regions)
{
  static const struct { uint64_t length, offset, stripes; } ranges[] = {
    { 1, 0, 1 },
    { MIB, 0, 1 },
    { MIB + 1, 0, 3 },
    { 2, MIB - 1, 3 },
    { 0, 5 * MIB, 1 << 5 },
    { MIB, 63 * MIB, UINT64_C (1) << 63 },
    { 3 * MIB, 63 * MIB, UINT64_C (1) << 63 | 3 },
    { 63 * MIB, 130 * MIB, ~UINT64_C (2) },
    { 64 * MIB, 64 * MIB, UINT64_MAX },
    { 1000 * MIB, 7 * MIB, UINT64_MAX },
  };
  g_autofree char *path = image_with (MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  struct direct *direct = delta->direct;

  for (size_t i = 0; i < G_N_ELEMENTS (ranges); i++) {
    uint64_t held = 0;

    direct_begin_change (direct, ranges[i].length, ranges[i].offset);
    for (unsigned n = 0; n < DIRECT_NR_STRIPES; n++)
      if (pthread_rwlock_trywrlock (&direct->stripes[n].lock) == 0)
        pthread_rwlock_unlock (&direct->stripes[n].lock);
      else
        held |= UINT64_C (1) << n;
    direct_end_change (direct, ranges[i].length, ranges[i].offset);
    ck_assert_msg (held == ranges[i].stripes, "range %zu: %" PRIx64, i, held);
  }
  close_direct (delta);
}
END_TEST

START_TEST (part_of_a_block_does_not_undo_what_the_kernel_clears)
{
  static void (*const changes[]) (struct hammer *, char *) = {
    change_by_zero, change_by_punch, change_by_truncate
  };
  g_autofree char *path = image_with (MIB + BLOCK);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  const uint64_t at = start () + MIB;
  struct hammer hammers[] = {
    { delta, at + 100, 200, 0, change_by_write, 0, 0, 0 },
    { delta, at + 2048, 2048, 0, changes[_i], 0, 0, 0 },
  };

  hammer_together (hammers, G_N_ELEMENTS (hammers));
  ck_assert_uint_eq (scratch_size (path), at + BLOCK);
  close_direct (delta);
}
END_TEST

static void
change_by_write_and_sync (struct hammer *hammer, char *buf)
{
  change_by_write (hammer, buf);
  hammer->result |= delta_sync (hammer->delta);
}

/* A backup, say: reads both sides of the boundary through the page cache, in
 * folios as large as the kernel likes them.
 */
static void
change_nothing_and_read (struct hammer *hammer, char *buf)
{
  static char all[1 << 20];

  (void) buf;
  if (pread (hammer->delta->fd, all, sizeof all,
             (off_t) (start () - sizeof all / 2)) != sizeof all)
    hammer->result = -errno;
}

/* Dirty below the boundary, written directly above it: no sync fails. */
START_TEST (page_cache_and_direct_writes_do_not_meet)
{
  g_autofree char *path = image_with (4 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  struct hammer hammers[] = {
    { delta, start () - 100, 100, 0, change_by_write, 0, 0, 0 },
    { delta, start () - BLOCK, 100, 0, change_by_write_and_sync, 0, 0, 0 },
    { delta, start (), BLOCK, 0, change_by_write, 0, 0, 0 },
    { delta, start () + BLOCK, 100, 0, change_by_write, 0, 0, 0 },
    { delta, start (), 1, 1, change_nothing_and_read, 0, 0, 0 },
  };

  hammer_together (hammers, G_N_ELEMENTS (hammers));
  ck_assert_int_eq (delta_sync (delta), 0);
  close_direct (delta);
}
END_TEST

/* ---- What the page cache holds ----------------------------------------- */

/* How many pages of LENGTH bytes of the file at OFFSET it holds. */
static unsigned
count_cached (const char *path, uint64_t length, uint64_t offset)
{
  const size_t page = (size_t) sysconf (_SC_PAGESIZE);
  const int fd = open (path, O_RDONLY);
  void *map = mmap (NULL, (size_t) length, PROT_READ, MAP_SHARED, fd,
                    (off_t) offset);
  g_autofree unsigned char *there = g_malloc (length / page);
  unsigned nr = 0;

  ck_assert (fd >= 0 && map != MAP_FAILED);
  ck_assert_int_eq (mincore (map, (size_t) length, there), 0);
  for (size_t i = 0; i < length / page; i++)
    nr += there[i] & 1;
  munmap (map, (size_t) length);
  close (fd);
  return nr;
}

/* Fill it, cleanly: what is dirty stays until it has been written. */
static void
read_through_cache (const char *path)
{
  static char buf[1 << 20];
  const int fd = open (path, O_RDWR);

  ck_assert_int_eq (fsync (fd), 0);
  while (read (fd, buf, sizeof buf) > 0)
    continue;
  close (fd);
}

/* _i: 0 page cache, 1 direct, 2 direct but only for reading.  Only a writer is
 * hindered by what is there.
 */
START_TEST (direct_writer_empties_the_page_cache)
{
  struct ploop_open_options options = {
    .cache = _i == 0 ? PLOOP_CACHE_WRITEBACK : PLOOP_CACHE_NONE,
    .read_only = _i == 2,
  };
  g_autofree char *path = image_with (4 * MIB);
  gint64 limit = g_get_monotonic_time () + 60 * G_USEC_PER_SEC;
  ploop_image *image;

  read_through_cache (path);
  ck_assert_uint_gt (count_cached (path, 4 * MIB, start ()), 0);
  image = ploop_open (path, &options, NULL);
  ck_assert_ptr_nonnull (image);
  while (_i == 1 && count_cached (path, 4 * MIB, start ()) > 0) {
    ck_assert_msg (g_get_monotonic_time () < limit, "it is still there");
    g_usleep (1000);
  }
  ck_assert_int_eq (ploop_close (image, NULL), 0);
  if (_i != 1)
    ck_assert_uint_gt (count_cached (path, 4 * MIB, start ()), 0);
  /* The BAT is written through it. */
  ck_assert_uint_gt (count_cached (path, MIB, 0), 0);
}
END_TEST

/* What the page cache holds of an image that nobody closed may not be on the
 * disk, after a failed sync.
 */
START_TEST (unclosed_image_is_read_from_the_disk)
{
  g_autofree char *path = image_with (4 * MIB);
  g_autoptr (GError) error = NULL;
  ploop_image *image;

  scratch_write_le32 (path, FORMAT_IN_USE, FORMAT_IN_USE_OFFSET);
  read_through_cache (path);
  fault_inject (FAULT_FDATASYNC, EIO, 0, 1);
  ck_assert_ptr_null (ploop_open (path, NULL, &error));
  ck_assert_ptr_nonnull (strstr (error->message, path));
  ck_assert_ptr_nonnull (strstr (error->message, "cannot be synced"));
  fault_reset ();
  ck_assert_uint_gt (count_cached (path, 4 * MIB, start ()), 0);
  image = ploop_open (path, NULL, NULL);
  ck_assert_ptr_nonnull (image);
  ck_assert_uint_ge (fault_calls[FAULT_FDATASYNC], 1);
  ck_assert_uint_eq (count_cached (path, 4 * MIB, start ()), 0);
  ck_assert_int_eq (ploop_close (image, NULL), 0);
}
END_TEST

/* ---- Refusals ---------------------------------------------------------- */

static void
expect_page_cache (const char *path, enum delta_lock lock)
{
  struct delta *delta = open_locked (path, lock);
  char out[1000];

  ck_assert (!delta_use_direct (delta, &test_log));
  ck_assert_ptr_null (delta->direct);
  ck_assert_uint_eq (nr_warnings, 1);
  ck_assert_ptr_nonnull (strstr (last_warning, path));
  ck_assert_ptr_nonnull (strstr (last_warning, "page cache"));
  nr_warnings = 0;
  if (lock == DELTA_LOCK_WRITER) {
    fill (out, sizeof out);
    ck_assert_int_eq (delta_pwrite (delta, out, sizeof out, start () + 1), 0);
    ck_assert_int_eq (delta_pwrite_durable (delta, out, sizeof out,
                                            start () + MIB), 0);
    expect_read (delta, out, sizeof out, start () + 1);
    expect_in_file (path, out, sizeof out, start () + MIB);
  }
  delta_close (delta);
}

START_TEST (refused_open_leaves_the_page_cache)
{
  static const int errnums[] = { EINVAL, EOPNOTSUPP, EMFILE };
  g_autofree char *path = image_with (2 * MIB);

  direct_open_errnum = errnums[_i];
  expect_page_cache (path, DELTA_LOCK_READER);
  expect_page_cache (path, DELTA_LOCK_WRITER);
}
END_TEST

START_TEST (refused_first_read_leaves_the_page_cache)
{
  static const int errnums[] = { EINVAL, ENOTBLK, EOPNOTSUPP };
  g_autofree char *path = image_with (2 * MIB);

  /* The header is read before. */
  fault_inject (FAULT_PREAD, errnums[_i], 1, 1);
  expect_page_cache (path, DELTA_LOCK_WRITER);
}
END_TEST

#ifdef STATX_DIOALIGN
START_TEST (odd_alignments_are_refused)
{
  static const uint32_t odd[][2] = {
    { 0, 0 }, { 3000, 512 }, { 512, 3000 }, { 128 << 10, 512 },
    { 512, 128 << 10 }, { 512, 0 },
  };
  g_autofree char *path = image_with (2 * MIB);

  for (size_t i = 0; i < G_N_ELEMENTS (odd); i++) {
    told_alignments = odd[i];
    expect_page_cache (path, DELTA_LOCK_WRITER);
  }
}
END_TEST

START_TEST (told_alignments_are_used)
{
  static const uint32_t told[] = { 64 << 10, 1024 };
  g_autofree char *path = image_with (2 * MIB);
  struct delta *delta = open_locked (path, DELTA_LOCK_READER);

  told_alignments = told;
  ck_assert (delta_use_direct (delta, &test_log));
  ck_assert_uint_eq (delta->direct->block_size, told[0]);
  ck_assert_uint_eq (delta->direct->memory_alignment, told[1]);
  close_direct (delta);
}
END_TEST
#endif

/* A read, a whole block, a part of one. */
START_TEST (refused_request_goes_through_the_page_cache_for_good)
{
  static const struct { enum fault_call call; int errnum; size_t length; }
  refusals[] = {
    { FAULT_PREAD, EINVAL, 0 }, { FAULT_PREAD, ENOTBLK, 0 },
    { FAULT_PWRITE, EINVAL, BLOCK }, { FAULT_PWRITE, ENOTBLK, 10 * BLOCK },
    { FAULT_PREAD, EINVAL, 100 }, { FAULT_PWRITE, EINVAL, 100 },
  };
  g_autofree char *path = image_with (2 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  char out[10 * BLOCK];

  fill (out, sizeof out);
  ck_assert_int_eq (delta_pwrite (delta, out, sizeof out, start ()), 0);
  fault_inject (refusals[_i].call, refusals[_i].errnum, 0, 1);
  fill (out, refusals[_i].length);
  ck_assert_int_eq (delta_pwrite (delta, out, refusals[_i].length, start ()),
                    0);
  expect_read (delta, out, sizeof out, start ());
  expect_in_file (path, out, sizeof out, start ());
  ck_assert_uint_eq (nr_warnings, 1);
  ck_assert_ptr_nonnull (strstr (last_warning, path));

  fill (out, sizeof out);
  fault_reset ();
  ck_assert_int_eq (delta_pwrite (delta, out, 100, start () + 1), 0);
  ck_assert_int_eq (delta_pwrite_durable (delta, out, 100, start () + 101),
                    0);
  ck_assert_uint_eq (fault_calls[FAULT_PREAD], 0);
  expect_read (delta, out, 100, start () + 101);
  expect_in_file (path, out, 100, start () + 1);
  ck_assert_int_eq (delta_sync (delta), 0);
  ck_assert_uint_eq (nr_warnings, 1);
  delta_close (delta);
}
END_TEST

START_TEST (refusal_amid_others_loses_nothing)
{
  g_autofree char *path = image_with (4 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  const uint64_t at = start () + MIB;
  struct hammer hammers[] = {
    { delta, at + 100, 200, 0, change_by_write, 0, 0, 0 },
    { delta, at + 300, 212, 0, change_by_write, 0, 0, 0 },
    { delta, at + 512, 1024, 0, change_by_zero, 0, 0, 0 },
    { delta, at + BLOCK, BLOCK, 0, change_by_write, 0, 0, 0 },
  };

  fault_inject (FAULT_PWRITE, EINVAL, 300, 1);
  hammer_together (hammers, 3);
  fault_reset ();
  hammer_together (hammers, G_N_ELEMENTS (hammers));
  ck_assert (delta->direct->stopped);
  ck_assert_uint_eq (nr_warnings, 1);
  ck_assert_int_eq (delta_sync (delta), 0);
  delta_close (delta);
}
END_TEST

/* ---- Failing system calls ---------------------------------------------- */

START_TEST (interrupted_and_short_calls_are_finished)
{
  /* Less than a block, whole blocks, both. */
  static const size_t lengths[] = { 100, 3 * BLOCK, 3 * BLOCK + 100 };
  const size_t length = lengths[_i];
  g_autofree char *path = image_with (2 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  char *out = aligned (4 * BLOCK);

  for (int errnum = EINTR; errnum >= 0; errnum -= EINTR) {
    if (errnum == 0)
      take_direct_away (path, delta->direct);
    fill (out, length);
    fault_inject (FAULT_PREAD, errnum, 0, 3);
    fault_inject (FAULT_PWRITE, errnum, 0, 3);
    ck_assert_int_eq (delta_pwrite (delta, out, length, start () + BLOCK), 0);
    fault_reset ();
    expect_in_file (path, out, length, start () + BLOCK);
    fault_inject (FAULT_PREAD, errnum, 0, 3);
    expect_read (delta, out, length, start () + BLOCK);
  }
  free (out);
  close_direct (delta);
}
END_TEST

START_TEST (errors_come_back_as_they_are)
{
  g_autofree char *path = image_with (2 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  char buf[2 * BLOCK] = { 0 };

  fault_inject (FAULT_PREAD, EIO, 0, 1);
  ck_assert_int_eq (delta_pread (delta, buf, sizeof buf, start ()), -EIO);
  fault_inject (FAULT_PREAD, EIO, 0, 1);
  ck_assert_int_eq (delta_pwrite (delta, buf, 10, start ()), -EIO);
  fault_inject (FAULT_PWRITE, ENOSPC, 0, 1);
  ck_assert_int_eq (delta_pwrite (delta, buf, 10, start ()), -ENOSPC);
  fault_inject (FAULT_PWRITE, EIO, 0, 1);
  ck_assert_int_eq (delta_pwrite_durable (delta, buf, sizeof buf, start ()),
                    -EIO);
  /* No lock and no buffer was left behind. */
  ck_assert_int_eq (delta_pwrite (delta, buf, 10, start ()), 0);
  ck_assert_uint_eq (delta->direct->small.nr_kept, 1);
  close_direct (delta);
}
END_TEST

/* ---- Memory, descriptors, locks ---------------------------------------- */

START_TEST (no_memory_fails_one_request)
{
  g_autofree char *path = image_with (2 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  struct direct *direct = delta->direct;
  char *buf = aligned (BLOCK);

  memset (buf, 1, BLOCK);
  while (direct->small.nr_kept > 0)
    free (direct->small.kept[--direct->small.nr_kept]);
  memory_is_out = true;
  ck_assert_int_eq (delta_pread (delta, buf, 10, start ()), -ENOMEM);
  ck_assert_int_eq (delta_pwrite (delta, buf, 10, start ()), -ENOMEM);
  ck_assert_int_eq (delta_pwrite (delta, buf, BLOCK, start () + 1), -ENOMEM);
  /* What needs no buffer goes on. */
  ck_assert_int_eq (delta_pwrite (delta, buf, BLOCK, start ()), 0);
  memory_is_out = false;
  ck_assert_int_eq (delta_pwrite (delta, buf, 10, start ()), 0);
  free (buf);
  close_direct (delta);
}
END_TEST

START_TEST (buffers_are_kept_but_not_without_bound)
{
  const size_t nr = 2 * DIRECT_MAX_KEPT;
  g_autofree char *path = image_with (64 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  g_autofree struct hammer *hammers = g_new0 (struct hammer, nr);
  void *first;
  char byte = 1;

  ck_assert_uint_eq (delta->direct->small.nr_kept, 1);
  first = delta->direct->small.kept[0];
  for (int i = 0; i < 100; i++)
    ck_assert_int_eq (delta_pwrite (delta, &byte, 1, start ()), 0);
  ck_assert_uint_eq (delta->direct->small.nr_kept, 1);
  ck_assert_ptr_eq (delta->direct->small.kept[0], first);

  for (size_t i = 0; i < nr; i++)
    hammers[i] = (struct hammer) { delta, start () + i * MIB + 1, 1000, 0,
                                   change_by_write, 0, 0, 0 };
  hammer_together (hammers, nr);
  ck_assert_uint_ge (delta->direct->small.nr_kept, 1);
  ck_assert_uint_le (delta->direct->small.nr_kept, DIRECT_MAX_KEPT);
  close_direct (delta);
}
END_TEST

START_TEST (durable_writes_have_a_descriptor_of_their_own)
{
  g_autofree char *path = image_with (2 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);
  const int flags = fcntl (delta->direct->fd, F_GETFL);
  const int durable_flags = fcntl (delta->direct->durable_fd, F_GETFL);
  char buf[2 * BLOCK] = { 1 };

  ck_assert_int_eq (flags & (O_DIRECT | O_DSYNC), O_DIRECT);
  ck_assert_int_eq (durable_flags & (O_DIRECT | O_DSYNC), O_DIRECT | O_DSYNC);
  /* Without it, and without its like in the page cache, no durable write. */
  close (delta->direct->durable_fd);
  close (delta->apart_fd);
  delta->direct->durable_fd = delta->apart_fd = -1;
  ck_assert_int_eq (delta_pwrite_durable (delta, buf, sizeof buf, start ()),
                    -EBADF);
  ck_assert_int_eq (delta_pwrite_durable (delta, buf, 1, start () - 1),
                    -EBADF);
  ck_assert_int_eq (delta_pwrite (delta, buf, sizeof buf, start () - 1), 0);
  close_direct (delta);
}
END_TEST

START_TEST (reader_reads_directly)
{
  g_autofree char *path = image_with (2 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_READER);
  char out[1000];

  fill (out, sizeof out);
  scratch_write (path, out, sizeof out, start () + 10);
  expect_read (delta, out, sizeof out, start () + 10);
  ck_assert_int_eq (delta->direct->durable_fd, -1);
  ck_assert_int_eq (fcntl (delta->direct->fd, F_GETFL) & O_ACCMODE, O_RDONLY);
  close_direct (delta);
}
END_TEST

START_TEST (closing_the_direct_descriptors_keeps_the_lock)
{
  g_autofree char *path = image_with (2 * MIB);
  struct delta *delta = open_direct (path, DELTA_LOCK_WRITER);

  direct_close (g_steal_pointer (&delta->direct));
  ck_assert_ptr_null (delta_open (path, DELTA_LOCK_READER, NULL));
  delta_close (delta);
  delta_close (open_locked (path, DELTA_LOCK_WRITER));
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_checked_fixture (tcase, reset, NULL);
  tcase_add_loop_test (tcase, every_alignment_writes_and_reads_as_the_model,
                       0, 2);
  tcase_add_test (tcase, request_larger_than_a_bounce_buffer_is_sliced);
  tcase_add_test (tcase, request_is_split_where_direct_begins);
  tcase_add_test (tcase, direct_begins_behind_the_bat);
  tcase_add_test (tcase, file_that_ends_inside_a_block_reads_on_as_zeros);
  tcase_add_test (tcase, write_where_the_file_ends_fills_the_block_with_zeros);
  tcase_add_loop_test (tcase, zeroed_range_reads_as_zeros, 0, 2);
  tcase_add_test (tcase, writes_to_parts_of_a_block_do_not_undo_each_other);
  tcase_add_test (tcase, part_of_a_block_does_not_undo_the_whole);
  tcase_add_test (tcase, range_holds_the_stripes_of_its_regions);
  tcase_add_test (tcase, page_cache_and_direct_writes_do_not_meet);
  tcase_add_loop_test (tcase, direct_writer_empties_the_page_cache, 0, 3);
  tcase_add_test (tcase, unclosed_image_is_read_from_the_disk);
  tcase_add_loop_test (tcase,
                       part_of_a_block_does_not_undo_what_the_kernel_clears,
                       0, 3);
  tcase_add_loop_test (tcase, refused_open_leaves_the_page_cache, 0, 3);
  tcase_add_loop_test (tcase, refused_first_read_leaves_the_page_cache, 0, 3);
#ifdef STATX_DIOALIGN
  tcase_add_test (tcase, odd_alignments_are_refused);
  tcase_add_test (tcase, told_alignments_are_used);
#endif
  tcase_add_loop_test (tcase,
                       refused_request_goes_through_the_page_cache_for_good,
                       0, 6);
  tcase_add_test (tcase, refusal_amid_others_loses_nothing);
  tcase_add_loop_test (tcase, interrupted_and_short_calls_are_finished, 0, 3);
  tcase_add_test (tcase, errors_come_back_as_they_are);
  tcase_add_test (tcase, no_memory_fails_one_request);
  tcase_add_test (tcase, buffers_are_kept_but_not_without_bound);
  tcase_add_test (tcase, durable_writes_have_a_descriptor_of_their_own);
  tcase_add_test (tcase, reader_reads_directly);
  tcase_add_test (tcase, closing_the_direct_descriptors_keeps_the_lock);
}

/* Not everywhere is direct I/O, nor with blocks as small as these. */
static bool
disk_has_direct (void)
{
  g_autofree char *path = image_with (MIB);
  struct delta *delta = delta_open (path, DELTA_LOCK_WRITER, NULL);
  const bool has = delta && delta_use_direct (delta, &test_log)
                   && delta->direct->block_size <= BLOCK
                   && delta->direct->memory_alignment <= BLOCK;

  delta_close (delta);
  return has;
}

int
main (void)
{
  if (!disk_has_direct ()) {
    fprintf (stderr, "skipped: no direct I/O in blocks of %u bytes in %s\n",
             BLOCK, g_get_tmp_dir ());
    return 77;
  }
  return run_tests ("direct", add_tests);
}
