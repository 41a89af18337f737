/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An image of unknown size: see growing.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "format.h"
#include "growing.h"

/* Space is reserved that far ahead, as for an image that is served. */
#define RESERVE_BYTES (UINT64_C (128) << 20)

struct growing {
  int fd;
  uint32_t cluster_size;        /* bytes */
  unsigned version;
  GArray *table;                /* of uint32_t: where each cluster of the disk is, in
                                   clusters of the file; 0: nowhere */
  uint32_t next;                /* in the file: the first that is free */
  uint64_t reserved;            /* bytes of the file */
  bool reserve_nothing;         /* the file system cannot */
  uint8_t *cluster;             /* what is moved */
};

struct growing *
growing_begin (int fd, uint32_t cluster_size, unsigned version)
{
  struct growing *growing = g_new0 (struct growing, 1);

  growing->fd = fd;
  growing->cluster_size = cluster_size;
  growing->version = version;
  growing->table = g_array_new (FALSE, TRUE, sizeof (uint32_t));
  growing->next = 1;
  return growing;
}

void
growing_free (struct growing *growing)
{
  if (!growing)
    return;
  g_array_unref (growing->table);
  g_free (growing->cluster);
  g_free (growing);
}

static uint32_t *
entry_at (struct growing *growing, uint64_t index)
{
  return &g_array_index (growing->table, uint32_t, index);
}

/* ---- Reading and writing the file -------------------------------------- */

/* Each returns 0 or a negative errno. */
static int
write_at (int fd, const uint8_t *buf, size_t length, uint64_t offset)
{
  while (length > 0) {
    const ssize_t n = pwrite (fd, buf, length, (off_t) offset);

    if (n == -1 && errno != EINTR)
      return -errno;
    if (n > 0) {
      buf += n;
      offset += (uint64_t) n;
      length -= (size_t) n;
    }
  }
  return 0;
}

/* Past the end of the file, zeros. */
static int
read_at (int fd, uint8_t *buf, size_t length, uint64_t offset)
{
  while (length > 0) {
    const ssize_t n = pread (fd, buf, length, (off_t) offset);

    if (n == -1 && errno != EINTR)
      return -errno;
    if (n == 0) {
      memset (buf, 0, length);
      return 0;
    }
    if (n > 0) {
      buf += n;
      offset += (uint64_t) n;
      length -= (size_t) n;
    }
  }
  return 0;
}

static void
reserve (struct growing *growing, uint64_t end)
{
  if (end <= growing->reserved || growing->reserve_nothing)
    return;
  end = MAX (end, growing->reserved + RESERVE_BYTES);
  if (fallocate (growing->fd, FALLOC_FL_KEEP_SIZE, (off_t) growing->reserved,
                 (off_t) (end - growing->reserved)) == 0)
    growing->reserved = end;
  /* Less than so far ahead may still do: writing will tell. */
  else
    growing->reserve_nothing = true;
}

/* Let the file be END bytes, and give back what is reserved behind that, which
 * lengthening a file does not do.
 */
static int
cut_off (int fd, uint64_t end)
{
  return ftruncate (fd, (off_t) end) == -1 || ftruncate (fd, (off_t) end) == -1
           ? -errno : 0;
}

/* ---- While it grows ---------------------------------------------------- */

/* So many clusters of a disk there can be.  Of version 1, all of the file is below
 * 2 TiB.
 */
static uint64_t
max_clusters (const struct growing *growing)
{
  const uint64_t max =
    growing->version == 1
      ? ((uint64_t) UINT32_MAX + 1) * FORMAT_SECTOR_SIZE / growing->cluster_size
      : FORMAT_MAX_ENTRIES;

  return MIN (max, FORMAT_MAX_ENTRIES);
}

/* A new cluster of the file, of which there may be as many as of the disk, and those
 * before the data.
 */
static uint32_t
take_cluster (struct growing *growing)
{
  const uint32_t cluster = growing->next++;

  reserve (growing, (uint64_t) growing->next * growing->cluster_size);
  return cluster;
}

/* Of what lies in one cluster. */
static int
write_piece (struct growing *growing, const uint8_t *buf, size_t length,
             uint64_t offset)
{
  const uint64_t index = offset / growing->cluster_size;
  uint32_t *entry;

  if (index >= max_clusters (growing))
    return -EFBIG;
  if (index >= growing->table->len)
    g_array_set_size (growing->table, (guint) index + 1);
  entry = entry_at (growing, index);
  if (*entry == 0)
    *entry = take_cluster (growing);
  return write_at (growing->fd, buf, length,
                   (uint64_t) *entry * growing->cluster_size
                   + offset % growing->cluster_size);
}

int
growing_write (struct growing *growing, const void *buf, size_t length,
               uint64_t offset)
{
  const uint8_t *p = buf;
  int r = 0;

  for (size_t n; length > 0 && r == 0; length -= n) {
    n = (size_t) MIN (length,
                      growing->cluster_size - offset % growing->cluster_size);
    r = write_piece (growing, p, n, offset);
    p += n;
    offset += n;
  }
  return r;
}

/* ---- In the end -------------------------------------------------------- */

/* Move what the entry names behind all others. */
static int
move_cluster (struct growing *growing, uint32_t *entry)
{
  const uint64_t from = (uint64_t) *entry * growing->cluster_size;
  int r;

  if (!growing->cluster)
    growing->cluster = g_malloc (growing->cluster_size);
  r = read_at (growing->fd, growing->cluster, growing->cluster_size, from);
  if (r < 0)
    return r;
  *entry = take_cluster (growing);
  return write_at (growing->fd, growing->cluster, growing->cluster_size,
                   (uint64_t) *entry * growing->cluster_size);
}

/* Clusters were taken in the order of the table, so those that are in its way are
 * named first.
 */
static int
make_room (struct growing *growing, uint32_t first)
{
  int r = 0;

  growing->next = MAX (growing->next, first);
  for (guint i = 0; i < growing->table->len && r == 0; i++) {
    uint32_t *entry = entry_at (growing, i);

    if (*entry >= first)
      break;
    if (*entry != 0)
      r = move_cluster (growing, entry);
  }
  return r;
}

/* The table as it is on disk, and zeros up to the data. */
static int
write_table (struct growing *growing, uint64_t end)
{
  const uint32_t unit =
    growing->version == 1 ? growing->cluster_size / FORMAT_SECTOR_SIZE : 1;
  const uint64_t nr = (end - FORMAT_HEADER_SIZE) / FORMAT_ENTRY_SIZE;
  uint32_t entries[4096];
  int r = 0;

  for (uint64_t i = 0, n; i < nr && r == 0; i += n) {
    n = MIN (nr - i, G_N_ELEMENTS (entries));
    for (uint64_t j = 0; j < n; j++)
      entries[j] = i + j < growing->table->len
                     ? GUINT32_TO_LE (*entry_at (growing, i + j) * unit)
                     : 0;
    r = write_at (growing->fd, (const uint8_t *) entries,
                  n * FORMAT_ENTRY_SIZE, format_bat_offset (0)
                                         + i * FORMAT_ENTRY_SIZE);
  }
  return r;
}

/* The header last: what is cut short is no image.  The file ends with its last cluster,
 * and what was reserved behind that is given back.
 */
static int
write_all (struct growing *growing, const struct format_header *header)
{
  const uint64_t data =
    (uint64_t) header->data_sectors * FORMAT_SECTOR_SIZE;
  uint8_t bytes[FORMAT_HEADER_SIZE];
  int r = make_room (growing, (uint32_t) (data / growing->cluster_size));

  if (r == 0)
    r = write_table (growing, data);
  if (r == 0)
    r = cut_off (growing->fd,
                 (uint64_t) growing->next * growing->cluster_size);
  if (r < 0)
    return r;
  format_encode_header (header, bytes);
  return write_at (growing->fd, bytes, sizeof bytes, 0);
}

int
growing_end (struct growing *growing, uint64_t size, GError **error)
{
  struct format_header header;
  int r;

  if (!format_new_header (size, growing->cluster_size, growing->version,
                          &header, error))
    return -1;
  if (growing->next > 1)        /* there is data */
    header.flags &= ~FORMAT_FLAG_EMPTY;
  r = write_all (growing, &header);
  if (r < 0)
    error_set_system (error, r, "the image cannot be written");
  return r < 0 ? -1 : 0;
}
