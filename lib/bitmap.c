/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Changed-block bitmaps as they are on the disk: see bitmap.h.
 *
 * Any number in them may be absurd.  extension.c has judged each by itself; here it is
 * seen to that no cluster is named twice, so that reading bits takes no longer than
 * reading the file does.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "bitmap.h"

/* Of bits, read at once. */
#define PIECE_BYTES 65536u

/* ---- UUIDs ------------------------------------------------------------- */

void
bitmap_format_uuid (const uint8_t uuid[BITMAP_UUID_SIZE],
                    char text[BITMAP_UUID_TEXT])
{
  static const char digits[] = "0123456789abcdef";

  for (unsigned i = 0; i < BITMAP_UUID_SIZE; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10)
      *text++ = '-';
    *text++ = digits[uuid[i] >> 4];
    *text++ = digits[uuid[i] & 15];
  }
  *text = '\0';
}

bool
bitmap_parse_uuid (const char *text, uint8_t uuid[BITMAP_UUID_SIZE])
{
  const size_t length = strlen (text);
  g_autofree char *inner =
    length == 38 && text[0] == '{' && text[37] == '}'
      ? g_strndup (text + 1, 36) : g_strdup (text);
  const char *at = inner;

  if (!g_uuid_string_is_valid (inner))
    return false;
  for (unsigned i = 0; i < BITMAP_UUID_SIZE; i++, at += 2) {
    if (*at == '-')
      at++;
    uuid[i] = (uint8_t) (g_ascii_xdigit_value (at[0]) << 4
                         | g_ascii_xdigit_value (at[1]));
  }
  return true;
}

/* ---- Loading ----------------------------------------------------------- */

enum bitmap_state
bitmap_get_state (const struct format_header *header)
{
  if (header->extension_sectors == 0)
    return BITMAP_NONE;
  return header->in_use == FORMAT_CLOSED_EXTENSION ? BITMAP_VALID
                                                   : BITMAP_STALE;
}

uint64_t
bitmap_extension_offset (const struct delta *delta)
{
  return delta->header.extension_sectors * FORMAT_SECTOR_SIZE;
}

gint
bitmap_compare_offsets (gconstpointer a, gconstpointer b)
{
  const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

GArray *
bitmap_list_clusters (const struct delta *delta,
                      const struct extension *extension)
{
  GArray *list = g_array_copy (extension->bit_clusters);
  const uint64_t offset = bitmap_extension_offset (delta);

  if (offset != 0)
    g_array_append_val (list, offset);
  g_array_sort (list, bitmap_compare_offsets);
  return list;
}

/* Two that share a cluster would change each other; and a table that names one
 * cluster a million times would take forever to read.
 */
static char *
find_overlap (const struct delta *delta, const struct extension *extension)
{
  g_autoptr (GArray) list = bitmap_list_clusters (delta, extension);

  for (guint i = 1; i < list->len; i++) {
    const uint64_t before = g_array_index (list, uint64_t, i - 1);
    const uint64_t here = g_array_index (list, uint64_t, i);

    if (here - before < delta->layout.cluster_size)
      return g_strdup_printf ("two clusters overlap, at bytes %"
                              G_GUINT64_FORMAT " and %" G_GUINT64_FORMAT,
                              before, here);
  }
  return NULL;
}

int
bitmap_read_extension (const struct delta *delta,
                       struct extension *extension, char **wrong)
{
  const struct format_layout *layout = &delta->layout;
  g_autofree uint8_t *bytes = NULL;
  int r;

  *wrong =
    extension_check_place (&delta->header, layout, delta->file_size);
  if (*wrong)
    return 0;
  /* Nobody writes an extension into larger clusters, and a sparse file of a few
   * bytes can claim 2 GiB.
   */
  if (layout->cluster_size > FORMAT_MAX_CREATE_CLUSTER) {
    *wrong = g_strdup_printf ("it is in a cluster of %" G_GUINT32_FORMAT
                              " bytes", layout->cluster_size);
    return 0;
  }
  bytes = g_try_malloc (layout->cluster_size);
  if (!bytes)
    return -ENOMEM;
  r = delta_pread (delta, bytes, layout->cluster_size,
                   bitmap_extension_offset (delta));
  if (r < 0)
    return r;
  *wrong = extension_decode (bytes, layout, delta->file_size, extension);
  if (*wrong)
    return 0;
  *wrong = find_overlap (delta, extension);
  if (*wrong)
    extension_clear (extension);
  return 0;
}

bool
bitmap_load (const struct delta *delta, struct extension *extension,
             GError **error)
{
  g_autofree char *wrong = NULL;
  const int r = bitmap_read_extension (delta, extension, &wrong);

  if (r < 0)
    error_set_system (error, r, "%s: extension cannot be read at byte %"
                      G_GUINT64_FORMAT, delta->path,
                      bitmap_extension_offset (delta));
  else if (wrong)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: extension: %s: its changed-block bitmaps cannot be used; "
                 "the guest's data does not depend on them: 'ploop-img bitmap "
                 "remove --all' drops them", delta->path, wrong);
  return r == 0 && !wrong;
}

int
bitmap_find (const struct delta *delta, const struct extension *extension,
             const uint8_t uuid[BITMAP_UUID_SIZE], GError **error)
{
  char text[BITMAP_UUID_TEXT];
  int found = -1;

  bitmap_format_uuid (uuid, text);
  for (guint i = 0; i < extension->bitmaps->len; i++) {
    if (memcmp (g_array_index (extension->bitmaps, struct extension_bitmap,
                               i).uuid, uuid, BITMAP_UUID_SIZE) != 0)
      continue;
    if (found >= 0) {
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                   "%s: two bitmaps have the UUID %s: which of them is meant "
                   "cannot be told; 'ploop-img bitmap remove --all' drops all",
                   delta->path, text);
      return -1;
    }
    found = (int) i;
  }
  if (found < 0)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: has no bitmap with the UUID %s: 'ploop-img bitmap list' "
                 "shows those that it has", delta->path, text);
  return found;
}

/* ---- Reading bits ------------------------------------------------------ */

void
bitmap_read_begin (struct bitmap_reader *reader, const struct delta *delta,
                   const struct extension_bitmap *bitmap)
{
  *reader = (struct bitmap_reader) {
    .delta = delta,
    .bitmap = bitmap,
    .nr_bits = extension_nr_bits (bitmap),
    .piece = g_malloc (PIECE_BYTES),
  };
}

void
bitmap_read_end (struct bitmap_reader *reader)
{
  g_clear_pointer (&reader->piece, g_free);
}

uint64_t
bitmap_next_bit (const uint8_t *bits, uint64_t from, uint64_t end, bool set)
{
  const uint64_t flip = set ? 0 : UINT64_MAX;

  while (from < end) {
    const uint64_t word =
      (format_get_le64 (bits + from / 64 * 8) ^ flip) >> from % 64;

    if (word != 0)
      return MIN (from + (uint64_t) __builtin_ctzll (word), end);
    from = (from / 64 + 1) * 64;
  }
  return end;
}

/* Load the piece of L1 entry I's cluster that has BIT. */
static bool
load_piece (struct bitmap_reader *reader, uint64_t i, uint64_t bit,
            GError **error)
{
  const uint32_t cluster_size = reader->delta->layout.cluster_size;
  const uint64_t in_cluster =
    (bit / 8 - i * cluster_size) / PIECE_BYTES * PIECE_BYTES;
  const uint64_t offset =
    reader->bitmap->l1[i] * FORMAT_SECTOR_SIZE + in_cluster;
  const size_t length = (size_t) MIN (PIECE_BYTES, cluster_size - in_cluster);
  int r = 0;

  if (delta_is_hole (reader->delta, length, offset))
    memset (reader->piece, 0, length);
  else
    r = delta_pread (reader->delta, reader->piece, length, offset);
  if (r < 0) {
    error_set_system (error, r, "%s: bitmap cannot be read at byte %"
                      G_GUINT64_FORMAT, reader->delta->path, offset);
    return false;
  }
  reader->piece_start = (i * cluster_size + in_cluster) * 8;
  reader->piece_end = reader->piece_start + length * 8;
  return true;
}

/* The first bit from *BIT on that is set, or is not; the number of bits if there is
 * none.
 */
static bool
seek_bit (struct bitmap_reader *reader, uint64_t *bit, bool set,
          GError **error)
{
  const struct extension_bitmap *bitmap = reader->bitmap;
  const uint64_t bits_per_cluster =
    8 * (uint64_t) reader->delta->layout.cluster_size;

  while (*bit < reader->nr_bits) {
    const uint64_t i = *bit / bits_per_cluster;
    uint64_t end;

    if (i >= bitmap->nr_l1) {   /* an empty table */
      *bit = set ? reader->nr_bits : *bit;
      return true;
    }
    end = MIN ((i + 1) * bits_per_cluster, reader->nr_bits);
    if (bitmap->l1[i] <= 1) {
      if ((bitmap->l1[i] == 1) == set)
        return true;
      *bit = end;
      continue;
    }
    if ((*bit < reader->piece_start || *bit >= reader->piece_end)
        && !load_piece (reader, i, *bit, error))
      return false;
    end = MIN (end, reader->piece_end);
    *bit = reader->piece_start
           + bitmap_next_bit (reader->piece, *bit - reader->piece_start,
                              end - reader->piece_start, set);
    if (*bit < end)
      return true;
  }
  return true;
}

int
bitmap_read_run (struct bitmap_reader *reader, uint64_t *from, uint64_t *to,
                 GError **error)
{
  *from = reader->at;
  if (!seek_bit (reader, from, true, error))
    return -1;
  *to = *from;
  if (!seek_bit (reader, to, false, error))
    return -1;
  reader->at = *to;
  return *from < reader->nr_bits;
}

int
bitmap_read_run_as (struct bitmap_reader *reader,
                    const struct extension_bitmap *other, uint64_t *from,
                    uint64_t *to, GError **error)
{
  const uint64_t granularity = reader->bitmap->granularity;
  const uint64_t nr_bits = extension_nr_bits (other);
  const int r = bitmap_read_run (reader, from, to, error);

  *from = *from * granularity / other->granularity;
  *to = MIN ((*to * granularity + other->granularity - 1) / other->granularity,
             nr_bits);
  return r > 0 && *from >= nr_bits ? 0 : r;
}
