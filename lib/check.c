/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Checking an image against every rule of the format, without changing it:
 * ploop_check in ploop-core.h.
 *
 * What is an error here is what could cost data: two guest clusters in one
 * place, an entry that names what is not there, a bitmap that lies.  What other
 * programs would stumble over, but this library reads, is a note.
 */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "bat.h"
#include "check-delta.h"
#include "delta.h"
#include "extension.h"

struct check {
  struct delta *delta;
  ploop_finding_fn report;
  void *opaque;
  struct ploop_check_result result;
  GArray *extension_clusters;   /* of uint64_t, offsets, sorted */
  uint64_t nr_unreachable;      /* entries past the end of the disk */
  uint64_t nr_unfinished;       /* entries that were never flushed */
  uint64_t nr_off_grid;         /* clusters that are not at a multiple of theirs */
};

void
check_count (struct ploop_check_result *result, enum ploop_finding finding)
{
  switch (finding) {
  case PLOOP_FINDING_ERROR:
    result->nr_errors++;
    break;
  case PLOOP_FINDING_LEAK:
    result->nr_leaks++;
    break;
  case PLOOP_FINDING_NOTE:
    result->nr_notes++;
    break;
  }
}

static void found (struct check *check, enum ploop_finding finding,
                   const char *format, ...) G_GNUC_PRINTF (3, 4);

static void
found (struct check *check, enum ploop_finding finding, const char *format,
       ...)
{
  g_autofree char *text = NULL;
  va_list args;

  check_count (&check->result, finding);
  if (!check->report)
    return;
  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);
  check->report (check->opaque, finding, text);
}

/* ---- Header ------------------------------------------------------------ */

static void
check_in_use (struct check *check)
{
  const struct format_header *header = &check->delta->header;
  const bool dirty = format_is_dirty (header->in_use);

  if (header->in_use == FORMAT_IN_USE)
    found (check, PLOOP_FINDING_NOTE, "in use is 0x%08" G_GINT32_MODIFIER
           "x: the image was not closed, or somebody has it open",
           header->in_use);
  else if (header->in_use == FORMAT_IN_REPAIR)
    found (check, PLOOP_FINDING_NOTE, "in use is 0x%08" G_GINT32_MODIFIER
           "x: a repair was cut short: repair it again", header->in_use);
  else if (dirty)
    found (check, PLOOP_FINDING_NOTE, "in use is 0x%08" G_GINT32_MODIFIER
           "x, a value that no known program writes: taken as not closed",
           header->in_use);
  else if (header->in_use == FORMAT_CLOSED_EXTENSION
           && header->extension_sectors == 0)
    found (check, PLOOP_FINDING_NOTE, "in use is 0x%08" G_GINT32_MODIFIER
           "x: closed with a valid extension, but extension offset is 0: there "
           "is none", header->in_use);
  if ((header->flags & FORMAT_FLAG_CONVERSION) && dirty)
    found (check, PLOOP_FINDING_ERROR, "flags are %" G_GUINT32_FORMAT
           ": a version conversion was interrupted; the old index is in "
           "%s.idx", header->flags, check->delta->path);
}

static void
check_flags (struct check *check)
{
  const uint32_t flags = check->delta->header.flags;
  const uint32_t unknown =
    flags & ~(FORMAT_FLAG_EMPTY | FORMAT_FLAG_CONVERSION);

  if (unknown != 0)
    found (check, PLOOP_FINDING_NOTE, "flags are %" G_GUINT32_FORMAT
           ", of which %" G_GUINT32_FORMAT " are unknown", flags, unknown);
  if ((flags & FORMAT_FLAG_CONVERSION)
      && !format_is_dirty (check->delta->header.in_use))
    found (check, PLOOP_FINDING_NOTE, "flags are %" G_GUINT32_FORMAT
           ": marked as being converted to another version, but the image was "
           "closed: it is taken for what its signature says", flags);
  if ((flags & FORMAT_FLAG_EMPTY) && check->result.nr_allocated > 0)
    found (check, PLOOP_FINDING_NOTE, "flags are %" G_GUINT32_FORMAT
           ": marked as empty, but clusters are allocated (qemu leaves it so)",
           flags);
}

/* What the Virtuozzo kernel insists on and qemu does not. */
static void
check_kernel_layout (struct check *check)
{
  const struct format_header *header = &check->delta->header;
  const struct format_layout *layout = &check->delta->layout;
  const uint64_t cluster_size = layout->cluster_size;
  const uint64_t wanted =
    (layout->bat_end + cluster_size - 1) / cluster_size * cluster_size;
  const uint64_t stored =
    (uint64_t) header->data_sectors * FORMAT_SECTOR_SIZE;

  if (cluster_size < FORMAT_MIN_CREATE_CLUSTER
      || cluster_size > FORMAT_MAX_CREATE_CLUSTER
      || (cluster_size & (cluster_size - 1)) != 0)
    found (check, PLOOP_FINDING_NOTE, "cluster size is %" G_GUINT32_FORMAT
           " sectors: ploop and the Virtuozzo kernel take powers of two from "
           "64 to 131072", header->cluster_sectors);
  if (stored != wanted)
    found (check, PLOOP_FINDING_NOTE, "first data offset is %" G_GUINT32_FORMAT
           " sectors: the Virtuozzo kernel wants %" G_GUINT64_FORMAT,
           header->data_sectors, wanted / FORMAT_SECTOR_SIZE);
  if (layout->size % cluster_size != 0)
    found (check, PLOOP_FINDING_NOTE, "disk size is %" G_GUINT64_FORMAT
           " sectors, not a multiple of the cluster size: ploop drops the "
           "last, partial cluster", header->size_sectors);
}

/* qemu counts cylinders of 16 heads and 32 sectors. */
static bool
is_known_geometry (const struct format_header *header)
{
  uint32_t heads, cylinders;

  format_geometry (header->size_sectors, &heads, &cylinders);
  return (header->heads == heads && header->cylinders == cylinders)
         || (header->heads == 16
             && header->cylinders == (uint32_t) (header->size_sectors / 512));
}

/* What the size of the disk does not say by itself. */
static void
check_size (struct check *check)
{
  const struct format_header *header = &check->delta->header;
  const uint64_t cluster_sectors = header->cluster_sectors;
  const uint64_t needed = header->size_sectors / cluster_sectors
                          + (header->size_sectors % cluster_sectors != 0);

  if (header->size_sectors == 0)
    found (check, PLOOP_FINDING_NOTE, "disk size is 0 sectors: there is nothing "
           "to read");
  if (header->nr_entries != needed)
    found (check, PLOOP_FINDING_NOTE, "number of BAT entries is %"
           G_GUINT32_FORMAT ", but the disk of %" G_GUINT64_FORMAT " sectors has "
           "only %" G_GUINT64_FORMAT " clusters", header->nr_entries,
           header->size_sectors, needed);
  if (!is_known_geometry (header))
    found (check, PLOOP_FINDING_NOTE, "heads and cylinders are %"
           G_GUINT32_FORMAT " and %" G_GUINT32_FORMAT ", which neither ploop nor "
           "qemu would give a disk of this size: nothing depends on them",
           header->heads, header->cylinders);
}

/* Version 1 has the disk's size in 32 bits.  Who reads 64 takes it for another. */
static int
check_upper_size (struct check *check, GError **error)
{
  const struct delta *delta = check->delta;
  uint8_t bytes[4];
  int r;

  if (delta->header.version != 1)
    return 0;
  r = delta_pread (delta, bytes, sizeof bytes, 40);
  if (r < 0) {
    error_set_system (error, r, "%s: header cannot be read", delta->path);
    return -1;
  }
  if (format_get_le32 (bytes) != 0)
    found (check, PLOOP_FINDING_NOTE, "bytes 40 to 43 are 0x%08" G_GINT32_MODIFIER
           "x, must be 0 in version 1: they are no part of the disk size",
           format_get_le32 (bytes));
  return 0;
}

/* ---- Slack and tail ---------------------------------------------------- */

static int
check_slack (struct check *check, GError **error)
{
  const struct format_layout *layout = &check->delta->layout;
  const uint64_t end = MIN (layout->data_start, check->delta->file_size);
  uint64_t position;
  const int r =
    delta_find_nonzero (check->delta, layout->bat_end, end, &position);

  if (r < 0) {
    error_set_system (error, r, "%s: cannot be read at byte %" G_GUINT64_FORMAT,
                      check->delta->path, position);
    return -1;
  }
  if (position < end)
    found (check, PLOOP_FINDING_NOTE, "byte %" G_GUINT64_FORMAT " between the "
           "end of the BAT (%" G_GUINT64_FORMAT ") and the first data offset "
           "(%" G_GUINT64_FORMAT ") is not zero: the ploop tool takes it for "
           "a BAT entry", position, layout->bat_end, layout->data_start);
  return 0;
}

static void
check_tail (struct check *check, uint64_t data_end)
{
  const struct delta *delta = check->delta;
  uint64_t start = 0, stop;

  if (delta->file_size < data_end)
    found (check, PLOOP_FINDING_NOTE, "file size is %" G_GUINT64_FORMAT
           " bytes, but the last cluster ends at %" G_GUINT64_FORMAT
           ": what is missing reads as zeros", delta->file_size, data_end);
  /* The file is one piece of data unless it has holes. */
  if (delta->file_size > 0
      && (!delta_next_data (delta, delta->file_size, &start, &stop)
          || start > 0 || stop < MIN (delta->file_size, data_end)))
    found (check, PLOOP_FINDING_NOTE, "the file has holes or unwritten "
           "preallocated space: the kernels of OpenVZ 6 and Virtuozzo 7 do not "
           "take them (copy it with cp --sparse=never for those)");
}

/* ---- Extension --------------------------------------------------------- */

static gint
compare_offsets (gconstpointer a, gconstpointer b)
{
  const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

static bool
has_uuid_before (const GArray *bitmaps, guint i)
{
  const struct extension_bitmap *all = (const void *) bitmaps->data;

  for (guint j = 0; j < i; j++)
    if (memcmp (all[j].uuid, all[i].uuid, sizeof all[i].uuid) == 0)
      return true;
  return false;
}

/* Bitmaps that can be read, but not all of them trusted. */
static void
check_bitmaps (struct check *check, const struct extension *extension)
{
  const uint64_t size_sectors = check->delta->header.size_sectors;

  for (guint i = 0; i < extension->bitmaps->len; i++) {
    const struct extension_bitmap *bitmap =
      &g_array_index (extension->bitmaps, struct extension_bitmap, i);

    if (bitmap->size_sectors != size_sectors)
      found (check, PLOOP_FINDING_ERROR, "bitmap %u: is of a disk of %"
             G_GUINT64_FORMAT " sectors, but this one has %" G_GUINT64_FORMAT
             ": it cannot be used; the guest's data does not depend on it", i,
             bitmap->size_sectors, size_sectors);
    if (bitmap->nr_l1 > bitmap->nr_l1_needed)
      found (check, PLOOP_FINDING_NOTE, "bitmap %u: L1 length is %"
             G_GUINT32_FORMAT ", but its disk needs only %" G_GUINT64_FORMAT, i,
             bitmap->nr_l1, bitmap->nr_l1_needed);
    if (has_uuid_before (extension->bitmaps, i))
      found (check, PLOOP_FINDING_ERROR, "bitmap %u: has the UUID of one before "
             "it: which of them is meant cannot be told", i);
  }
  if (extension->nr_unknown > 0)
    found (check, PLOOP_FINDING_NOTE, "extension: has %u features of an unknown "
           "kind, which it does not call necessary", extension->nr_unknown);
}

/* Read and parse the extension.  *WRONG says what is wrong with it. */
static int
load_extension (struct check *check, char **wrong, GError **error)
{
  const struct delta *delta = check->delta;
  const struct format_layout *layout = &delta->layout;
  const uint64_t offset =
    delta->header.extension_sectors * FORMAT_SECTOR_SIZE;
  g_autofree uint8_t *bytes = NULL;
  struct extension extension;
  int r = -ENOMEM;

  /* Nobody writes an extension into larger clusters, and a sparse file of a few
   * bytes can claim 2 GiB.
   */
  if (layout->cluster_size > FORMAT_MAX_CREATE_CLUSTER) {
    *wrong = g_strdup_printf ("extension in a cluster of %" G_GUINT32_FORMAT
                              " bytes", layout->cluster_size);
    return 0;
  }
  bytes = g_try_malloc (layout->cluster_size);
  if (bytes)
    r = delta_pread (delta, bytes, layout->cluster_size, offset);
  if (r < 0) {
    error_set_system (error, r, "%s: extension cannot be read at byte %"
                      G_GUINT64_FORMAT, delta->path, offset);
    return -1;
  }
  g_array_append_val (check->extension_clusters, offset);
  *wrong = extension_parse (bytes, layout, delta->file_size, &extension);
  if (*wrong)
    return 0;
  g_array_append_vals (check->extension_clusters,
                       extension.bit_clusters->data,
                       extension.bit_clusters->len);
  check_bitmaps (check, &extension);
  extension_clear (&extension);
  return 0;
}

/* Before the BAT is scanned: which clusters belong to the extension. */
static int
check_extension (struct check *check, GError **error)
{
  const struct delta *delta = check->delta;
  g_autofree char *wrong = NULL;

  if (delta->header.extension_sectors == 0)
    return 0;
  if (delta->header.in_use == FORMAT_IN_USE) {
    found (check, PLOOP_FINDING_NOTE, "extension offset is %" G_GUINT64_FORMAT
           " sectors, but the image was not closed: its changed-block bitmaps "
           "are stale", delta->header.extension_sectors);
    return 0;
  }
  wrong =
    extension_check_place (&delta->header, &delta->layout, delta->file_size);
  if (!wrong && !format_is_on_grid (&delta->layout,
                                    delta->header.extension_sectors
                                    * FORMAT_SECTOR_SIZE))
    found (check, PLOOP_FINDING_NOTE, "extension offset is %" G_GUINT64_FORMAT
           " sectors, which does not lie a whole number of clusters behind the "
           "first data offset", delta->header.extension_sectors);
  if (!wrong && load_extension (check, &wrong, error) < 0)
    return -1;
  if (wrong)
    found (check, PLOOP_FINDING_ERROR, "%s: its changed-block bitmaps cannot "
           "be used; the guest's data does not depend on them", wrong);
  g_array_sort (check->extension_clusters, compare_offsets);
  return 0;
}

/* Two bitmaps in one place. */
static void
check_extension_clusters (struct check *check)
{
  const GArray *clusters = check->extension_clusters;

  for (guint i = 1; i < clusters->len; i++) {
    const uint64_t before = g_array_index (clusters, uint64_t, i - 1);
    const uint64_t here = g_array_index (clusters, uint64_t, i);

    if (here - before < check->delta->layout.cluster_size)
      found (check, PLOOP_FINDING_ERROR, "extension: two clusters overlap, at "
             "bytes %" G_GUINT64_FORMAT " and %" G_GUINT64_FORMAT, before,
             here);
  }
}

/* Does the host cluster at OFFSET overlap one of the extension's? */
static bool
is_extension_cluster (const struct check *check, uint64_t offset)
{
  const GArray *clusters = check->extension_clusters;
  const uint64_t cluster_size = check->delta->layout.cluster_size;
  guint low = 0, high = clusters->len;

  /* The first one that ends behind OFFSET. */
  while (low < high) {
    const guint middle = low + (high - low) / 2;

    if (g_array_index (clusters, uint64_t, middle) + cluster_size <= offset)
      low = middle + 1;
    else
      high = middle;
  }
  return low < clusters->len
         && g_array_index (clusters, uint64_t, low) < offset + cluster_size;
}

/* ---- BAT --------------------------------------------------------------- */

static bool
check_entry (void *opaque, uint32_t index, uint32_t entry)
{
  struct check *check = opaque;
  const struct format_layout *layout = &check->delta->layout;
  const uint64_t offset = format_entry_offset (layout, entry);

  if (is_extension_cluster (check, offset))
    found (check, PLOOP_FINDING_ERROR, "BAT entry %" G_GUINT32_FORMAT " is %"
           G_GUINT32_FORMAT " (byte %" G_GUINT64_FORMAT "), a cluster of the "
           "extension", index, entry, offset);
  if (!format_is_on_grid (layout, offset))
    check->nr_off_grid++;
  if ((uint64_t) index * layout->cluster_size >= layout->size)
    check->nr_unreachable++;
  return true;
}

static bool
check_fault (void *opaque, const struct bat_fault *fault)
{
  struct check *check = opaque;
  g_autofree char *text = bat_fault_describe (check->delta, fault);

  if (bat_fault_is_unfinished (check->delta, fault))
    check->nr_unfinished++;
  else
    found (check, PLOOP_FINDING_ERROR, "%s", text);
  return true;
}

/* Of the cells that are not named, between others, those that are holes: what a
 * trim has given back is one until it is used again.
 */
static void
check_leak (void *opaque, uint64_t first, uint64_t nr)
{
  struct check *check = opaque;

  check->result.nr_free_clusters +=
    nr - bat_count_wasted (check->delta, first, nr);
}

static int
check_bat (struct check *check, GError **error)
{
  const struct bat_visitor visitor = {
    .entry = check_entry,
    .fault = check_fault,
    .leak = check_leak,
    .opaque = check,
  };
  struct ploop_check_result *result = &check->result;
  struct bat_summary summary;

  if (bat_scan (check->delta, &visitor, &summary, error) < 0)
    return -1;
  result->nr_clusters = check->delta->layout.nr_entries;
  result->nr_allocated = summary.nr_allocated;
  result->nr_leaked_clusters =
    summary.nr_leaked - result->nr_free_clusters
    - MIN (summary.nr_leaked - result->nr_free_clusters,
           check->extension_clusters->len);

  if (check->nr_unfinished > 0)
    found (check, PLOOP_FINDING_NOTE, "%" G_GUINT64_FORMAT " BAT entries point "
           "past the end of the file: clusters that were never flushed, "
           "unallocated", check->nr_unfinished);
  if (check->nr_off_grid > 0)
    found (check, PLOOP_FINDING_NOTE, "%" G_GUINT64_FORMAT " clusters do not lie "
           "a whole number of clusters behind the first data offset: the "
           "Virtuozzo kernel takes them for others", check->nr_off_grid);
  if (check->nr_unreachable > 0)
    found (check, PLOOP_FINDING_LEAK, "%" G_GUINT64_FORMAT " BAT entries lie "
           "past the end of the disk: no guest can read their clusters",
           check->nr_unreachable);
  if (result->nr_leaked_clusters > 0)
    found (check, PLOOP_FINDING_LEAK, "%" G_GUINT64_FORMAT " clusters of the "
           "file are not in the BAT (preallocated, or left behind by a crash)",
           result->nr_leaked_clusters);
  check_tail (check, summary.data_end);
  return 0;
}

/* ---- All --------------------------------------------------------------- */

static int
check_all (struct check *check, GError **error)
{
  int r;

  check_in_use (check);
  check_kernel_layout (check);
  check_size (check);
  check->extension_clusters = g_array_new (FALSE, FALSE, sizeof (uint64_t));
  r = check_upper_size (check, error);
  if (r == 0)
    r = check_extension (check, error);
  if (r == 0) {
    check_extension_clusters (check);
    r = check_slack (check, error);
  }
  if (r == 0)
    r = check_bat (check, error);
  if (r == 0)
    check_flags (check);
  g_array_unref (check->extension_clusters);
  return r;
}

void
check_add_result (struct ploop_check_result *sum,
                  const struct ploop_check_result *result)
{
  sum->nr_errors += result->nr_errors;
  sum->nr_leaks += result->nr_leaks;
  sum->nr_notes += result->nr_notes;
  sum->nr_leaked_clusters += result->nr_leaked_clusters;
  sum->nr_free_clusters += result->nr_free_clusters;
  sum->nr_allocated += result->nr_allocated;
  sum->nr_clusters += result->nr_clusters;
}

int
check_delta (struct delta *delta, ploop_finding_fn report, void *opaque,
             struct ploop_check_result *result, GError **error)
{
  struct check check = {
    .delta = delta,
    .report = report,
    .opaque = opaque,
  };
  const int r = check_all (&check, error);

  check_add_result (result, &check.result);
  return r;
}

int
ploop_check (const char *path, ploop_finding_fn report, void *opaque,
             struct ploop_check_result *result, GError **error)
{
  struct ploop_check_result sum = { 0 };
  g_autoptr (GError) why = NULL;
  struct delta *delta = delta_open (path, DELTA_LOCK_READER, &why);
  int r = -1;

  if (delta)
    r = check_delta (delta, report, opaque, &sum, &why);
  else if (g_error_matches (why, PLOOP_ERROR, PLOOP_ERROR_CORRUPT)) {
    /* An absurd header is a finding, and all that there is to find. */
    check_count (&sum, PLOOP_FINDING_ERROR);
    if (report)
      report (opaque, PLOOP_FINDING_ERROR, why->message);
    r = 0;
  }
  delta_close (delta);

  if (r < 0) {
    g_propagate_error (error, g_steal_pointer (&why));
    return -1;
  }
  if (result)
    *result = sum;
  return 0;
}
