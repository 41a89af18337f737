/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Header and BAT encoding, geometry and limits: see format.h.
 *
 * This is where a hostile header is turned away.  The rule for each field is
 * to take what qemu takes, as long as the guest's data can be found without a
 * guess, and to refuse the rest by name and value.
 */

#include <config.h>

#include <string.h>

#include "format.h"
#include "ploop-core.h"

static const char signature_v1[16] = "WithoutFreeSpace";
static const char signature_v2[16] = "WithouFreSpacExt";

static void
put_le32 (uint8_t *p, uint32_t v)
{
  v = GUINT32_TO_LE (v);
  memcpy (p, &v, sizeof v);
}

static void
put_le64 (uint8_t *p, uint64_t v)
{
  v = GUINT64_TO_LE (v);
  memcpy (p, &v, sizeof v);
}

/* Both round a sum that callers keep far below 2^64. */
static uint64_t
divide_up (uint64_t n, uint64_t unit)
{
  return n / unit + (n % unit != 0);
}

static uint64_t
round_up (uint64_t n, uint64_t unit)
{
  return divide_up (n, unit) * unit;
}

bool
format_decode_header (const uint8_t bytes[FORMAT_HEADER_SIZE],
                      struct format_header *header)
{
  unsigned version;

  if (memcmp (bytes, signature_v1, sizeof signature_v1) == 0)
    version = 1;
  else if (memcmp (bytes, signature_v2, sizeof signature_v2) == 0)
    version = 2;
  else
    return false;

  *header = (struct format_header) {
    .version = version,
    .type = format_get_le32 (bytes + 16),
    .heads = format_get_le32 (bytes + 20),
    .cylinders = format_get_le32 (bytes + 24),
    .cluster_sectors = format_get_le32 (bytes + 28),
    .nr_entries = format_get_le32 (bytes + 32),
    /* Old writers left garbage in the upper word of a v1 size. */
    .size_sectors = version == 1 ? format_get_le32 (bytes + 36)
                                 : format_get_le64 (bytes + 36),
    .in_use = format_get_le32 (bytes + FORMAT_IN_USE_OFFSET),
    .data_sectors = format_get_le32 (bytes + 48),
    .flags = format_get_le32 (bytes + 52),
    .extension_sectors = format_get_le64 (bytes + 56),
  };
  return true;
}

void
format_encode_header (const struct format_header *header,
                      uint8_t bytes[FORMAT_HEADER_SIZE])
{
  memcpy (bytes, header->version == 1 ? signature_v1 : signature_v2, 16);
  put_le32 (bytes + 16, header->type);
  put_le32 (bytes + 20, header->heads);
  put_le32 (bytes + 24, header->cylinders);
  put_le32 (bytes + 28, header->cluster_sectors);
  put_le32 (bytes + 32, header->nr_entries);
  put_le64 (bytes + 36, header->size_sectors);
  put_le32 (bytes + FORMAT_IN_USE_OFFSET, header->in_use);
  put_le32 (bytes + 48, header->data_sectors);
  put_le32 (bytes + 52, header->flags);
  put_le64 (bytes + 56, header->extension_sectors);
}

bool
format_is_dirty (uint32_t in_use)
{
  return in_use != FORMAT_CLOSED && in_use != FORMAT_CLOSED_EXTENSION
         && in_use != FORMAT_CLOSED_PD17 && in_use != FORMAT_CLOSED_PD22;
}

bool
format_has_valid_extension (const struct format_header *header)
{
  return header->extension_sectors != 0 && header->in_use != FORMAT_IN_USE;
}

static bool
refuse (GError **error, const char *format, ...) G_GNUC_PRINTF (2, 3);

static bool
refuse (GError **error, const char *format, ...)
{
  va_list args;

  if (error) {
    va_start (args, format);
    *error = g_error_new_valist (PLOOP_ERROR, PLOOP_ERROR_CORRUPT, format,
                                 args);
    va_end (args);
  }
  return false;
}

/* Where the data area begins.
 *
 * 0 means right after the BAT.  In v2 a cluster lies at a multiple of its
 * size.  qemu rounds an offset in between down when it allocates, so that is
 * where its first cluster is, as long as the BAT ends before.
 */
static uint64_t
data_start (const struct format_header *header, uint64_t bat_end)
{
  const uint64_t cluster_size =
    (uint64_t) header->cluster_sectors * FORMAT_SECTOR_SIZE;
  const uint64_t stored =
    (uint64_t) header->data_sectors * FORMAT_SECTOR_SIZE;

  if (header->version == 1)
    return stored ? stored : round_up (bat_end, FORMAT_SECTOR_SIZE);
  if (stored / cluster_size * cluster_size >= bat_end)
    return stored / cluster_size * cluster_size;
  return round_up (bat_end, cluster_size);
}

static bool
check_data_offset (const struct format_header *header, uint64_t file_size,
                   const struct format_layout *layout, GError **error)
{
  const uint64_t stored =
    (uint64_t) header->data_sectors * FORMAT_SECTOR_SIZE;

  if (stored != 0 && stored < layout->bat_end)
    return refuse (error, "first data offset is %" G_GUINT32_FORMAT
                   " sectors, inside the BAT, which ends at byte %"
                   G_GUINT64_FORMAT ": the header is damaged",
                   header->data_sectors, layout->bat_end);
  /* A file may end inside a cluster, but not before its data begins: where it does, not
   * where the header says, which may be inside the first cluster.
   */
  if (stored > 0
      && layout->data_start > round_up (file_size, layout->cluster_size))
    return refuse (error, "first data offset is %" G_GUINT32_FORMAT
                   " sectors, past the end of the file (%" G_GUINT64_FORMAT
                   " bytes): the header is damaged or the file truncated",
                   header->data_sectors, file_size);
  return true;
}

bool
format_check_header (const struct format_header *header, uint64_t file_size,
                     struct format_layout *layout, GError **error)
{
  uint64_t mapped_sectors;

  if (header->type != 2)
    return refuse (error, "type is %" G_GUINT32_FORMAT ", must be 2: "
                   "no known program writes such an image", header->type);
  if (header->cluster_sectors == 0
      || header->cluster_sectors > FORMAT_MAX_CLUSTER_SECTORS)
    return refuse (error, "cluster size is %" G_GUINT32_FORMAT
                   " sectors, must be from 1 to %" G_GUINT32_FORMAT
                   ": the header is damaged",
                   header->cluster_sectors, FORMAT_MAX_CLUSTER_SECTORS);
  if (header->nr_entries > FORMAT_MAX_ENTRIES)
    return refuse (error, "number of BAT entries is %" G_GUINT32_FORMAT
                   ", must be at most %" G_GUINT32_FORMAT
                   ": the header is damaged",
                   header->nr_entries, FORMAT_MAX_ENTRIES);
  if (header->size_sectors > FORMAT_MAX_SIZE_SECTORS)
    return refuse (error, "disk size is %" G_GUINT64_FORMAT
                   " sectors, must be at most %" G_GUINT64_FORMAT
                   ": the header is damaged",
                   header->size_sectors, FORMAT_MAX_SIZE_SECTORS);
  /* Below 2^51: no overflow. */
  mapped_sectors = (uint64_t) header->nr_entries * header->cluster_sectors;
  if (header->size_sectors > mapped_sectors)
    return refuse (error, "disk size is %" G_GUINT64_FORMAT
                   " sectors, but the BAT's %" G_GUINT32_FORMAT
                   " entries map only %" G_GUINT64_FORMAT
                   ": the header is damaged",
                   header->size_sectors, header->nr_entries, mapped_sectors);

  *layout = (struct format_layout) {
    .size = header->size_sectors * FORMAT_SECTOR_SIZE,
    .cluster_size = header->cluster_sectors * FORMAT_SECTOR_SIZE,
    .entry_unit = header->version == 1
                    ? FORMAT_SECTOR_SIZE
                    : header->cluster_sectors * FORMAT_SECTOR_SIZE,
    .nr_entries = header->nr_entries,
    .bat_end = format_bat_offset (header->nr_entries),
  };
  if (layout->bat_end > file_size)
    return refuse (error, "number of BAT entries is %" G_GUINT32_FORMAT
                   ", which takes %" G_GUINT64_FORMAT
                   " bytes, but the file has only %" G_GUINT64_FORMAT
                   ": the file is truncated",
                   header->nr_entries, layout->bat_end, file_size);
  layout->data_start = data_start (header, layout->bat_end);
  return check_data_offset (header, file_size, layout, error);
}

void
format_geometry (uint64_t size_sectors, uint32_t *heads, uint32_t *cylinders)
{
  static const uint32_t sectors_tried[] = { 63, 32, 16, 8 };
  static const uint32_t heads_tried[] = { 16, 8, 4, 2 };

  if (size_sectors > 1032192 && size_sectors < 16777216) {
    *heads = 16;
    *cylinders = (uint32_t) (size_sectors / (16 * 63));
    return;
  }
  for (size_t s = 0; s < G_N_ELEMENTS (sectors_tried); s++)
    for (size_t h = 0; h < G_N_ELEMENTS (heads_tried); h++) {
      const uint64_t track = (uint64_t) sectors_tried[s] * heads_tried[h];

      if (size_sectors % track == 0) {
        *heads = heads_tried[h];
        /* Geometry has 32 bits; a disk too large for it wraps, as ploop's. */
        *cylinders = (uint32_t) (size_sectors / track);
        return;
      }
    }
  *heads = 1;
  *cylinders = (uint32_t) size_sectors;
}

/* True when the values are those of an image that can be. */
static bool
check_new (uint64_t size, uint32_t cluster_size, unsigned version,
           GError **error)
{
  const uint64_t size_sectors = size / FORMAT_SECTOR_SIZE;

  if (version != 1 && version != 2)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "format version is %u, must be 1 or 2", version);
  else if (cluster_size < FORMAT_MIN_CREATE_CLUSTER
           || cluster_size > FORMAT_MAX_CREATE_CLUSTER
           || (cluster_size & (cluster_size - 1)) != 0)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "cluster size is %" G_GUINT32_FORMAT " bytes, must be a "
                 "power of two from 32 KiB (%u) to 64 MiB (%u)", cluster_size,
                 FORMAT_MIN_CREATE_CLUSTER, FORMAT_MAX_CREATE_CLUSTER);
  else if (size == 0 || size % FORMAT_SECTOR_SIZE != 0)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "disk size is %" G_GUINT64_FORMAT " bytes, must be a "
                 "multiple of 512 and not 0", size);
  else if (version == 1 && size_sectors > UINT32_MAX)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "disk size is %" G_GUINT64_FORMAT " bytes, must be below "
                 "2 TiB in format version 1: use version 2", size);
  else if (divide_up (size, cluster_size) > FORMAT_MAX_ENTRIES)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "disk size is %" G_GUINT64_FORMAT " bytes, must be at most %"
                 G_GUINT64_FORMAT " with clusters of %" G_GUINT32_FORMAT
                 " bytes%s", size,
                 (uint64_t) FORMAT_MAX_ENTRIES * cluster_size, cluster_size,
                 cluster_size < FORMAT_MAX_CREATE_CLUSTER
                   ? ": use larger clusters" : "");
  else
    return true;
  return false;
}

bool
format_new_header (uint64_t size, uint32_t cluster_size, unsigned version,
                   struct format_header *header, GError **error)
{
  uint32_t nr_entries;
  uint64_t data_offset;

  if (!check_new (size, cluster_size, version, error))
    return false;
  nr_entries = (uint32_t) divide_up (size, cluster_size);
  data_offset = round_up (format_bat_offset (nr_entries), cluster_size);

  *header = (struct format_header) {
    .version = version,
    .type = 2,
    .cluster_sectors = cluster_size / FORMAT_SECTOR_SIZE,
    .nr_entries = nr_entries,
    .size_sectors = size / FORMAT_SECTOR_SIZE,
    .in_use = FORMAT_CLOSED,
    /* At most 2 GiB of BAT and one cluster. */
    .data_sectors = (uint32_t) (data_offset / FORMAT_SECTOR_SIZE),
    .flags = FORMAT_FLAG_EMPTY,
  };
  format_geometry (header->size_sectors, &header->heads, &header->cylinders);

  /* A full v1 disk close to 2 TiB does not fit under its 32-bit entries. */
  if (version == 1
      && data_offset / FORMAT_SECTOR_SIZE
           + (uint64_t) nr_entries * header->cluster_sectors
         > (uint64_t) UINT32_MAX + 1) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "disk size is %" G_GUINT64_FORMAT " bytes: with its BAT it "
                 "must be below 2 TiB in format version 1: use version 2",
                 size);
    return false;
  }
  return true;
}

/* The first place from where the data area began that is behind the BAT, or as close to
 * it as can be.
 */
static uint64_t
move_data_start (uint64_t start, uint64_t bat_end, uint64_t cluster_size)
{
  return start >= bat_end
           ? start - (start - bat_end) / cluster_size * cluster_size
           : start + divide_up (bat_end - start, cluster_size) * cluster_size;
}

bool
format_resize_header (const struct format_header *old,
                      const struct format_layout *old_layout, uint64_t size,
                      struct format_header *header,
                      struct format_layout *layout, GError **error)
{
  const uint64_t cluster_size = old_layout->cluster_size;
  const uint64_t nr_entries = divide_up (size, cluster_size);
  const uint64_t most = old->version == 1
                          ? (uint64_t) UINT32_MAX * FORMAT_SECTOR_SIZE
                          : FORMAT_MAX_ENTRIES * cluster_size;

  if (size == 0 || size % FORMAT_SECTOR_SIZE != 0 || size > most
      || nr_entries > FORMAT_MAX_ENTRIES) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "disk size cannot become %" G_GUINT64_FORMAT " bytes: must be a "
                 "multiple of 512, and at most %" G_GUINT64_FORMAT " in version %u "
                 "with clusters of %" G_GUINT64_FORMAT " bytes", size, most,
                 old->version, cluster_size);
    return false;
  }
  *header = *old;
  *layout = *old_layout;
  layout->size = size;
  layout->nr_entries = (uint32_t) nr_entries;
  layout->bat_end = format_bat_offset (layout->nr_entries);
  layout->data_start =
    move_data_start (old_layout->data_start, layout->bat_end, cluster_size);
  header->size_sectors = size / FORMAT_SECTOR_SIZE;
  header->nr_entries = layout->nr_entries;
  header->data_sectors = (uint32_t) (layout->data_start / FORMAT_SECTOR_SIZE);
  format_geometry (header->size_sectors, &header->heads, &header->cylinders);
  if (format_nr_cells (layout) >= nr_entries)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "disk size cannot become %" G_GUINT64_FORMAT " bytes: a BAT entry "
               "of version %u could not name all clusters: convert it to version 2",
               size, old->version);
  return false;
}

uint64_t
format_nr_cells (const struct format_layout *layout)
{
  const uint64_t last_offset = format_entry_offset (layout, UINT32_MAX);

  if (last_offset < layout->data_start)
    return 0;
  return (last_offset - layout->data_start) / layout->cluster_size + 1;
}

uint64_t
format_cells_below (const struct format_layout *layout, uint64_t end)
{
  if (end <= layout->data_start)
    return 0;
  return divide_up (end - layout->data_start, layout->cluster_size);
}
