/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The format extension and its bitmaps: see extension.h.
 *
 * Other programs crash on a granularity of 0 or an offset past the end of the
 * file, so every number is judged before it is used.
 */

#include <config.h>

#include <string.h>

#include "extension.h"

#define EXTENSION_MAGIC G_GUINT64_CONSTANT (0xAB234CEF23DCEA87)
#define BITMAP_MAGIC G_GUINT64_CONSTANT (0x20385FAE252CB34A)

#define FEATURES_OFFSET 24u
#define FEATURE_HEADER_SIZE 24u
#define BITMAP_HEADER_SIZE 32u

#define FEATURE_NECESSARY 1u

/* What is left to read of the cluster. */
struct cursor {
  const uint8_t *bytes;
  size_t left;
};

/* Can a cluster begin at SECTOR of the file? */
static bool
is_data_sector (const struct format_layout *layout, uint64_t file_size,
                uint64_t sector)
{
  return sector <= FORMAT_MAX_SIZE_SECTORS
         && sector * FORMAT_SECTOR_SIZE >= layout->data_start
         && sector * FORMAT_SECTOR_SIZE < file_size;
}

char *
extension_check_place (const struct format_header *header,
                       const struct format_layout *layout,
                       uint64_t file_size)
{
  if (!is_data_sector (layout, file_size, header->extension_sectors))
    return g_strdup_printf ("extension offset is %" G_GUINT64_FORMAT
                            " sectors, outside the file's data area (bytes %"
                            G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT ")",
                            header->extension_sectors, layout->data_start,
                            file_size);
  return NULL;
}

/* The digest covers the whole rest of the cluster, not only the features. */
static bool
digest_matches (const uint8_t *bytes, size_t cluster_size)
{
  g_autoptr (GChecksum) md5 = g_checksum_new (G_CHECKSUM_MD5);
  guint8 digest[16];
  gsize length = sizeof digest;

  g_checksum_update (md5, bytes + FEATURES_OFFSET,
                     (gssize) (cluster_size - FEATURES_OFFSET));
  g_checksum_get_digest (md5, digest, &length);
  return memcmp (digest, bytes + 8, sizeof digest) == 0;
}

static char *
parse_l1 (const uint8_t *l1, uint32_t nr_l1,
          const struct format_layout *layout, uint64_t file_size,
          struct extension *extension)
{
  for (uint32_t i = 0; i < nr_l1; i++) {
    const uint64_t sector = format_get_le64 (l1 + (size_t) i * 8);
    uint64_t offset;

    if (sector <= 1)            /* all clear, all set: no cluster of bits */
      continue;
    if (!is_data_sector (layout, file_size, sector))
      return g_strdup_printf ("bitmap %u: L1 entry %" G_GUINT32_FORMAT
                              " is sector %" G_GUINT64_FORMAT
                              ", outside the file's data area",
                              extension->nr_bitmaps, i, sector);
    offset = sector * FORMAT_SECTOR_SIZE;
    g_array_append_val (extension->bit_clusters, offset);
  }
  return NULL;
}

static char *
parse_bitmap (const uint8_t *data, uint32_t size,
              const struct format_layout *layout, uint64_t file_size,
              struct extension *extension)
{
  uint64_t size_sectors, nr_bits, nr_l1_needed;
  uint32_t granularity, nr_l1;

  if (size < BITMAP_HEADER_SIZE)
    return g_strdup_printf ("bitmap %u: data size is %" G_GUINT32_FORMAT
                            " bytes, must be at least %u",
                            extension->nr_bitmaps, size, BITMAP_HEADER_SIZE);
  size_sectors = format_get_le64 (data);
  granularity = format_get_le32 (data + 24);
  nr_l1 = format_get_le32 (data + 28);

  if (granularity == 0 || (granularity & (granularity - 1)) != 0)
    return g_strdup_printf ("bitmap %u: granularity is %" G_GUINT32_FORMAT
                            " sectors, must be a power of two",
                            extension->nr_bitmaps, granularity);
  if (size_sectors > FORMAT_MAX_SIZE_SECTORS)
    return g_strdup_printf ("bitmap %u: disk size is %" G_GUINT64_FORMAT
                            " sectors, past every limit",
                            extension->nr_bitmaps, size_sectors);
  if (nr_l1 > (size - BITMAP_HEADER_SIZE) / 8)
    return g_strdup_printf ("bitmap %u: L1 length is %" G_GUINT32_FORMAT
                            ", but its data has room for %" G_GUINT32_FORMAT,
                            extension->nr_bitmaps, nr_l1,
                            (size - BITMAP_HEADER_SIZE) / 8);
  /* An empty table is an empty bitmap; any other covers the disk. */
  nr_bits = size_sectors / granularity + (size_sectors % granularity != 0);
  nr_l1_needed = nr_bits / 8 / layout->cluster_size
                 + (nr_bits % (8 * (uint64_t) layout->cluster_size) != 0);
  if (nr_l1 != 0 && nr_l1 < nr_l1_needed)
    return g_strdup_printf ("bitmap %u: L1 length is %" G_GUINT32_FORMAT
                            ", but its disk of %" G_GUINT64_FORMAT
                            " sectors needs %" G_GUINT64_FORMAT,
                            extension->nr_bitmaps, nr_l1, size_sectors,
                            nr_l1_needed);
  return parse_l1 (data + BITMAP_HEADER_SIZE, nr_l1, layout, file_size,
                   extension);
}

/* Parse one feature and step over it.  *DONE at the end of the list. */
static char *
parse_feature (struct cursor *cursor, const struct format_layout *layout,
               uint64_t file_size, struct extension *extension, bool *done)
{
  uint64_t magic, flags;
  uint32_t size, step;
  char *wrong;

  *done = cursor->left < 8 || format_get_le64 (cursor->bytes) == 0;
  if (*done)
    return NULL;
  if (cursor->left < FEATURE_HEADER_SIZE)
    return g_strdup ("feature list runs past the end of its cluster");

  magic = format_get_le64 (cursor->bytes);
  flags = format_get_le64 (cursor->bytes + 8);
  size = format_get_le32 (cursor->bytes + 16);
  cursor->bytes += FEATURE_HEADER_SIZE;
  cursor->left -= FEATURE_HEADER_SIZE;
  if (size > cursor->left)
    return g_strdup_printf ("feature data size is %" G_GUINT32_FORMAT
                            " bytes, past the end of its cluster", size);

  if (magic == BITMAP_MAGIC) {
    wrong = parse_bitmap (cursor->bytes, size, layout, file_size, extension);
    if (wrong)
      return wrong;
    extension->nr_bitmaps++;
  }
  else if (flags & FEATURE_NECESSARY)
    return g_strdup_printf ("feature 0x%016" G_GINT64_MODIFIER "x is marked as "
                            "necessary and unknown", magic);

  /* qemu pads data to 8 bytes.  libploop does not, but all that it writes is
   * a multiple of 8 already.
   */
  step = MIN ((size + 7) & ~7u, (uint32_t) cursor->left);
  cursor->bytes += step;
  cursor->left -= step;
  return NULL;
}

char *
extension_parse (const uint8_t *bytes, const struct format_layout *layout,
                 uint64_t file_size, struct extension *extension)
{
  struct cursor cursor = {
    .bytes = bytes + FEATURES_OFFSET,
    .left = layout->cluster_size - FEATURES_OFFSET,
  };
  bool done = false;
  char *wrong = NULL;

  if (format_get_le64 (bytes) != EXTENSION_MAGIC)
    return g_strdup_printf ("extension magic is 0x%016" G_GINT64_MODIFIER "x, "
                            "must be 0x%016" G_GINT64_MODIFIER "x",
                            format_get_le64 (bytes), EXTENSION_MAGIC);
  if (!digest_matches (bytes, layout->cluster_size))
    return g_strdup ("extension checksum (MD5) does not match its content");

  extension->nr_bitmaps = 0;
  extension->bit_clusters = g_array_new (FALSE, FALSE, sizeof (uint64_t));
  while (!done && !wrong)
    wrong = parse_feature (&cursor, layout, file_size, extension, &done);
  if (wrong)
    extension_clear (extension);
  return wrong;
}

void
extension_clear (struct extension *extension)
{
  g_clear_pointer (&extension->bit_clusters, g_array_unref);
}
