/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Writing a delta as an image file (or as a raw one), byte by byte as the format's
 * description has it.
 *
 * The data area is a row of cells, each as large as a cluster.  First it is decided
 * who is in which cell: a cluster of the disk, the extension, or nobody.
 */

#include <config.h>

#include <string.h>
#include <unistd.h>

#include "disk.h"

#define EXTENSION_MAGIC G_GUINT64_CONSTANT (0xAB234CEF23DCEA87)
#define BITMAP_MAGIC G_GUINT64_CONSTANT (0x20385FAE252CB34A)

/* Who is in a cell; a number from 0 on is a cluster of the disk. */
enum {
  CELL_LEAKED = -1,             /* data that nothing refers to */
  CELL_FREE = -2,               /* a hole that nothing refers to */
  CELL_EXTENSION = -3,
  CELL_BITS = -4,               /* of the first bitmap; of the second, -5 */
};

struct image {
  struct delta *delta;
  GRand *dice;
  const char *path;
  int fd;
  GArray *cells;                /* of gint32 */
  uint64_t data_start;          /* bytes */
  uint32_t cluster_size;        /* bytes */
};

static void
put32 (uint8_t *bytes, uint32_t value)
{
  value = GUINT32_TO_LE (value);
  memcpy (bytes, &value, sizeof value);
}

static void
put64 (uint8_t *bytes, uint64_t value)
{
  value = GUINT64_TO_LE (value);
  memcpy (bytes, &value, sizeof value);
}

/* ---- Cells ------------------------------------------------------------- */

static gint32
cell_at (const struct image *image, guint index)
{
  return g_array_index (image->cells, gint32, index);
}

static void
swap_cells (const struct image *image, guint a, guint b)
{
  const gint32 cell = cell_at (image, a);

  g_array_index (image->cells, gint32, a) = cell_at (image, b);
  g_array_index (image->cells, gint32, b) = cell;
}

/* Any cell from FIRST on. */
static guint
any_cell (const struct image *image, guint first)
{
  return dice_range (image->dice, first, image->cells->len - 1);
}

static void
order_cells (const struct image *image)
{
  const guint nr = image->cells->len;

  if (nr < 2)
    return;
  switch (image->delta->order) {
  case HOST_IN_ORDER:
    return;
  case HOST_REVERSED:
    for (guint i = 0; i < nr / 2; i++)
      swap_cells (image, i, nr - 1 - i);
    return;
  case HOST_SHUFFLED:
    for (guint i = 0; i < nr; i++)
      swap_cells (image, i, any_cell (image, i));
    return;
  case HOST_FRAGMENTED:
    for (guint i = 0; i < 1 + nr / 8; i++)
      swap_cells (image, any_cell (image, 0), any_cell (image, 0));
    return;
  }
}

/* Never behind the last cell, for then it would be a tail. */
static void
insert_cell (const struct image *image, gint32 cell)
{
  g_array_insert_val (image->cells, any_cell (image, 0), cell);
}

static void
insert_others (const struct image *image)
{
  const struct delta *delta = image->delta;

  for (unsigned i = 0; i < delta->nr_leaked; i++)
    insert_cell (image, CELL_LEAKED);
  for (unsigned i = 0; i < delta->nr_free; i++)
    insert_cell (image, CELL_FREE);
  for (unsigned i = 0; i < delta->nr_bitmaps; i++)
    if (delta->bitmaps[i].is_mixed)
      insert_cell (image, CELL_BITS - (gint32) i);
  if (delta->nr_bitmaps > 0)
    insert_cell (image, CELL_EXTENSION);
}

/* The bytes of CLUSTER that its disk has. */
static uint32_t
bytes_in (const struct delta *delta, uint32_t cluster)
{
  const uint32_t first = cluster * delta->cluster_sectors;

  return MIN (delta->size_sectors - first, delta->cluster_sectors) * SECTOR;
}

static const uint8_t *
content_of (const struct delta *delta, uint32_t cluster)
{
  return delta->content + (size_t) cluster * delta->cluster_sectors * SECTOR;
}

/* How many bytes of CLUSTER are left when zeros at its end are cut off; one sector
 * has to be there.
 */
static uint32_t
bytes_before_zeros (const struct delta *delta, uint32_t cluster)
{
  const uint8_t *content = content_of (delta, cluster);
  uint32_t length = bytes_in (delta, cluster);

  while (length > SECTOR && content[length - 1] == 0)
    length--;
  return (length + SECTOR - 1) / SECTOR * SECTOR;
}

/* Put a cluster that ends with zeros last, if there is one. */
static void
put_cuttable_last (const struct image *image)
{
  const struct delta *delta = image->delta;
  const guint last = image->cells->len - 1;

  for (guint i = 0; i < image->cells->len; i++)
    if (bytes_before_zeros (delta, (uint32_t) cell_at (image, i))
        < image->cluster_size) {
      swap_cells (image, i, last);
      return;
    }
}

static void
lay_out (struct image *image)
{
  struct delta *delta = image->delta;

  for (uint32_t c = 0; c < delta->nr_clusters; c++)
    if (delta->holds[c] == HOLDS_DATA || delta->holds[c] == HOLDS_HOLE) {
      const gint32 cell = (gint32) c;

      g_array_append_val (image->cells, cell);
    }
  delta->nr_allocated = image->cells->len;
  if (image->cells->len == 0) {
    delta->nr_leaked = delta->nr_free = 0;
    return;
  }
  order_cells (image);
  if (delta->tail == TAIL_CUT)
    put_cuttable_last (image);
  insert_others (image);
}

/* ---- Header and BAT ---------------------------------------------------- */

static uint64_t
offset_of (const struct image *image, guint cell)
{
  return image->data_start + (uint64_t) cell * image->cluster_size;
}

static uint32_t
entry_of (const struct image *image, guint cell)
{
  const uint32_t unit =
    image->delta->version == 1 ? SECTOR : image->cluster_size;

  return (uint32_t) (offset_of (image, cell) / unit);
}

static uint64_t
extension_sector (const struct image *image)
{
  for (guint i = 0; i < image->cells->len; i++)
    if (cell_at (image, i) == CELL_EXTENSION)
      return offset_of (image, i) / SECTOR;
  return 0;
}

static bool
write_header (const struct image *image, GError **error)
{
  const struct delta *delta = image->delta;
  uint8_t bytes[HEADER_SIZE] = { 0 };
  uint32_t heads, sectors, cylinders;

  geometry_of (delta->size_sectors, &heads, &sectors, &cylinders);
  memcpy (bytes, delta->version == 1 ? "WithoutFreeSpace" : "WithouFreSpacExt",
          16);
  put32 (bytes + 16, 2);
  put32 (bytes + 20, heads);
  put32 (bytes + 24, cylinders);
  put32 (bytes + 28, delta->cluster_sectors);
  put32 (bytes + 32, delta->nr_clusters);
  put32 (bytes + 36, delta->size_sectors);
  put32 (bytes + 40, delta->size_high);
  put32 (bytes + 44, delta->in_use);
  put32 (bytes + 48, delta->data_sectors);
  put32 (bytes + 52, delta->flags);
  put64 (bytes + 56, extension_sector (image));
  return file_write (image->fd, image->path, bytes, sizeof bytes, 0, error);
}

/* And the slack behind it. */
static bool
write_bat (const struct image *image, GError **error)
{
  const struct delta *delta = image->delta;
  const size_t length = (size_t) image->data_start - HEADER_SIZE;
  g_autofree uint8_t *bytes = g_malloc0 (length);
  guint lost = image->cells->len + delta->nr_tail;

  for (guint i = 0; i < image->cells->len; i++)
    if (cell_at (image, i) >= 0)
      put32 (bytes + 4 * cell_at (image, i), entry_of (image, i));
  for (uint32_t c = 0; c < delta->nr_clusters; c++)
    if (delta->holds[c] == HOLDS_LOST)
      put32 (bytes + (size_t) 4 * c, entry_of (image, lost++));
  return file_write (image->fd, image->path, bytes, length, HEADER_SIZE, error);
}

/* ---- Clusters ---------------------------------------------------------- */

static bool
write_cluster (const struct image *image, guint cell, uint32_t cluster,
               GError **error)
{
  const struct delta *delta = image->delta;
  const uint32_t length = bytes_in (delta, cluster);
  const uint8_t *content = content_of (delta, cluster);
  g_autofree uint8_t *rest = g_malloc (image->cluster_size);

  if (delta->holds[cluster] == HOLDS_HOLE)
    return true;
  /* What is behind the end of the disk must never be seen. */
  memset (rest, 0xEE, image->cluster_size);
  return (delta->is_sparse ? file_write_sparsely : file_write)
           (image->fd, image->path, content, length, offset_of (image, cell),
            error)
         && (delta->tail == TAIL_CUT
             || file_write (image->fd, image->path, rest,
                            image->cluster_size - length,
                            offset_of (image, cell) + length, error));
}

static bool
write_leak (const struct image *image, guint cell, GError **error)
{
  g_autofree uint8_t *bytes = g_malloc (image->cluster_size);

  memset (bytes, 0xDD, image->cluster_size);
  return file_write (image->fd, image->path, bytes, image->cluster_size,
                     offset_of (image, cell), error);
}

/* ---- The extension ----------------------------------------------------- */

/* 0 or 1 in the L1 when all bits are alike, else the sector of their cluster. */
static uint64_t
l1_entry (const struct image *image, unsigned index)
{
  const struct bitmap *bitmap = &image->delta->bitmaps[index];

  for (guint i = 0; i < image->cells->len; i++)
    if (cell_at (image, i) == CELL_BITS - (gint32) index)
      return offset_of (image, i) / SECTOR;
  return bitmap->bits[0];
}

/* Returns how many bytes the feature takes. */
static size_t
put_bitmap (const struct image *image, unsigned index, uint8_t *bytes)
{
  const struct bitmap *bitmap = &image->delta->bitmaps[index];

  put64 (bytes, BITMAP_MAGIC);
  /* No flags: qemu 7.2 refuses a bitmap that has some. */
  put32 (bytes + 16, 32 + 8);
  put64 (bytes + 24, image->delta->size_sectors);
  memcpy (bytes + 32, bitmap->uuid, sizeof bitmap->uuid);
  put32 (bytes + 48, bitmap->granularity);
  put32 (bytes + 52, 1);
  put64 (bytes + 56, l1_entry (image, index));
  return 64;
}

static bool
write_extension (const struct image *image, guint cell, GError **error)
{
  g_autofree uint8_t *bytes = g_malloc0 (image->cluster_size);
  g_autoptr (GChecksum) md5 = g_checksum_new (G_CHECKSUM_MD5);
  gsize digest_size = 16;
  size_t length = 24;

  put64 (bytes, EXTENSION_MAGIC);
  for (unsigned i = 0; i < image->delta->nr_bitmaps; i++)
    length += put_bitmap (image, i, bytes + length);
  g_checksum_update (md5, bytes + 24, (gssize) image->cluster_size - 24);
  g_checksum_get_digest (md5, bytes + 8, &digest_size);
  return file_write (image->fd, image->path, bytes, image->cluster_size,
                     offset_of (image, cell), error);
}

static bool
write_bits (const struct image *image, guint cell, unsigned index,
            GError **error)
{
  const struct bitmap *bitmap = &image->delta->bitmaps[index];
  g_autofree uint8_t *bytes = g_malloc0 (image->cluster_size);

  for (uint32_t i = 0; i < bitmap->nr_bits; i++)
    if (bitmap->bits[i])
      bytes[i / 8] |= (uint8_t) (1u << i % 8);
  return file_write (image->fd, image->path, bytes, image->cluster_size,
                     offset_of (image, cell), error);
}

/* ---- All of it --------------------------------------------------------- */

static bool
write_cell (const struct image *image, guint index, GError **error)
{
  const gint32 cell = cell_at (image, index);

  if (cell >= 0)
    return write_cluster (image, index, (uint32_t) cell, error);
  switch (cell) {
  case CELL_LEAKED:
    return write_leak (image, index, error);
  case CELL_FREE:
    return true;
  case CELL_EXTENSION:
    return write_extension (image, index, error);
  default:
    return write_bits (image, index, (unsigned) (CELL_BITS - cell), error);
  }
}

/* Where the file ends. */
static uint64_t
file_end (const struct image *image)
{
  struct delta *delta = image->delta;
  const guint nr = image->cells->len;
  uint32_t left;

  if (delta->tail != TAIL_CUT || nr == 0)
    return offset_of (image, nr + delta->nr_tail);
  left = bytes_before_zeros (delta, (uint32_t) cell_at (image, nr - 1));
  delta->is_cut = left < image->cluster_size;
  return offset_of (image, nr - 1) + left;
}

static bool
write_all (const struct image *image, GError **error)
{
  if (!write_header (image, error) || !write_bat (image, error))
    return false;
  for (guint i = 0; i < image->cells->len; i++)
    if (!write_cell (image, i, error))
      return false;
  return true;
}

static bool
write_image (const char *path, int fd, struct delta *delta, GRand *dice,
             GError **error)
{
  g_autoptr (GArray) cells = g_array_new (FALSE, FALSE, sizeof (gint32));
  struct image image = {
    .delta = delta,
    .dice = dice,
    .path = path,
    .fd = fd,
    .cells = cells,
    .data_start = (uint64_t) data_start_of (delta) * SECTOR,
    .cluster_size = delta->cluster_sectors * SECTOR,
  };

  lay_out (&image);
  if (write_all (&image, error))
    return file_finish (fd, path, file_end (&image), error);
  close (fd);
  return false;
}

/* A raw disk is sparse where it has nothing. */
static bool
write_raw (const char *path, int fd, struct delta *delta, GError **error)
{
  const uint64_t size = (uint64_t) delta->size_sectors * SECTOR;

  if (file_write_sparsely (fd, path, delta->content, (size_t) size, 0, error))
    return file_finish (fd, path, size, error);
  close (fd);
  return false;
}

bool
image_write (const char *path, struct delta *delta, GRand *dice,
             GError **error)
{
  const int fd = file_create (path, error);

  if (fd == -1)
    return false;
  return delta->is_raw ? write_raw (path, fd, delta, error)
                       : write_image (path, fd, delta, dice, error);
}
