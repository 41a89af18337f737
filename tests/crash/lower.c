/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Deltas that are only read: see lower.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "lower.h"
#include "rules.h"

#define SECTOR 512u
#define MAX_DELTAS (LOWER_MAX_IMAGES + 1)

struct file {
  char *path;
  uint8_t *bytes;
  uint64_t size;
  bool raw;
  struct reader reader;         /* of an image */
  bool *has;                    /* by cluster, of a raw disk */
};

struct lower {
  uint32_t cluster_sectors, nr_sectors;
  uint64_t nr_clusters;
  unsigned nr;
  struct file files[MAX_DELTAS];        /* from the top down */
  const char *bases[MAX_DELTAS + 1];
  bool *covered;
};

static bool
chance (GRand *random, unsigned percent)
{
  return (unsigned) g_rand_int_range (random, 0, 100) < percent;
}

static uint32_t
clusters_of (const struct lower *lower, uint32_t nr_sectors)
{
  return (nr_sectors + lower->cluster_sectors - 1) / lower->cluster_sectors;
}

/* ---- Making ------------------------------------------------------------ */

/* Fill the cluster that begins at FIRST, up to the sector END; some of it is
 * zeros.
 */
static void
fill_cluster (const struct lower *lower, uint64_t first, uint64_t end,
              uint8_t *bytes, GRand *random)
{
  const uint64_t number = rules_new_number ();

  for (uint64_t i = 0; i < lower->cluster_sectors && first + i < end; i++)
    if (!chance (random, 10))
      rules_stamp (bytes + i * SECTOR, first + i, number);
}

/* Which cell of the file each cluster gets: every one has another. */
static uint32_t *
shuffled (uint32_t nr, GRand *random)
{
  uint32_t *cells = g_new (uint32_t, nr);

  for (uint32_t i = 0; i < nr; i++) {
    const uint32_t j = (uint32_t) g_rand_int_range (random, 0, (gint32) i + 1);

    cells[i] = cells[j];
    cells[j] = i;
  }
  return cells;
}

static bool
is_filled (const struct lower_shape *shape, uint64_t cluster, GRand *random)
{
  return (shape->end == 0 || cluster < shape->end)
         && chance (random, shape->filled);
}

static void
make_image (const struct lower *lower, const struct lower_shape *lower_shape,
            struct file *file, GRand *random)
{
  const uint64_t cluster = (uint64_t) lower->cluster_sectors * SECTOR;
  const uint32_t longer[] = { lower->nr_sectors, lower->nr_sectors,
                              lower->nr_sectors * 2 / 3,
                              lower->nr_sectors + 100 };
  struct reader_shape shape = {
    .version = chance (random, 30) ? 1 : 2,
    .cluster_sectors = lower->cluster_sectors,
    .nr_sectors = longer[g_rand_int_range (random, 0, 4)],
  };
  g_autofree uint32_t *cells = NULL;
  g_autofree uint8_t *header = NULL;
  g_autofree char *fault = NULL;
  uint64_t start;

  shape.nr_entries = clusters_of (lower, shape.nr_sectors);
  shape.data_sectors = (64 + 4 * shape.nr_entries + SECTOR - 1) / SECTOR;
  shape.data_sectors =
    clusters_of (lower, shape.data_sectors) * lower->cluster_sectors;
  header = reader_make (&shape, &start);
  file->size = start + shape.nr_entries * cluster;
  file->bytes = g_malloc0 (file->size);
  memcpy (file->bytes, header, start);
  cells = shuffled (shape.nr_entries, random);
  for (uint32_t i = 0; i < shape.nr_entries; i++)
    if (is_filled (lower_shape, i, random)) {
      const uint64_t offset = start + cells[i] * cluster;

      reader_put_entry (&shape, file->bytes, i, offset);
      fill_cluster (lower, (uint64_t) i * lower->cluster_sectors,
                    shape.nr_sectors, file->bytes + offset, random);
    }
  fault = reader_open (&file->reader, file->bytes, file->size);
  g_assert_null (fault);
}

static void
make_raw (const struct lower *lower, const struct lower_shape *shape,
          struct file *file, GRand *random)
{
  const uint32_t nr =
    chance (random, 50)
      ? lower->nr_sectors
      : (uint32_t) g_rand_int_range (random, (gint32) lower->nr_sectors / 2,
                                     (gint32) lower->nr_sectors);

  file->raw = true;
  file->size = (uint64_t) nr * SECTOR;
  file->bytes = g_malloc0 (file->size);
  for (uint32_t i = 0; i < clusters_of (lower, nr); i++)
    if (is_filled (shape, i, random)) {
      const uint64_t first = (uint64_t) i * lower->cluster_sectors;

      fill_cluster (lower, first, nr, file->bytes + first * SECTOR, random);
    }
}

/* Zeros as holes. */
static void
save (const struct file *file)
{
  static const uint8_t zeroes[4096];
  const int fd = open (file->path, O_RDWR | O_CREAT | O_EXCL, 0600);

  if (fd == -1 || ftruncate (fd, (off_t) file->size) == -1)
    g_error ("%s: %s", file->path, g_strerror (errno));
  for (uint64_t at = 0; at < file->size; at += sizeof zeroes) {
    const size_t n = (size_t) MIN (file->size - at, sizeof zeroes);

    if (memcmp (file->bytes + at, zeroes, n) != 0
        && pwrite (fd, file->bytes + at, n, (off_t) at) != (ssize_t) n)
      g_error ("%s: %s", file->path, g_strerror (errno));
  }
  close (fd);
}

/* What a raw disk has is what is not a hole of its file. */
static void
find_data (const struct lower *lower, struct file *file)
{
  const off_t cluster = (off_t) lower->cluster_sectors * SECTOR;
  const int fd = open (file->path, O_RDONLY);
  off_t data = 0, hole;

  file->has = g_new0 (bool, lower->nr_clusters);
  while ((data = lseek (fd, data, SEEK_DATA)) >= 0) {
    hole = lseek (fd, data, SEEK_HOLE);
    for (off_t c = data / cluster; c * cluster < hole; c++)
      file->has[c] = true;
    data = hole;
  }
  close (fd);
}

static void
add_file (struct lower *lower, const char *directory, bool raw,
          const struct lower_shape *shape, GRand *random)
{
  struct file *file = &lower->files[lower->nr];
  g_autofree char *name = g_strdup_printf ("lower-%u", lower->nr);

  file->path = g_build_filename (directory, name, NULL);
  if (raw)
    make_raw (lower, shape, file, random);
  else
    make_image (lower, shape, file, random);
  save (file);
  if (raw)
    find_data (lower, file);
  lower->bases[lower->nr++] = file->path;
}

/* ---- Reading ----------------------------------------------------------- */

static bool
file_has (const struct lower *lower, const struct file *file,
          uint64_t cluster)
{
  if (file->raw)
    return file->has[cluster];
  return cluster < file->reader.shape.nr_entries
         && reader_sector (&file->reader, cluster * lower->cluster_sectors);
}

static bool
is_covered (const struct lower *lower, uint64_t cluster)
{
  for (unsigned i = 0; i < lower->nr; i++)
    if (file_has (lower, &lower->files[i], cluster))
      return true;
  return false;
}

struct lower *
lower_new (const char *directory, const struct lower_shape *shape,
           uint32_t cluster_sectors, uint32_t nr_sectors, GRand *random)
{
  struct lower *lower = g_new0 (struct lower, 1);

  lower->cluster_sectors = cluster_sectors;
  lower->nr_sectors = nr_sectors;
  lower->nr_clusters = clusters_of (lower, nr_sectors);
  for (unsigned i = 0; i < shape->nr_images; i++)
    add_file (lower, directory, false, shape, random);
  if (shape->raw_base)
    add_file (lower, directory, true, shape, random);
  lower->covered = g_new0 (bool, lower->nr_clusters);
  for (uint64_t i = 0; i < lower->nr_clusters; i++)
    lower->covered[i] = is_covered (lower, i);
  return lower;
}

void
lower_free (struct lower *lower)
{
  if (!lower)
    return;
  for (unsigned i = 0; i < lower->nr; i++) {
    unlink (lower->files[i].path);
    g_free (lower->files[i].path);
    g_free (lower->files[i].bytes);
    g_free (lower->files[i].has);
  }
  g_free (lower->covered);
  g_free (lower);
}

const char *const *
lower_bases (const struct lower *lower)
{
  return lower ? lower->bases : NULL;
}

const bool *
lower_covered (const struct lower *lower)
{
  return lower ? lower->covered : NULL;
}

bool
lower_has (const struct lower *lower, uint64_t cluster)
{
  return lower && lower->covered[cluster];
}

const uint8_t *
lower_merged (const struct lower *lower, const struct reader *top,
              uint64_t sector)
{
  static const uint8_t zeroes[SECTOR];
  const uint8_t *bytes = top ? reader_sector (top, sector) : NULL;

  if (bytes)
    return bytes;
  for (unsigned i = 0; lower && i < lower->nr; i++) {
    const struct file *file = &lower->files[i];

    if (!file_has (lower, file, sector / lower->cluster_sectors))
      continue;
    if (!file->raw)
      return reader_sector (&file->reader, sector);
    return sector * SECTOR < file->size ? file->bytes + sector * SECTOR
                                        : zeroes;
  }
  return zeroes;
}

void
lower_check_untouched (const struct lower *lower)
{
  for (unsigned i = 0; lower && i < lower->nr; i++) {
    const struct file *file = &lower->files[i];
    g_autofree char *bytes = NULL;
    gsize size;

    if (!g_file_get_contents (file->path, &bytes, &size, NULL)
        || size != file->size || memcmp (bytes, file->bytes, size) != 0)
      rules_break ("rule 8: %s was written to", file->path);
  }
}
