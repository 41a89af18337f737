/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The model of a guest's disk; see disk.h.  Its memory is mapped without
 * reserve, so a disk of terabytes costs only the pages that are touched.
 */

#include <config.h>

#include <fcntl.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "disk.h"
#include "harness.h"

#define SECTOR 512u
#define PIECE (4 * MIB)

/* What a read buffer holds before the server fills it. */
#define POISON 0xEE

static uint8_t *
map_zeros (uint64_t size)
{
  void *p = mmap (NULL, size, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  /* The thread sanitizer leaves no room for the largest disks. */
  if (p == MAP_FAILED && errno == ENOMEM)
    skip ("no address space for %" PRIu64 " bytes", size);
  if (p == MAP_FAILED)
    fail ("mmap %" PRIu64 " bytes: %m", size);
  return p;
}

struct disk *
disk_new (uint64_t size, uint64_t cluster_size)
{
  struct disk *disk = calloc (1, sizeof *disk);

  if (disk == NULL)
    abort ();
  disk->size = size;
  disk->cluster_size = cluster_size;
  disk->answered = map_zeros (size);
  disk->submitted = map_zeros (size);
  return disk;
}

void
disk_free (struct disk *disk)
{
  munmap (disk->answered, disk->size);
  munmap (disk->submitted, disk->size);
  if (disk->loose != NULL)
    munmap (disk->loose, disk->size);
  free (disk);
}

void
disk_expect_trims (struct disk *disk)
{
  disk->loose = map_zeros (disk->size);
}

void
disk_load (struct disk *disk, const char *path)
{
  char *raw = format_string ("%s.raw", path);
  uint64_t done;
  ssize_t n;
  int fd;

  test_requires ("qemu-img");
  run_ok ("qemu-img convert -f parallels -O raw %s %s", path, raw);
  fd = open (raw, O_RDONLY | O_CLOEXEC);
  if (fd == -1)
    fail ("%s: %m", raw);
  for (done = 0; done < disk->size; done += (uint64_t) n) {
    n = read (fd, disk->answered + done, disk->size - done);
    if (n <= 0)
      fail ("%s: ends at %" PRIu64, raw, done);
  }
  close (fd);
  unlink (raw);
  free (raw);
  memcpy (disk->submitted, disk->answered, disk->size);
}

void
disk_submit (struct disk *disk, const uint8_t *data, uint64_t length,
             uint64_t offset)
{
  if (data == NULL)
    memset (disk->submitted + offset, 0, length);
  else
    memcpy (disk->submitted + offset, data, length);
}

void
disk_answer (struct disk *disk, uint64_t length, uint64_t offset)
{
  memcpy (disk->answered + offset, disk->submitted + offset, length);
  if (disk->loose != NULL)
    memset (disk->loose + offset, 0, length);
}

void
disk_refuse (struct disk *disk, uint64_t length, uint64_t offset)
{
  memcpy (disk->submitted + offset, disk->answered + offset, length);
}

void
disk_trim (struct disk *disk, uint64_t length, uint64_t offset)
{
  memset (disk->loose + offset, 1, length);
}

static bool
is_loose (const struct disk *disk, uint64_t at)
{
  return disk->loose != NULL && disk->loose[at];
}

/* What was loose has been seen to be zeros. */
static void
settle_as_zero (const struct disk *disk, uint64_t at)
{
  disk->answered[at] = disk->submitted[at] = 0;
  disk->loose[at] = 0;
}

/* The first difference, with what helps to find its cause. */
static _Noreturn void
fail_at (const struct disk *disk, uint64_t at, unsigned got, const char *what)
{
  fail ("%s: byte %" PRIu64 " (cluster %" PRIu64 " + %" PRIu64 ", disk of %"
        PRIu64 ") is 0x%02x, must be 0x%02x (submitted: 0x%02x)",
        what, at, at / disk->cluster_size, at % disk->cluster_size,
        disk->size, got, disk->answered[at], disk->submitted[at]);
}

void
disk_compare (const struct disk *disk, const uint8_t *data, uint64_t length,
              uint64_t offset, const char *what)
{
  uint64_t i;

  if (memcmp (data, disk->answered + offset, length) == 0)
    return;
  for (i = 0; i < length; i++) {
    if (data[i] == disk->answered[offset + i])
      continue;
    if (data[i] != 0 || !is_loose (disk, offset + i))
      fail_at (disk, offset + i, data[i], what);
    settle_as_zero (disk, offset + i);
  }
}

static void
expect_zeros (const struct disk *disk, uint64_t length, uint64_t offset,
              uint32_t flags)
{
  for (uint64_t i = offset; i < offset + length; i++) {
    if (disk->answered[i] == 0)
      continue;
    if (!is_loose (disk, i))
      fail ("byte %" PRIu64 " (cluster %" PRIu64 " + %" PRIu64
            ") is 0x%02x, but an extent with it has the flags %" PRIu32,
            i, i / disk->cluster_size, i % disk->cluster_size,
            disk->answered[i], flags);
    if (flags & LIBNBD_STATE_ZERO)
      settle_as_zero (disk, i);
  }
}

void
disk_expect_extents (struct disk *disk, const uint32_t *entries,
                     size_t nr_entries, uint64_t length, uint64_t offset)
{
  const uint32_t known = LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO;
  const uint64_t begin = offset;

  if (nr_entries == 0 || nr_entries % 2 != 0)
    fail ("%zu numbers describe the extents", nr_entries);
  for (size_t i = 0; i < nr_entries; i += 2) {
    const uint64_t rest = begin + length - offset;
    const uint64_t n = entries[i] < rest ? entries[i] : rest;

    if (entries[i] == 0)
      fail ("an extent of no bytes at %" PRIu64, offset);
    if (entries[i] > rest && (!disk->long_extents || i + 2 < nr_entries))
      fail ("extents beyond the %" PRIu64 " bytes at %" PRIu64
            " that were asked for", length, begin);
    if ((entries[i + 1] & ~known) != 0)
      fail ("an extent at %" PRIu64 " has the flags 0x%" PRIx32, offset,
            entries[i + 1]);
    if (entries[i + 1] != 0)
      expect_zeros (disk, n, offset, entries[i + 1]);
    offset += n;
  }
}

struct extents_so_far {
  struct disk *disk;
  uint64_t length;              /* of the request */
  uint64_t offset;              /* of what comes next */
  uint64_t zero;                /* bytes */
};

static int
take_extents (void *opaque, const char *context, uint64_t offset,
              uint32_t *entries, size_t nr_entries, int *error)
{
  struct extents_so_far *so_far = opaque;

  (void) context;
  (void) error;
  disk_expect_extents (so_far->disk, entries, nr_entries, so_far->length,
                       offset);
  for (size_t i = 0; i < nr_entries; i += 2) {
    so_far->offset += entries[i];
    if (entries[i + 1] & LIBNBD_STATE_ZERO)
      so_far->zero += entries[i];
  }
  return 0;
}

uint64_t
disk_compare_extents (struct disk *disk, struct nbd_handle *nbd)
{
  struct extents_so_far so_far = { .disk = disk };
  nbd_extent_callback callback = {
    .callback = take_extents, .user_data = &so_far,
  };
  uint64_t before;

  while (so_far.offset < disk->size) {
    before = so_far.offset;
    so_far.length = disk->size - before < GIB ? disk->size - before : GIB;
    if (nbd_block_status (nbd, so_far.length, before, callback, 0) == -1)
      fail_nbd ("nbd_block_status");
    if (so_far.offset == before)
      fail ("no extent at %" PRIu64, before);
  }
  return so_far.zero;
}

static void
read_piece (struct nbd_handle *nbd, uint8_t *buf, uint64_t length,
            uint64_t offset)
{
  memset (buf, POISON, length);
  if (nbd_pread (nbd, buf, length, offset, 0) == -1)
    fail_nbd ("nbd_pread");
}

void
disk_compare_nbd (const struct disk *disk, struct nbd_handle *nbd,
                  uint64_t length, uint64_t offset)
{
  uint8_t *buf = malloc (PIECE);
  uint64_t n;

  if (buf == NULL)
    abort ();
  for (; length > 0; offset += n, length -= n) {
    n = length < PIECE ? length : PIECE;
    read_piece (nbd, buf, n, offset);
    disk_compare (disk, buf, n, offset, "read back");
  }
  free (buf);
}

void
disk_load_nbd (struct disk *disk, struct nbd_handle *nbd, uint64_t length,
               uint64_t offset)
{
  uint64_t n;

  for (; length > 0; offset += n, length -= n) {
    n = length < PIECE ? length : PIECE;
    read_piece (nbd, disk->answered + offset, n, offset);
    memcpy (disk->submitted + offset, disk->answered + offset, n);
  }
}

static void
settle_sector (const struct disk *disk, const uint8_t *data, uint64_t length,
               uint64_t offset, bool whole)
{
  const uint8_t *old = disk->answered + offset;
  const uint8_t *new = disk->submitted + offset;
  uint64_t i;

  if (memcmp (data, old, length) == 0 || memcmp (data, new, length) == 0)
    return;
  for (i = 0; i < length; i++) {
    if (data[i] == old[i] || (data[i] == 0 && is_loose (disk, offset + i)))
      continue;
    if (whole || data[i] != new[i])
      fail_at (disk, offset + i, data[i], "after a crash");
  }
}

void
disk_settle (struct disk *disk, struct nbd_handle *nbd,
             bool sectors_are_whole)
{
  uint8_t *buf = malloc (PIECE);
  uint64_t offset, n, i, s;

  if (buf == NULL)
    abort ();
  for (offset = 0; offset < disk->size; offset += n) {
    n = disk->size - offset < PIECE ? disk->size - offset : PIECE;
    read_piece (nbd, buf, n, offset);
    for (i = 0; i < n; i += s) {
      s = n - i < SECTOR ? n - i : SECTOR;
      settle_sector (disk, buf + i, s, offset + i, sectors_are_whole);
    }
    memcpy (disk->answered + offset, buf, n);
    memcpy (disk->submitted + offset, buf, n);
    if (disk->loose != NULL)
      memset (disk->loose + offset, 0, n);
  }
  free (buf);
}

static void
write_raw (const struct disk *disk, const char *raw)
{
  uint64_t offset, n;
  int fd = open (raw, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

  if (fd == -1)
    fail ("%s: %m", raw);
  for (offset = 0; offset < disk->size; offset += n) {
    n = disk->size - offset < PIECE ? disk->size - offset : PIECE;
    if (pwrite (fd, disk->answered + offset, n, (off_t) offset) !=
        (ssize_t) n)
      fail ("%s: %m", raw);
  }
  close (fd);
}

void
disk_compare_qemu_image (const struct disk *disk, const char *image)
{
  char *raw = format_string ("%s/model.raw", test_dir ());

  write_raw (disk, raw);
  run_ok ("qemu-img compare -F raw %s %s", image, raw);
  unlink (raw);
  free (raw);
}

void
disk_compare_qemu (const struct disk *disk, const char *path)
{
  char *image = format_string ("-f parallels %s", path);

  disk_compare_qemu_image (disk, image);
  free (image);
}
