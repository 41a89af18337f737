/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Damaged headers: see header.h.
 *
 * What an error calls plausible comes from the numbers where the BAT must be: a
 * writer hands out host clusters one after the other, so the entries of version 2
 * follow each other by ones, those of version 1 by the sectors of a cluster.
 */

#include <config.h>

#include "header.h"

/* How much of the BAT is looked at. */
#define LOOK_BYTES ((size_t) 1 << 20)

/* What the numbers behind the header have in common. */
struct look {
  unsigned nr;                  /* that are not zero */
  uint32_t smallest, largest;
  uint32_t step;                /* greatest common divisor of their distances */
};

struct judgement {
  const struct tolerant *file;
  const char *name;
  const struct header_given *given;
  const struct log *log;
  struct format_header *header;
  GError **error;
};

bool
header_is_sound (const uint8_t bytes[FORMAT_HEADER_SIZE], uint64_t file_size)
{
  struct format_header header;
  struct format_layout layout;

  return format_decode_header (bytes, &header)
         && format_check_header (&header, file_size, &layout, NULL);
}

/* ---- What is plausible ------------------------------------------------- */

static uint32_t
common_divisor (uint32_t a, uint32_t b)
{
  while (b != 0) {
    const uint32_t rest = a % b;

    a = b;
    b = rest;
  }
  return a;
}

static void
look_at_entry (struct look *look, uint32_t entry)
{
  if (look->nr++ == 0)
    look->smallest = look->largest = entry;
  look->step = common_divisor (look->step, MAX (entry, look->smallest)
                                             - MIN (entry, look->smallest));
  look->smallest = MIN (look->smallest, entry);
  look->largest = MAX (look->largest, entry);
}

static void
ignore_bad (void *opaque G_GNUC_UNUSED, uint64_t offset G_GNUC_UNUSED,
            uint64_t length G_GNUC_UNUSED)
{
}

/* Where the BAT ends is not known: at the first number that cannot be an entry. */
static void
look_at_bat (const struct tolerant *file, struct look *look)
{
  const uint64_t file_size = file->delta->file_size;
  const size_t length = (size_t) MIN (LOOK_BYTES, file_size);
  g_autofree uint8_t *bytes = g_malloc (length + 1);

  *look = (struct look) { 0 };
  tolerant_read (file, bytes, length, 0, ignore_bad, NULL);
  for (size_t i = FORMAT_HEADER_SIZE; i + FORMAT_ENTRY_SIZE <= length;
       i += FORMAT_ENTRY_SIZE) {
    const uint32_t entry = format_get_le32 (bytes + i);

    if ((uint64_t) entry * FORMAT_SECTOR_SIZE >= file_size)
      return;
    if (entry != 0)
      look_at_entry (look, entry);
  }
}

/* Of version 2: a file as long as its clusters has that many of them. */
static uint32_t
plausible_cluster (const struct look *look, uint64_t file_size)
{
  const uint64_t size = file_size / ((uint64_t) look->largest + 1);
  uint32_t power = FORMAT_MAX_CREATE_CLUSTER;

  while (power > size)
    power /= 2;
  return power >= FORMAT_MIN_CREATE_CLUSTER ? power : 0;
}

/* A sentence about that (g_free), or nothing. */
static char *
describe_look (const struct tolerant *file)
{
  struct look look;
  uint32_t cluster;

  look_at_bat (file, &look);
  if (look.nr < 2)
    return g_strdup ("; the numbers behind the header say nothing about it");
  if (look.step >= FORMAT_MIN_CREATE_CLUSTER / FORMAT_SECTOR_SIZE)
    return g_strdup_printf ("; the numbers behind the header, from %"
                            G_GUINT32_FORMAT " to %" G_GUINT32_FORMAT
                            ", are multiples of %" G_GUINT32_FORMAT
                            " apart, like those of version 1 with clusters of %"
                            G_GUINT32_FORMAT " KiB", look.smallest, look.largest,
                            look.step, look.step / 2);
  cluster = plausible_cluster (&look, file->delta->file_size);
  if (cluster == 0)
    return g_strdup ("; the numbers behind the header are none of a BAT");
  return g_strdup_printf ("; the numbers behind the header, from %"
                          G_GUINT32_FORMAT " to %" G_GUINT32_FORMAT
                          ", are like those of version 2 with clusters of %"
                          G_GUINT32_FORMAT " KiB, or less if the file is longer "
                          "than its clusters", look.smallest, look.largest,
                          cluster >> 10);
}

static bool
refuse (const struct judgement *j, const char *format, ...)
  G_GNUC_PRINTF (2, 3);

static bool
refuse (const struct judgement *j, const char *format, ...)
{
  g_autofree char *text = NULL, *plausible = describe_look (j->file);
  va_list args;

  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);
  g_set_error (j->error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT, "%s: %s%s", j->name,
               text, plausible);
  return false;
}

/* ---- Field by field ---------------------------------------------------- */

static bool
judge_version (const struct judgement *j,
               const uint8_t bytes[FORMAT_HEADER_SIZE])
{
  uint8_t signed_bytes[FORMAT_HEADER_SIZE];
  struct format_header like = { .version = j->given->version };
  g_autofree char *start = g_strndup ((const char *) bytes, 16);
  g_autofree char *shown = g_strescape (start, NULL);

  if (j->given->version == 0) {
    if (format_decode_header (bytes, j->header))
      return true;
    return refuse (j, "signature is \"%s\", of neither version: the header is "
                   "destroyed, or this is no ploop image (for a raw disk, use a "
                   "program like ddrescue): if it is one, give its version, and "
                   "what else is wrong", shown);
  }
  /* Decoded as what it is said to be. */
  format_encode_header (&like, signed_bytes);
  memcpy (signed_bytes + 16, bytes + 16, FORMAT_HEADER_SIZE - 16);
  return format_decode_header (signed_bytes, j->header);
}

static bool
judge_cluster_size (const struct judgement *j)
{
  struct format_header *header = j->header;

  if (j->given->cluster_size != 0)
    header->cluster_sectors = j->given->cluster_size / FORMAT_SECTOR_SIZE;
  if (header->cluster_sectors > 0
      && header->cluster_sectors <= FORMAT_MAX_CLUSTER_SECTORS)
    return true;
  return refuse (j, "cluster size is %" G_GUINT32_FORMAT " sectors, must be from 1 "
                 "to %" G_GUINT32_FORMAT ": give what it was; the header also "
                 "says that %" G_GUINT32_FORMAT " clusters make %"
                 G_GUINT64_FORMAT " sectors", header->cluster_sectors,
                 FORMAT_MAX_CLUSTER_SECTORS, header->nr_entries,
                 header->size_sectors);
}

/* How many BAT entries the disk needs. */
static uint64_t
nr_needed (const struct format_header *header)
{
  return (header->size_sectors + header->cluster_sectors - 1)
         / header->cluster_sectors;
}

static bool
judge_size (const struct judgement *j)
{
  struct format_header *header = j->header;

  if (j->given->size != 0)
    header->size_sectors = j->given->size / FORMAT_SECTOR_SIZE;
  if (header->size_sectors > 0
      && header->size_sectors <= FORMAT_MAX_SIZE_SECTORS
      && nr_needed (header) <= FORMAT_MAX_ENTRIES)
    return true;
  return refuse (j, "disk size is %" G_GUINT64_FORMAT " sectors: give what it was; "
                 "the header also says that there are %" G_GUINT32_FORMAT
                 " clusters of %" G_GUINT32_FORMAT " sectors, or %"
                 G_GUINT64_FORMAT " bytes", header->size_sectors,
                 header->nr_entries, header->cluster_sectors,
                 (uint64_t) header->nr_entries * header->cluster_sectors
                   * FORMAT_SECTOR_SIZE);
}

/* A file that is cut off inside the BAT has a number that fits the size. */
static bool
judge_nr_entries (const struct judgement *j)
{
  struct format_header *header = j->header;
  const uint64_t needed = nr_needed (header);

  if (header->nr_entries == needed
      || (header->nr_entries > needed
          && header->nr_entries <= FORMAT_MAX_ENTRIES
          && format_bat_offset (header->nr_entries)
               <= j->file->delta->file_size))
    return true;
  if (j->given->size != 0) {
    log_warning (j->log, "%s: number of BAT entries is %" G_GUINT32_FORMAT
                 ": taken for %" G_GUINT64_FORMAT ", as the size that was given "
                 "needs", j->name, header->nr_entries, needed);
    header->nr_entries = (uint32_t) needed;
    return true;
  }
  return refuse (j, "disk size is %" G_GUINT64_FORMAT " bytes, for which there must "
                 "be %" G_GUINT64_FORMAT " BAT entries, but their number is %"
                 G_GUINT32_FORMAT ", for %" G_GUINT64_FORMAT " bytes: give the "
                 "size, this or that", header->size_sectors * FORMAT_SECTOR_SIZE,
                 needed, header->nr_entries,
                 (uint64_t) header->nr_entries * header->cluster_sectors
                   * FORMAT_SECTOR_SIZE);
}

/* What is wrong in the rest is of no use for reading. */
static bool
judge_rest (const struct judgement *j, struct format_layout *layout)
{
  struct format_header *header = j->header;
  const uint64_t file_size = MAX (j->file->delta->file_size,
                                  format_bat_offset (header->nr_entries));

  if (header->type != 2)
    log_warning (j->log, "%s: type is %" G_GUINT32_FORMAT ", not 2: no matter",
                 j->name, header->type);
  header->type = 2;
  if (format_check_header (header, file_size, layout, NULL))
    return true;
  log_warning (j->log, "%s: first data offset is %" G_GUINT32_FORMAT
               " sectors, which cannot be: taken as where the BAT ends",
               j->name, header->data_sectors);
  header->data_sectors = 0;
  return format_check_header (header, file_size, layout, j->error);
}

bool
header_judge (const struct tolerant *file, const char *name,
              const uint8_t bytes[FORMAT_HEADER_SIZE],
              const struct header_given *given, const struct log *log,
              struct format_header *header, struct format_layout *layout,
              GError **error)
{
  const struct judgement j = { file, name, given, log, header, error };

  return judge_version (&j, bytes) && judge_cluster_size (&j)
         && judge_size (&j) && judge_nr_entries (&j)
         && judge_rest (&j, layout);
}
