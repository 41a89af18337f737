/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Makes image files and judges them; see image.h.  The judge reads the format
 * from its description and in the plainest way, for qemu-img does not see two
 * entries that name one cluster, nor an entry that points into the BAT.
 */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fiemap.h>
#include <linux/fs.h>

#include "harness.h"
#include "image.h"

#define SECTOR 512u
#define HEADER_SIZE 64u

struct header {
  char signature[16];
  uint32_t type, heads, cylinders, cluster_sectors, nr_clusters;
  uint32_t size_low, size_high;
  uint32_t in_use, data_sectors, flags;
  uint64_t extension;
} __attribute__ ((__packed__));

_Static_assert (sizeof (struct header) == HEADER_SIZE, "header");

static char *
unpack (const struct image_spec *spec)
{
  char *path = test_path (spec->name);

  test_requires ("zstd");
  run_ok ("cd %s && tar --zstd -xSf %s/corpus.tar.zst corpus/%s && "
          "mv corpus/%s %s && chmod 644 %s",
          test_dir (), test_env ("PLOOP_CORPUS"), spec->corpus_file,
          spec->corpus_file, path, path);
  return path;
}

char *
image_make (const struct image_spec *spec)
{
  char *path = test_path (spec->name);

  unlink (path);
  switch (spec->maker) {
  case MADE_BY_PLOOP_IMG:
    run_ok ("%s create --version=%u --cluster-size=%" PRIu64 " %s %" PRIu64,
            test_env ("PLOOP_IMG"), spec->version, spec->cluster_size, path,
            spec->size);
    return path;
  case MADE_BY_QEMU:
    test_requires ("qemu-img");
    run_ok ("qemu-img create -q -f parallels -o cluster_size=%" PRIu64
            " %s %" PRIu64,
            spec->cluster_size, path, spec->size);
    return path;
  case FROM_CORPUS:
    free (path);
    return unpack (spec);
  }
  abort ();
}

static int
compare_offsets (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return (*x > *y) - (*x < *y);
}

static void
check_offsets (const char *path, const struct image_state *state,
               uint64_t *offsets)
{
  uint32_t i;

  qsort (offsets, state->nr_allocated, sizeof *offsets, compare_offsets);
  for (i = 0; i < state->nr_allocated; i++) {
    if (offsets[i] < state->data_offset)
      fail ("%s: an entry points to byte %" PRIu64 ", before the data area "
            "at %" PRIu64,
            path, offsets[i], state->data_offset);
    if (offsets[i] + state->cluster_size > state->file_size)
      fail ("%s: the cluster at byte %" PRIu64 " ends past the end of the "
            "file at %" PRIu64,
            path, offsets[i], state->file_size);
    if (i > 0 && offsets[i] - offsets[i - 1] < state->cluster_size)
      fail ("%s: two entries share the cluster at byte %" PRIu64, path,
            offsets[i]);
  }
}

static void
read_header (const char *path, const struct header *h,
             struct image_state *state)
{
  uint64_t unit;

  if (memcmp (h->signature, "WithoutFreeSpace", 16) == 0)
    state->version = 1;
  else if (memcmp (h->signature, "WithouFreSpacExt", 16) == 0)
    state->version = 2;
  else
    fail ("%s: the signature is gone", path);
  state->cluster_size = (uint64_t) le32toh (h->cluster_sectors) * SECTOR;
  state->nr_clusters = le32toh (h->nr_clusters);
  state->size = le32toh (h->size_low);
  if (state->version == 2)
    state->size |= (uint64_t) le32toh (h->size_high) << 32;
  state->size *= SECTOR;
  state->in_use = le32toh (h->in_use);
  state->flags = le32toh (h->flags);
  state->data_offset = (uint64_t) le32toh (h->data_sectors) * SECTOR;
  /* qemu from 8.1 on: one that is not that of a cluster, with odd cluster sizes. */
  unit = state->version == 1 ? SECTOR : state->cluster_size;
  if (state->data_offset % unit != 0)
    state->data_offset = 0;
  if (state->data_offset == 0) {
    state->data_offset = HEADER_SIZE + UINT64_C (4) * state->nr_clusters;
    state->data_offset = (state->data_offset + unit - 1) / unit * unit;
  }
}

static bool
is_zeros (const uint8_t *bytes, uint64_t length)
{
  return bytes[0] == 0 && memcmp (bytes, bytes + 1, length - 1) == 0;
}

/* What the file has between and behind clusters, whose OFFSETS are sorted.  One that is
 * not made of the file system's blocks cannot become a hole: zeros will do.
 */
static void
count_leaks (const char *path, struct image_state *state,
             const uint64_t *offsets, const uint8_t *map)
{
  const bool has_blocks = (state->cluster_size | state->data_offset) % 4096
                          == 0;
  const uint64_t size = state->cluster_size;
  uint64_t at = state->data_offset;
  int fd = open (path, O_RDONLY | O_CLOEXEC);

  if (fd == -1)
    fail ("%s: %m", path);
  state->nr_leaked = state->nr_holes = 0;
  for (uint32_t i = 0; i <= state->nr_allocated; i++) {
    const uint64_t end =
      i < state->nr_allocated ? offsets[i] : state->file_size;

    for (; at + size <= end; at += size) {
      const off_t data = lseek (fd, (off_t) at, SEEK_DATA);

      state->nr_leaked++;
      state->nr_holes += data == -1 || (uint64_t) data >= at + size
                         || (!has_blocks && is_zeros (map + at, size));
    }
    at = end + size;
  }
  close (fd);
}

/* What the header and the BAT say; by cluster in *IN_BAT, when it is wanted. */
static void
read_image (const char *path, struct image_state *state, bool **in_bat)
{
  const struct header *header;
  const uint32_t *bat;
  uint64_t bat_end, *offsets, unit;
  const uint8_t *map;
  struct stat st;
  uint32_t i;
  int fd = open (path, O_RDONLY | O_CLOEXEC);

  if (fd == -1 || fstat (fd, &st) == -1)
    fail ("%s: %m", path);
  if (st.st_size < (off_t) HEADER_SIZE)
    fail ("%s: only %jd bytes are left", path, (intmax_t) st.st_size);
  map = mmap (NULL, (size_t) st.st_size, PROT_READ, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED)
    fail ("mmap %s: %m", path);
  close (fd);

  header = (const struct header *) (const void *) map;
  read_header (path, header, state);
  state->file_size = (uint64_t) st.st_size;
  bat_end = HEADER_SIZE + UINT64_C (4) * state->nr_clusters;
  if (bat_end > state->file_size || bat_end > state->data_offset)
    fail ("%s: the BAT ends at %" PRIu64 ", the data begins at %" PRIu64
          ", the file ends at %" PRIu64,
          path, bat_end, state->data_offset, state->file_size);

  bat = (const uint32_t *) (const void *) (map + HEADER_SIZE);
  unit = state->version == 1 ? SECTOR : state->cluster_size;
  offsets = malloc (sizeof *offsets * (state->nr_clusters + UINT64_C (1)));
  if (offsets == NULL)
    abort ();
  if (in_bat != NULL) {
    *in_bat = calloc (state->nr_clusters + UINT64_C (1), sizeof **in_bat);
    if (*in_bat == NULL)
      abort ();
  }
  state->nr_allocated = 0;
  for (i = 0; i < state->nr_clusters; i++)
    if (bat[i] != 0) {
      offsets[state->nr_allocated++] = le32toh (bat[i]) * unit;
      if (in_bat != NULL)
        (*in_bat)[i] = true;
    }
  for (; bat_end < state->data_offset; bat_end++)
    if (bat_end < state->file_size && map[bat_end] != 0)
      fail ("%s: byte %" PRIu64 " between the BAT and the data is not 0",
            path, bat_end);
  check_offsets (path, state, offsets);
  count_leaks (path, state, offsets, map);
  free (offsets);
  munmap ((void *) (uintptr_t) map, (size_t) st.st_size);
}

void
image_read (const char *path, struct image_state *state)
{
  read_image (path, state, NULL);
}

bool *
image_read_map (const char *path, struct image_state *state)
{
  bool *in_bat;

  read_image (path, state, &in_bat);
  return in_bat;
}

uint64_t
image_usage (const char *path)
{
  struct stat st;

  if (stat (path, &st) == -1)
    fail ("%s: %m", path);
  return (uint64_t) st.st_blocks * 512;
}

#define NR_EXTENTS 128

int64_t
image_holes (const char *path, uint64_t from)
{
  struct fiemap *map =
    calloc (1, sizeof *map + NR_EXTENTS * sizeof map->fm_extents[0]);
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  int64_t holes = 0;

  if (map == NULL)
    abort ();
  if (fd == -1)
    fail ("%s: %m", path);
  do {
    map->fm_start = from;
    map->fm_length = FIEMAP_MAX_OFFSET - from;
    map->fm_flags = FIEMAP_FLAG_SYNC;
    map->fm_extent_count = NR_EXTENTS;
    if (ioctl (fd, FS_IOC_FIEMAP, map) == -1) {
      if (errno != EOPNOTSUPP && errno != ENOTTY)
        fail ("FIEMAP %s: %m", path);
      holes = -1;
      break;
    }
    for (uint32_t i = 0; i < map->fm_mapped_extents; i++) {
      const struct fiemap_extent *e = &map->fm_extents[i];

      if (e->fe_logical > from)
        holes += (int64_t) (e->fe_logical - from);
      from = e->fe_logical + e->fe_length;
    }
  } while (map->fm_mapped_extents == NR_EXTENTS);
  close (fd);
  free (map);
  return holes;
}

uint32_t
image_in_use (const char *path)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  uint32_t value;

  if (fd == -1 || pread (fd, &value, sizeof value, 44) != sizeof value)
    fail ("%s: %m", path);
  close (fd);
  return le32toh (value);
}

/* qemu from 8.1 on wants a data offset in the header where the format has none, and
 * calls its absence one error.
 */
static int
run_qemu_img_check (const char *path)
{
  return run ("out=$(qemu-img check -f parallels %s 2>&1); status=$?; "
              "echo \"$out\"; "
              "case $out in *'data_off field has incorrect value'*"
              "'1 errors were found'*) status=0 ;; esac; exit $status", path);
}

static void
run_checkers (const char *path, bool leaks_allowed)
{
  int status = run_qemu_img_check (path);

  if (status != 0 && !(leaks_allowed && status == 3))
    fail ("qemu-img check %s: exit status %d", path, status);
  status = run ("%s check %s", test_env ("PLOOP_IMG"), path);
  if (status != 0 && !(leaks_allowed && status == 3))
    fail ("ploop-img check %s: exit status %d", path, status);
}

void
image_expect_clean (const char *path, uint64_t max_leaked,
                    struct image_state *state)
{
  image_read (path, state);
  if (state->in_use != IN_USE_CLOSED)
    fail ("%s: in use is 0x%x after an orderly end", path, state->in_use);
  if (state->nr_leaked - state->nr_holes > max_leaked)
    fail ("%s: %" PRIu64 " clusters of the file are leaked after an orderly "
          "end",
          path, state->nr_leaked - state->nr_holes);
  run_checkers (path, state->nr_leaked > 0);
}

void
image_expect_sound (const char *path, struct image_state *state)
{
  const uint32_t closed = 0;
  char *copy = format_string ("%s.copy", path);
  int fd;

  image_read (path, state);
  run_ok ("cp --sparse=always %s %s", path, copy);
  fd = open (copy, O_WRONLY | O_CLOEXEC);
  if (fd == -1 || pwrite (fd, &closed, sizeof closed, 44) != sizeof closed)
    fail ("%s: %m", copy);
  close (fd);
  run_checkers (copy, true);
  unlink (copy);
  free (copy);
}
