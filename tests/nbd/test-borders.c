/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that no border is off by one: every pair of a start and an end around
 * the borders of sectors, 4 KiB blocks, clusters, BAT pages and the disk, each
 * written (and, in a second sweep, zeroed) where nothing is allocated yet, then
 * again where everything is, and read back with a margin on both sides.
 *
 * The sweep within clusters gives each pair a few fresh clusters of its own.
 * The one around BAT pages gives each pair a BAT page of its own; that takes
 * large disks, of which the model touches little.  Nothing here is random.
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "harness.h"
#include "image.h"
#include "server.h"

/* The BAT begins at byte 64, so the page borders of the file and those that
 * count entries from 0 lie 16 entries apart.
 */
#define ENTRIES_OF_A_PAGE 1024
#define ENTRIES_OF_THE_HEADER 16

/* How much is read around what was written. */
#define MARGIN 5000

struct sweep {
  struct disk *disk;
  struct nbd_handle *nbd;
  uint8_t *buf;
  uint64_t buf_size;
  uint64_t nr_done;
};

/* Bytes that say where they belong: no two places nearby look alike. */
static void
fill (uint8_t *buf, uint64_t length, uint64_t offset, uint64_t generation)
{
  uint64_t i, word;

  for (i = 0; i < length; i++) {
    word = (offset + i) / 8 * UINT64_C (0x9e3779b97f4a7c15) + generation;
    word ^= word >> 29;
    buf[i] = (uint8_t) (1 | word >> (8 * ((offset + i) % 8)));
  }
}

static void
need_buffer (struct sweep *sweep, uint64_t size)
{
  if (size <= sweep->buf_size)
    return;
  free (sweep->buf);
  sweep->buf = malloc (size);
  sweep->buf_size = size;
  if (sweep->buf == NULL)
    abort ();
}

static void
read_around (struct sweep *sweep, uint64_t start, uint64_t end)
{
  const struct disk *disk = sweep->disk;
  uint64_t low = start < MARGIN ? 0 : start - MARGIN;
  uint64_t high = disk->size - end < MARGIN ? disk->size : end + MARGIN;

  need_buffer (sweep, high - low);
  memset (sweep->buf, 0xEE, high - low);
  if (nbd_pread (sweep->nbd, sweep->buf, high - low, low, 0) == -1)
    fail_nbd ("nbd_pread");
  disk_compare (disk, sweep->buf, high - low, low, "after a write");
  /* The range itself, for a read has borders too. */
  memset (sweep->buf, 0xEE, end - start);
  if (nbd_pread (sweep->nbd, sweep->buf, end - start, start, 0) == -1)
    fail_nbd ("nbd_pread");
  disk_compare (disk, sweep->buf, end - start, start, "read");
}

static void
write_and_check (struct sweep *sweep, uint64_t start, uint64_t end)
{
  sweep->nr_done++;
  need_buffer (sweep, end - start);
  fill (sweep->buf, end - start, start, sweep->nr_done);
  disk_submit (sweep->disk, sweep->buf, end - start, start);
  if (nbd_pwrite (sweep->nbd, sweep->buf, end - start, start, 0) == -1)
    fail ("write of %" PRIu64 " bytes at %" PRIu64 ": %s", end - start,
          start, nbd_get_error ());
  disk_answer (sweep->disk, end - start, start);
  read_around (sweep, start, end);
}

static void
zero_and_check (struct sweep *sweep, uint64_t start, uint64_t end)
{
  uint32_t flags = ++sweep->nr_done % 2 ? LIBNBD_CMD_FLAG_NO_HOLE : 0;

  disk_submit (sweep->disk, NULL, end - start, start);
  if (nbd_zero (sweep->nbd, end - start, start, flags) == -1)
    fail ("zero of %" PRIu64 " bytes at %" PRIu64 ": %s", end - start, start,
          nbd_get_error ());
  disk_answer (sweep->disk, end - start, start);
  read_around (sweep, start, end);
}

/* Zero where nothing is, write, zero and write again where something is. */
static void
try_all_ways (struct sweep *sweep, uint64_t start, uint64_t end)
{
  if (start >= end || end > sweep->disk->size)
    return;
  zero_and_check (sweep, start, end);
  write_and_check (sweep, start, end);
  zero_and_check (sweep, start, end);
  write_and_check (sweep, start, end);
}

/* Every border of a cluster of SIZE bytes, sorted; returns how many. */
static size_t
cluster_borders (uint64_t size, uint64_t *borders)
{
  const uint64_t middle[] = { 0, 512, 4096, size / 2, size - 4096,
                              size - 512, size };
  size_t i, j, n = 0;
  uint64_t b;

  for (i = 0; i < ARRAY_SIZE (middle); i++)
    for (j = 0; j < 3; j++) {
      b = middle[i] + j - 1;
      if (b <= size + 1)        /* also refuses -1 */
        borders[n++] = b;
    }
  return n;
}

/* Every pair within a cluster and across its end.  Starts lie in the first
 * cluster of each group, ends in the first, second or third.
 */
static void
sweep_clusters (struct sweep *sweep)
{
  uint64_t cluster = sweep->disk->cluster_size;
  uint64_t borders[21], base, start, end;
  size_t n = cluster_borders (cluster, borders);
  uint64_t group = 0, nr_groups = sweep->disk->size / (4 * cluster);
  size_t s, e, k;

  for (s = 0; s < n; s++) {
    for (e = 0; e < n; e++) {
      for (k = 0; k < 2; k++) {
        start = borders[s];
        end = borders[e] + k * cluster;
        if (start >= cluster || end <= start || (k == 1 && e % 3 == 0))
          continue;
        base = group++ % nr_groups * 4 * cluster;
        try_all_ways (sweep, base + start, base + end);
      }
    }
  }
}

/* Every pair around the disk's end and the border of its last cluster. */
static void
sweep_end (struct sweep *sweep)
{
  uint64_t size = sweep->disk->size;
  uint64_t last = (size - 1) / sweep->disk->cluster_size *
                  sweep->disk->cluster_size;
  const uint64_t points[] = {
    last - 4096, last - 512, last - 1, last, last + 1, last + 512,
    size - 4097, size - 4096, size - 513, size - 512, size - 511, size - 2,
    size - 1, size,
  };
  size_t i, j;

  for (i = 0; i < ARRAY_SIZE (points); i++)
    for (j = 0; j < ARRAY_SIZE (points); j++)
      if (points[i] < size && points[j] > points[i])
        try_all_ways (sweep, points[i], points[j]);
}

/* Every pair around the border of a BAT page, each on a page of its own; both
 * ways to count pages.  Starts at page FIRST, stops at LAST.
 */
static void
sweep_bat_pages (struct sweep *sweep, uint64_t first, uint64_t last)
{
  uint64_t cluster = sweep->disk->cluster_size;
  uint64_t page = first, entry, border;
  int64_t s, e;

  for (s = -3; s <= 3; s++) {
    for (e = s; e <= 3; e++) {
      for (unsigned from_file = 0; from_file < 2; from_file++) {
        entry = page * ENTRIES_OF_A_PAGE;
        if (from_file)
          entry -= ENTRIES_OF_THE_HEADER;
        border = entry * cluster;
        /* -3, 3: a cluster away; -2, 2: a sector; -1, 1: a byte. */
        const uint64_t away[] = { 0, 1, 512, cluster };
        uint64_t start = s < 0 ? border - away[-s] : border + away[s];
        uint64_t end = e < 0 ? border - away[-e] : border + away[e];
        if (++page > last)
          page = first;
        try_all_ways (sweep, start, end);
      }
    }
  }
}

static struct server *
begin_sweep (struct sweep *sweep, const struct image_spec *spec,
             const char *path)
{
  struct server *server;

  memset (sweep, 0, sizeof *sweep);
  sweep->disk = disk_new (spec->size, spec->cluster_size);
  if (spec->maker == FROM_CORPUS)
    disk_load (sweep->disk, path);
  server = server_start (path, 0);
  sweep->nbd = server_connect (server);
  return server;
}

static void
end_sweep (struct sweep *sweep, struct server *server,
           const struct image_spec *spec, const char *path)
{
  struct image_state state;

  if (nbd_flush (sweep->nbd, 0) == -1)
    fail_nbd ("nbd_flush");
  if (spec->size < GIB)
    disk_compare_nbd (sweep->disk, sweep->nbd, spec->size, 0);
  server_disconnect (sweep->nbd);
  server_stop (server);
  image_expect_clean (path, 0, &state);
  if (spec->size < GIB)
    disk_compare_qemu (sweep->disk, path);
  say ("%s: %" PRIu64 " requests, %u of %u clusters allocated", spec->name,
       sweep->nr_done, state.nr_allocated, state.nr_clusters);
  disk_free (sweep->disk);
  free (sweep->buf);
}

static void
test_clusters (const struct image_spec *spec)
{
  char *path = image_make (spec);
  struct sweep sweep;
  struct server *server = begin_sweep (&sweep, spec, path);

  sweep_clusters (&sweep);
  sweep_end (&sweep);
  end_sweep (&sweep, server, spec, path);
  free (path);
}

/* LAST is the number of the last BAT page whose border the disk has. */
static void
test_bat_pages (const struct image_spec *spec)
{
  char *path = image_make (spec);
  uint64_t last = spec->size / spec->cluster_size / ENTRIES_OF_A_PAGE - 1;
  uint64_t first = last > 60 ? last - 60 : 1;
  struct sweep sweep;
  struct server *server = begin_sweep (&sweep, spec, path);

  if (first > 1)
    sweep_bat_pages (&sweep, 1, 1);
  sweep_bat_pages (&sweep, first, last);
  sweep_end (&sweep);
  end_sweep (&sweep, server, spec, path);
  free (path);
}

static const struct image_spec cluster_specs[] = {
  { "v2-32k", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 34 * MIB + 5 * 512, NULL },
  { "v1-32k", MADE_BY_PLOOP_IMG, 1, 32 * KIB, 34 * MIB + 4608, NULL },
  { "v2-64k", MADE_BY_PLOOP_IMG, 2, 64 * KIB, 62 * MIB - 512, NULL },
  { "v1-1m", MADE_BY_PLOOP_IMG, 1, MIB, 80 * MIB + 3 * 4096, NULL },
  { "q-4096", MADE_BY_QEMU, 2, 4096, 12 * MIB + 512, NULL },
  { "q-258048", MADE_BY_QEMU, 2, 258048, 64 * MIB + 512, NULL },
  { "v1-63", FROM_CORPUS, 1, 63 * 512, 8 * MIB, "e-v1-63/i.hds" },
};

/* Cluster numbers near 2^24, byte offsets around 2^31, 2^32, 2^41 and 2^44. */
static const struct image_spec bat_specs[] = {
  { "q-512-pages", MADE_BY_QEMU, 2, 512, 70 * 1024 * 512 + 1024, NULL },
  { "v1-32k-pages", MADE_BY_PLOOP_IMG, 1, 32 * KIB, 4 * GIB + 512, NULL },
  { "v2-32k-pages", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 512 * GIB + 512, NULL },
  { "v1-1m-pages", MADE_BY_PLOOP_IMG, 1, MIB, 2 * TIB - 16 * MIB - 512, NULL },
  { "v2-1m-pages", MADE_BY_PLOOP_IMG, 2, MIB, 16 * TIB - 512, NULL },
};

int
main (void)
{
  size_t i;

  test_begin ("test-borders");
  test_requires ("qemu-img");
  for (i = 0; i < ARRAY_SIZE (cluster_specs); i++)
    if (chosen (i, ARRAY_SIZE (cluster_specs)))
      test_clusters (&cluster_specs[i]);
  for (i = 0; i < ARRAY_SIZE (bat_specs); i++)
    if (chosen (i, ARRAY_SIZE (bat_specs)))
      test_bat_pages (&bat_specs[i]);
  return test_end ();
}
