/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Reading an image without the library: see reader.h. */

#include <config.h>

#include <string.h>

#include <glib.h>

#include "reader.h"

#define SECTOR 512u

static uint32_t
get32 (const uint8_t *p)
{
  return p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16
         | (uint32_t) p[3] << 24;
}

static void
put32 (uint8_t *p, uint32_t v)
{
  for (int i = 0; i < 4; i++)
    p[i] = (uint8_t) (v >> 8 * i);
}

static uint64_t
bat_end (const struct reader_shape *shape)
{
  return 64 + 4 * (uint64_t) shape->nr_entries;
}

uint64_t
reader_data_start (const struct reader_shape *shape)
{
  return shape->data_sectors
           ? (uint64_t) shape->data_sectors * SECTOR
           : (bat_end (shape) + SECTOR - 1) / SECTOR * SECTOR;
}

uint8_t *
reader_make (const struct reader_shape *shape, uint64_t *size)
{
  uint8_t *bytes;

  *size = reader_data_start (shape);
  bytes = g_malloc0 (*size);
  memcpy (bytes, shape->version == 1 ? "WithoutFreeSpace" : "WithouFreSpacExt",
          16);
  put32 (bytes + 16, 2);
  put32 (bytes + 20, 16);
  put32 (bytes + 24, 16);
  put32 (bytes + 28, shape->cluster_sectors);
  put32 (bytes + 32, shape->nr_entries);
  put32 (bytes + 36, shape->nr_sectors);
  put32 (bytes + 48, shape->data_sectors);
  put32 (bytes + 52, 1);        /* empty */
  return bytes;
}

void
reader_put_entry (const struct reader_shape *shape, uint8_t *bytes,
                  uint32_t i, uint64_t offset)
{
  const uint64_t unit =
    shape->version == 1 ? SECTOR : (uint64_t) shape->cluster_sectors * SECTOR;

  put32 (bytes + 64 + 4 * (uint64_t) i, (uint32_t) (offset / unit));
}

static uint32_t
entry_at (const struct reader *reader, uint32_t i)
{
  return get32 (reader->bytes + 64 + 4 * (uint64_t) i);
}

static uint64_t
cluster_bytes (const struct reader *reader)
{
  return (uint64_t) reader->shape.cluster_sectors * SECTOR;
}

static uint64_t
host_offset (const struct reader *reader, uint32_t entry)
{
  return entry * (reader->shape.version == 1 ? SECTOR
                                             : cluster_bytes (reader));
}

/* Rules 1 and 2. */
static char *
check_bat (const struct reader *reader)
{
  const uint64_t cluster = cluster_bytes (reader);
  const uint64_t nr_cells = reader->size / cluster + 1;
  g_autofree uint32_t *owners = g_new0 (uint32_t, nr_cells);

  for (uint32_t i = 0; i < reader->shape.nr_entries; i++) {
    const uint32_t entry = entry_at (reader, i);
    const uint64_t offset = host_offset (reader, entry);
    uint64_t cell;

    if (entry == 0)
      continue;
    if (offset < reader->data_start || offset + cluster > reader->size
        || (offset - reader->data_start) % cluster != 0)
      return g_strdup_printf ("rule 1: BAT entry %u is %u, the file has %"
                              G_GUINT64_FORMAT " bytes", i, entry,
                              reader->size);
    cell = (offset - reader->data_start) / cluster;
    if (owners[cell] != 0)
      return g_strdup_printf ("rule 2: BAT entries %u and %u are both %u",
                              owners[cell] - 1, i, entry);
    owners[cell] = i + 1;
  }
  return NULL;
}

/* The same for clusters off the grid. */
static char *
check_bat_off_grid (const struct reader *reader)
{
  const uint64_t nr_sectors = reader->size / SECTOR;
  const uint32_t cluster = reader->shape.cluster_sectors;
  g_autofree uint32_t *owners = g_new0 (uint32_t, nr_sectors + 1);

  for (uint32_t i = 0; i < reader->shape.nr_entries; i++) {
    const uint32_t entry = entry_at (reader, i);
    const uint64_t first = host_offset (reader, entry) / SECTOR;

    if (entry == 0)
      continue;
    if (first * SECTOR < reader->data_start || first + cluster > nr_sectors)
      return g_strdup_printf ("rule 1: BAT entry %u is %u, the file has %"
                              G_GUINT64_FORMAT " bytes, data from byte %"
                              G_GUINT64_FORMAT, i, entry, reader->size,
                              reader->data_start);
    for (uint64_t s = first; s < first + cluster; s++) {
      if (owners[s] != 0)
        return g_strdup_printf ("rule 2: what BAT entries %u and %u name "
                                "overlaps", owners[s] - 1, i);
      owners[s] = i + 1;
    }
  }
  return NULL;
}

/* Returns NULL, or what is wrong. */
static char *
read_header (struct reader *reader, const uint8_t *bytes, uint64_t size)
{
  *reader = (struct reader) { .bytes = bytes, .size = size };
  if (size < 64)
    return g_strdup ("the header is gone");
  reader->shape = (struct reader_shape) {
    .version = memcmp (bytes, "WithoutFreeSpace", 16) == 0 ? 1 : 2,
    .cluster_sectors = get32 (bytes + 28),
    .nr_entries = get32 (bytes + 32),
    .nr_sectors = get32 (bytes + 36),
    .data_sectors = get32 (bytes + 48),
  };
  reader->in_use = get32 (bytes + 44);
  reader->data_start = reader_data_start (&reader->shape);
  if ((reader->shape.version == 2 && memcmp (bytes, "WithouFreSpacExt", 16))
      || get32 (bytes + 16) != 2 || reader->shape.cluster_sectors == 0
      || reader->data_start > size
      || reader->data_start < bat_end (&reader->shape) || get32 (bytes + 56) != 0
      || get32 (bytes + 60) != 0
      || (reader->in_use != READER_CLOSED && reader->in_use != READER_IN_USE))
    return g_strdup ("the header is damaged");
  return NULL;
}

char *
reader_open (struct reader *reader, const uint8_t *bytes, uint64_t size)
{
  char *fault = read_header (reader, bytes, size);

  return fault ? fault : check_bat (reader);
}

char *
reader_open_off_grid (struct reader *reader, const uint8_t *bytes,
                      uint64_t size)
{
  char *fault = read_header (reader, bytes, size);

  return fault ? fault : check_bat_off_grid (reader);
}

bool
reader_has_slack (const struct reader *reader)
{
  for (uint64_t at = bat_end (&reader->shape); at < reader->data_start; at++)
    if (reader->bytes[at] != 0)
      return true;
  return false;
}

uint64_t
reader_data_end (const struct reader *reader)
{
  uint64_t end = reader->data_start;

  for (uint32_t i = 0; i < reader->shape.nr_entries; i++) {
    const uint32_t entry = entry_at (reader, i);

    if (entry != 0)
      end = MAX (end, host_offset (reader, entry) + cluster_bytes (reader));
  }
  return end;
}

const uint8_t *
reader_sector (const struct reader *reader, uint64_t sector)
{
  const uint32_t in_cluster = reader->shape.cluster_sectors;
  const uint32_t entry = entry_at (reader, (uint32_t) (sector / in_cluster));

  if (entry == 0)
    return NULL;
  return reader->bytes + host_offset (reader, entry)
         + sector % in_cluster * SECTOR;
}

const uint8_t *
reader_content (const struct reader *reader, uint64_t sector)
{
  static const uint8_t zeroes[SECTOR];
  const uint8_t *bytes = reader_sector (reader, sector);

  return bytes ? bytes : zeroes;
}
