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

/* What is left to read of the cluster. */
struct cursor {
  const uint8_t *bytes;
  size_t left;
  bool rounds;                  /* data is rounded to 8 bytes */
};

/* ---- Contents ---------------------------------------------------------- */

static void
free_l1 (gpointer opaque)
{
  struct extension_bitmap *bitmap = opaque;

  g_free (bitmap->l1);
}

static void
free_bytes (gpointer opaque)
{
  struct extension_feature *feature = opaque;

  g_free (feature->bytes);
}

void
extension_init (struct extension *extension)
{
  *extension = (struct extension) {
    .bit_clusters = g_array_new (FALSE, FALSE, sizeof (uint64_t)),
    .bitmaps = g_array_new (FALSE, FALSE, sizeof (struct extension_bitmap)),
    .others = g_array_new (FALSE, FALSE, sizeof (struct extension_feature)),
  };
  g_array_set_clear_func (extension->bitmaps, free_l1);
  g_array_set_clear_func (extension->others, free_bytes);
}

void
extension_clear (struct extension *extension)
{
  g_clear_pointer (&extension->bit_clusters, g_array_unref);
  g_clear_pointer (&extension->bitmaps, g_array_unref);
  g_clear_pointer (&extension->others, g_array_unref);
}

uint64_t
extension_nr_bits (const struct extension_bitmap *bitmap)
{
  return bitmap->size_sectors / bitmap->granularity
         + (bitmap->size_sectors % bitmap->granularity != 0);
}

uint64_t
extension_nr_l1 (const struct format_layout *layout, uint64_t nr_bits)
{
  const uint64_t bits_per_cluster = 8 * (uint64_t) layout->cluster_size;

  return nr_bits / bits_per_cluster + (nr_bits % bits_per_cluster != 0);
}

static void
add_clusters (struct extension *extension,
              const struct extension_bitmap *bitmap)
{
  for (uint32_t i = 0; i < bitmap->nr_l1; i++)
    if (bitmap->l1[i] > 1) {    /* else all clear, or all set: no cluster */
      const uint64_t offset = bitmap->l1[i] * FORMAT_SECTOR_SIZE;

      g_array_append_val (extension->bit_clusters, offset);
    }
}

void
extension_add_bitmap (struct extension *extension,
                      const struct extension_bitmap *bitmap)
{
  g_array_append_vals (extension->bitmaps, bitmap, 1);
  extension->nr_bitmaps++;
  add_clusters (extension, bitmap);
}

void
extension_update_clusters (struct extension *extension)
{
  g_array_set_size (extension->bit_clusters, 0);
  for (guint i = 0; i < extension->bitmaps->len; i++)
    add_clusters (extension, &g_array_index (extension->bitmaps,
                                             struct extension_bitmap, i));
}

void
extension_remove_bitmap (struct extension *extension, guint i)
{
  g_array_remove_index (extension->bitmaps, i);
  extension->nr_bitmaps--;
  extension_update_clusters (extension);
}

void
extension_remove_droppable (struct extension *extension)
{
  for (guint i = extension->others->len; i-- > 0;) {
    const struct extension_feature *feature =
      &g_array_index (extension->others, struct extension_feature, i);

    if ((feature->flags & (EXTENSION_NECESSARY | EXTENSION_TRANSIT)) == 0) {
      g_array_remove_index (extension->others, i);
      extension->nr_unknown--;
    }
  }
}

char *
extension_check_necessary (const struct extension *extension)
{
  for (guint i = 0; i < extension->others->len; i++) {
    const struct extension_feature *feature =
      &g_array_index (extension->others, struct extension_feature, i);

    if (feature->flags & EXTENSION_NECESSARY)
      return g_strdup_printf ("feature 0x%016" G_GINT64_MODIFIER "x is marked "
                              "as necessary and unknown", feature->magic);
  }
  return NULL;
}

/* ---- Reading ----------------------------------------------------------- */

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
static void
get_digest (const uint8_t *bytes, size_t cluster_size, uint8_t digest[16])
{
  g_autoptr (GChecksum) md5 = g_checksum_new (G_CHECKSUM_MD5);
  gsize length = 16;

  g_checksum_update (md5, bytes + FEATURES_OFFSET,
                     (gssize) (cluster_size - FEATURES_OFFSET));
  g_checksum_get_digest (md5, digest, &length);
}

static bool
digest_matches (const uint8_t *bytes, size_t cluster_size)
{
  uint8_t digest[16];

  get_digest (bytes, cluster_size, digest);
  return memcmp (digest, bytes + 8, sizeof digest) == 0;
}

/* Adds BITMAP if its L1 is good. */
static char *
parse_l1 (const uint8_t *l1, struct extension_bitmap *bitmap,
          const struct format_layout *layout, uint64_t file_size,
          struct extension *extension)
{
  for (uint32_t i = 0; i < bitmap->nr_l1; i++) {
    const uint64_t sector = format_get_le64 (l1 + (size_t) i * 8);

    if (sector > 1 && !is_data_sector (layout, file_size, sector))
      return g_strdup_printf ("bitmap %u: L1 entry %" G_GUINT32_FORMAT
                              " is sector %" G_GUINT64_FORMAT
                              ", outside the file's data area",
                              extension->nr_bitmaps, i, sector);
  }
  bitmap->l1 = g_new (uint64_t, bitmap->nr_l1);
  for (uint32_t i = 0; i < bitmap->nr_l1; i++)
    bitmap->l1[i] = format_get_le64 (l1 + (size_t) i * 8);
  extension_add_bitmap (extension, bitmap);
  return NULL;
}

static char *
parse_bitmap (const uint8_t *data, uint32_t size, uint64_t flags,
              const struct format_layout *layout, uint64_t file_size,
              struct extension *extension)
{
  struct extension_bitmap bitmap;

  if (size < BITMAP_HEADER_SIZE)
    return g_strdup_printf ("bitmap %u: data size is %" G_GUINT32_FORMAT
                            " bytes, must be at least %u",
                            extension->nr_bitmaps, size, BITMAP_HEADER_SIZE);
  bitmap = (struct extension_bitmap) {
    .flags = flags,
    .size_sectors = format_get_le64 (data),
    .granularity = format_get_le32 (data + 24),
    .nr_l1 = format_get_le32 (data + 28),
  };
  memcpy (bitmap.uuid, data + 8, sizeof bitmap.uuid);

  if (bitmap.granularity == 0
      || (bitmap.granularity & (bitmap.granularity - 1)) != 0)
    return g_strdup_printf ("bitmap %u: granularity is %" G_GUINT32_FORMAT
                            " sectors, must be a power of two",
                            extension->nr_bitmaps, bitmap.granularity);
  if (bitmap.size_sectors > FORMAT_MAX_SIZE_SECTORS)
    return g_strdup_printf ("bitmap %u: disk size is %" G_GUINT64_FORMAT
                            " sectors, past every limit",
                            extension->nr_bitmaps, bitmap.size_sectors);
  if (bitmap.nr_l1 > (size - BITMAP_HEADER_SIZE) / 8)
    return g_strdup_printf ("bitmap %u: L1 length is %" G_GUINT32_FORMAT
                            ", but its data has room for %" G_GUINT32_FORMAT,
                            extension->nr_bitmaps, bitmap.nr_l1,
                            (size - BITMAP_HEADER_SIZE) / 8);
  /* An empty table is an empty bitmap; any other covers the disk. */
  bitmap.nr_l1_needed = extension_nr_l1 (layout, extension_nr_bits (&bitmap));
  if (bitmap.nr_l1 != 0 && bitmap.nr_l1 < bitmap.nr_l1_needed)
    return g_strdup_printf ("bitmap %u: L1 length is %" G_GUINT32_FORMAT
                            ", but its disk of %" G_GUINT64_FORMAT
                            " sectors needs %" G_GUINT64_FORMAT,
                            extension->nr_bitmaps, bitmap.nr_l1,
                            bitmap.size_sectors, bitmap.nr_l1_needed);
  return parse_l1 (data + BITMAP_HEADER_SIZE, &bitmap, layout, file_size,
                   extension);
}

static void
keep_feature (struct extension *extension, const uint8_t *bytes,
              uint32_t length)
{
  const struct extension_feature feature = {
    .magic = format_get_le64 (bytes),
    .flags = format_get_le64 (bytes + 8),
    .length = length,
    .bytes = g_memdup2 (bytes, length),
  };

  g_array_append_val (extension->others, feature);
  extension->nr_unknown++;
}

static bool
is_zero (const uint8_t *bytes, uint32_t length)
{
  for (uint32_t i = 0; i < length; i++)
    if (bytes[i] != 0)
      return false;
  return true;
}

/* Parse one feature and step over it.  *DONE at the end of the list. */
static char *
parse_feature (struct cursor *cursor, const struct format_layout *layout,
               uint64_t file_size, struct extension *extension, bool *done)
{
  const uint8_t *bytes = cursor->bytes, *data = bytes + FEATURE_HEADER_SIZE;
  uint32_t size, padding;
  char *wrong = NULL;

  *done = cursor->left < 8 || format_get_le64 (bytes) == 0;
  if (*done)
    return NULL;
  if (cursor->left < FEATURE_HEADER_SIZE)
    return g_strdup ("feature list runs past the end of its cluster");
  size = format_get_le32 (bytes + 16);
  if (size > cursor->left - FEATURE_HEADER_SIZE)
    return g_strdup_printf ("feature data size is %" G_GUINT32_FORMAT
                            " bytes, past the end of its cluster", size);
  padding = cursor->rounds ? -size & 7 : 0;
  padding =
    MIN (padding, (uint32_t) (cursor->left - FEATURE_HEADER_SIZE) - size);
  if (!is_zero (data + size, padding))
    return g_strdup_printf ("feature data of %" G_GUINT32_FORMAT
                            " bytes is not followed by a feature", size);

  if (format_get_le64 (bytes) == BITMAP_MAGIC)
    wrong = parse_bitmap (data, size, format_get_le64 (bytes + 8), layout,
                          file_size, extension);
  else
    keep_feature (extension, bytes, FEATURE_HEADER_SIZE + size + padding);
  cursor->bytes += FEATURE_HEADER_SIZE + size + padding;
  cursor->left -= FEATURE_HEADER_SIZE + size + padding;
  return wrong;
}

static char *
parse_features (const uint8_t *bytes, bool rounds,
                const struct format_layout *layout, uint64_t file_size,
                struct extension *extension)
{
  struct cursor cursor = {
    .bytes = bytes + FEATURES_OFFSET,
    .left = layout->cluster_size - FEATURES_OFFSET,
    .rounds = rounds,
  };
  bool done = false;
  char *wrong = NULL;

  extension_init (extension);
  while (!done && !wrong)
    wrong = parse_feature (&cursor, layout, file_size, extension, &done);
  if (wrong)
    extension_clear (extension);
  return wrong;
}

char *
extension_decode (const uint8_t *bytes, const struct format_layout *layout,
                  uint64_t file_size, struct extension *extension)
{
  g_autofree char *wrong = NULL;
  g_autofree char *wrong_too = NULL;

  if (format_get_le64 (bytes) != EXTENSION_MAGIC)
    return g_strdup_printf ("extension magic is 0x%016" G_GINT64_MODIFIER "x, "
                            "must be 0x%016" G_GINT64_MODIFIER "x",
                            format_get_le64 (bytes), EXTENSION_MAGIC);
  if (!digest_matches (bytes, layout->cluster_size))
    return g_strdup ("extension checksum (MD5) does not match its content");
  wrong = parse_features (bytes, true, layout, file_size, extension);
  if (!wrong)
    return NULL;
  wrong_too = parse_features (bytes, false, layout, file_size, extension);
  return wrong_too ? g_steal_pointer (&wrong) : NULL;
}

char *
extension_parse (const uint8_t *bytes, const struct format_layout *layout,
                 uint64_t file_size, struct extension *extension)
{
  char *wrong = extension_decode (bytes, layout, file_size, extension);

  if (wrong)
    return wrong;
  wrong = extension_check_necessary (extension);
  if (wrong)
    extension_clear (extension);
  return wrong;
}

/* ---- Writing ----------------------------------------------------------- */

static void
put_le32 (uint8_t *bytes, uint32_t value)
{
  value = GUINT32_TO_LE (value);
  memcpy (bytes, &value, sizeof value);
}

static void
put_le64 (uint8_t *bytes, uint64_t value)
{
  value = GUINT64_TO_LE (value);
  memcpy (bytes, &value, sizeof value);
}

static uint64_t
bitmap_length (const struct extension_bitmap *bitmap)
{
  return FEATURE_HEADER_SIZE + BITMAP_HEADER_SIZE
         + 8 * (uint64_t) bitmap->nr_l1;
}

/* qemu insists on a whole header at the end, of zeros. */
uint64_t
extension_length (const struct extension *extension)
{
  uint64_t length = FEATURES_OFFSET + FEATURE_HEADER_SIZE;

  for (guint i = 0; i < extension->bitmaps->len; i++)
    length += bitmap_length (&g_array_index (extension->bitmaps,
                                             struct extension_bitmap, i));
  for (guint i = 0; i < extension->others->len; i++)
    length += g_array_index (extension->others, struct extension_feature,
                             i).length;
  return length;
}

static void
encode_bitmap (const struct extension_bitmap *bitmap, uint8_t *bytes)
{
  uint8_t *data = bytes + FEATURE_HEADER_SIZE;

  put_le64 (bytes, BITMAP_MAGIC);
  put_le64 (bytes + 8, bitmap->flags);
  put_le32 (bytes + 16, BITMAP_HEADER_SIZE + 8 * bitmap->nr_l1);
  put_le64 (data, bitmap->size_sectors);
  memcpy (data + 8, bitmap->uuid, sizeof bitmap->uuid);
  put_le32 (data + 24, bitmap->granularity);
  put_le32 (data + 28, bitmap->nr_l1);
  for (uint32_t i = 0; i < bitmap->nr_l1; i++)
    put_le64 (data + BITMAP_HEADER_SIZE + 8 * (size_t) i, bitmap->l1[i]);
}

void
extension_encode (const struct extension *extension,
                  const struct format_layout *layout, uint8_t *bytes)
{
  uint8_t *at = bytes + FEATURES_OFFSET;

  memset (bytes, 0, layout->cluster_size);
  for (guint i = 0; i < extension->bitmaps->len; i++) {
    const struct extension_bitmap *bitmap =
      &g_array_index (extension->bitmaps, struct extension_bitmap, i);

    encode_bitmap (bitmap, at);
    at += bitmap_length (bitmap);
  }
  for (guint i = 0; i < extension->others->len; i++) {
    const struct extension_feature *feature =
      &g_array_index (extension->others, struct extension_feature, i);

    memcpy (at, feature->bytes, feature->length);
    at += feature->length;
  }
  put_le64 (bytes, EXTENSION_MAGIC);
  get_digest (bytes, layout->cluster_size, bytes + 8);
}
