/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Changed-block bitmaps are changed: see bitmap-update.h.
 *
 * How a change survives a power cut.  An extension is never written over.  The new
 * one, and each cluster of bits that differs, goes to fresh space: cells that lie
 * behind all of the guest's clusters and that the old extension does not use.  That is
 * synced.  Then one write of one sector, the header's, names the new extension and
 * says "closed, extension valid"; then, with that durable, the clusters that only the
 * old one used are given back.  So there are two states on the disk, and the sector is
 * the switch: before it, the header names the old extension, of which nothing has been
 * touched; after it, the new one, all of which is durable.  The guest's clusters and
 * the BAT are not written at all.
 *
 * The in-use mark would make the bitmaps stale: a power cut would lose them for no
 * reason.  So it is left out where there are bitmaps before and after.  What is left
 * behind then is space that nothing names, next to the extension that is there.  Where
 * there were none, the mark comes first, as in all other changes of an image; and where
 * none are left, it goes when what they leave behind has been cleared.  For qemu 7.2
 * takes what lies behind the guest's clusters for zeros: an image without bitmaps that
 * says it was closed must not have anything there.
 *
 * What is free in the BAT as we read it may still have an owner in the BAT on the
 * disk, if somebody trimmed a cluster and nobody has synced since.  Hence the sync
 * before the first write.
 *
 * The extension goes behind the clusters of bits that it names: libploop 9 insists on
 * that.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "bat.h"
#include "bitmap-update.h"

static const struct log no_log;

/* ---- Space ------------------------------------------------------------- */

/* Does a cluster at OFFSET overlap one of LIST, sorted?  *WHICH is the first. */
static bool
overlaps (const GArray *list, uint64_t cluster_size, uint64_t offset,
          guint *which)
{
  guint low = 0, high = list->len;

  /* The first one that ends behind OFFSET. */
  while (low < high) {
    const guint middle = low + (high - low) / 2;

    if (g_array_index (list, uint64_t, middle) + cluster_size <= offset)
      low = middle + 1;
    else
      high = middle;
  }
  *which = low;
  return low < list->len
         && g_array_index (list, uint64_t, low) < offset + cluster_size;
}

/* The first cell that does not lie below OFFSET. */
static uint64_t
cell_from (const struct delta *delta, uint64_t offset)
{
  const uint64_t start = delta->layout.data_start;

  return offset <= start
           ? 0 : format_cell_at (&delta->layout,
                                 offset + delta->layout.cluster_size - 1);
}

static int
take_cluster (struct bitmap_update *update, uint64_t *offset)
{
  const struct format_layout *layout = &update->delta->layout;
  guint which;

  do {
    if (update->next_cell >= format_nr_cells (layout))
      return -EFBIG;
    *offset = format_cell_offset (layout, update->next_cell++);
  } while (overlaps (update->old_clusters, layout->cluster_size, *offset,
                     &which));
  return 0;
}

/* The header's sector is the switch. */
static int
write_header (const struct delta *delta, const struct format_header *header)
{
  uint8_t bytes[FORMAT_HEADER_SIZE];

  format_encode_header (header, bytes);
  return delta_pwrite_durable (delta, bytes + FORMAT_MUTABLE_OFFSET,
                               FORMAT_MUTABLE_SIZE, FORMAT_MUTABLE_OFFSET);
}

/* Give back space that nothing names; zeros, where it cannot be, for whoever takes it
 * next.
 */
static int
release (struct bitmap_update *update, uint64_t length, uint64_t offset)
{
  const int r = delta_punch (update->delta, length, offset);

  return r == -ENOTSUP ? delta_zero (update->delta, length, offset) : r;
}

/* The in-use mark, in front of the first write to an image that has no bitmaps. */
static int
mark (struct bitmap_update *update)
{
  struct format_header header = update->delta->header;

  if (bitmap_get_state (&header) != BITMAP_NONE || update->marked)
    return 0;
  header.in_use = FORMAT_IN_USE;
  /* On a closed image it says of a conversion that it has ended; together with the
   * mark it would look as if it had been interrupted.
   */
  header.flags &= ~FORMAT_FLAG_CONVERSION;
  update->marked = true;        /* even if that fails, the file may say so */
  return write_header (update->delta, &header);
}

/* Write a cluster to fresh space. */
static bool
write_cluster (struct bitmap_update *update, const uint8_t *bytes,
               uint64_t *offset, GError **error)
{
  const uint32_t cluster_size = update->delta->layout.cluster_size;
  int r = take_cluster (update, offset);

  if (r == 0) {
    update->end = MAX (update->end, *offset + cluster_size);
    if (update->first_written == 0)
      update->first_written = *offset;
    r = update->dry_run ? 0 : mark (update);
    if (r == 0 && !update->dry_run)
      r = delta_pwrite (update->delta, bytes, cluster_size, *offset);
  }
  if (r < 0)
    error_set_system (error, r, "%s: bitmaps cannot be written at byte %"
                      G_GUINT64_FORMAT "; it stays as it was",
                      update->delta->path, *offset);
  return r == 0;
}

/* ---- Beginning --------------------------------------------------------- */

/* What the guest's clusters say of those that the extension calls its own. */
struct owners {
  struct bitmap_update *update;
  bool shared;                  /* ... */
  uint32_t index;               /* ... with this guest cluster, and others */
  uint64_t offset;
};

/* A guest's cluster is nobody else's. */
static void
disown (void *opaque, uint32_t index, uint32_t entry)
{
  struct owners *owners = opaque;
  const struct format_layout *layout = &owners->update->delta->layout;
  const uint64_t offset = format_entry_offset (layout, entry);
  GArray *list = owners->update->old_clusters;
  guint which;

  while (overlaps (list, layout->cluster_size, offset, &which)) {
    owners->shared = true;
    owners->index = index;
    owners->offset = g_array_index (list, uint64_t, which);
    g_array_remove_index (list, which);
  }
}

static bool
load_bat (struct bitmap_update *update, struct owners *owners,
          GError **error)
{
  const struct bat_loader loader = { disown, NULL, owners };
  g_autoptr (GArray) lost = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  struct bat_summary summary;

  if (bat_load (update->delta, &loader, update->log, lost, &summary, error)
      < 0)
    return false;
  update->data_end = summary.data_end;
  update->next_cell =
    cell_from (update->delta, update->has_unknown_owners
                                ? MAX (update->end, update->data_end)
                                : update->data_end);
  return true;
}

static bool
check_writable (const struct bitmap_update *update, GError **error)
{
  if (!update->delta->read_only || update->dry_run)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
               "%s: may not be written: see its permissions, and whether its "
               "file system is mounted read-only", update->delta->path);
  return false;
}

static bool
check_closed (const struct delta *delta, GError **error)
{
  const struct format_header *header = &delta->header;

  if (format_is_dirty (header->in_use))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: in use is 0x%08" G_GINT32_MODIFIER "x: it was not closed%s; "
                 "its bitmaps can be changed when it was: 'ploop-img compact' "
                 "closes it%s", delta->path, header->in_use,
                 bitmap_get_state (header) == BITMAP_NONE
                   ? "" : ", so those that it has are stale",
                 bitmap_get_state (header) == BITMAP_NONE
                   ? "" : ", 'ploop-img bitmap remove --all' drops them");
  else if (bitmap_get_state (header) == BITMAP_STALE)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: in use is 0x%08" G_GINT32_MODIFIER "x: it was closed by a "
                 "program that does not keep bitmaps, so those that it has are "
                 "stale: 'ploop-img bitmap remove --all' drops them",
                 delta->path, header->in_use);
  else
    return true;
  return false;
}

static bool
check_changeable (const struct delta *delta,
                  const struct extension *extension, GError **error)
{
  g_autofree char *wrong = extension_check_necessary (extension);

  if (!wrong)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: extension: %s: only a program that knows it may change the "
               "image", delta->path, wrong);
  return false;
}

static void
init_update (struct bitmap_update *update, struct delta *delta, bool dry_run,
             const struct log *log)
{
  *update = (struct bitmap_update) {
    .delta = delta,
    .log = log ? log : &no_log,
    .dry_run = dry_run,
    .end = delta->file_size,
  };
  extension_init (&update->new);
}

/* Lists what is in use now, and lets go of what is not to be kept. */
static void
adopt_old (struct bitmap_update *update)
{
  const guint nr_others = update->new.others->len;

  update->old_clusters = bitmap_list_clusters (update->delta, &update->new);
  update->has_unknown_owners = nr_others > 0;
  extension_remove_droppable (&update->new);
  if (update->new.others->len < nr_others)
    log_warning (update->log, "%s: extension: %u features that are unknown, and "
                 "not marked to be kept, are dropped", update->delta->path,
                 nr_others - update->new.others->len);
}

/* So that the BAT that is read is the one on the disk. */
static bool
sync_first (const struct bitmap_update *update, GError **error)
{
  const int r = update->dry_run ? 0 : delta_sync (update->delta);

  if (r < 0)
    error_set_system (error, r, "%s: cannot be synced", update->delta->path);
  return r == 0;
}

static bool
begin_strictly (struct bitmap_update *update, GError **error)
{
  struct delta *delta = update->delta;
  struct owners owners = { .update = update };

  if (!check_writable (update, error) || !check_closed (delta, error))
    return false;
  if (bitmap_get_state (&delta->header) == BITMAP_VALID) {
    extension_clear (&update->new);
    if (!bitmap_load (delta, &update->new, error)
        || !check_changeable (delta, &update->new, error))
      return false;
  }
  adopt_old (update);
  if (!sync_first (update, error) || !load_bat (update, &owners, error))
    return false;
  if (!owners.shared)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
               "%s: extension: its cluster at byte %" G_GUINT64_FORMAT " is also "
               "that of BAT entry %" G_GUINT32_FORMAT ": its bitmaps cannot be "
               "used: 'ploop-img bitmap remove --all' drops them", delta->path,
               owners.offset, owners.index);
  return false;
}

bool
bitmap_update_begin (struct bitmap_update *update, struct delta *delta,
                     bool dry_run, const struct log *log, GError **error)
{
  init_update (update, delta, dry_run, log);
  if (begin_strictly (update, error))
    return true;
  bitmap_update_end (update);
  return false;
}

/* What the extension of an image that is to lose it has, as far as can be told. */
static bool
load_leniently (struct bitmap_update *update, GError **error)
{
  struct delta *delta = update->delta;
  g_autofree char *wrong = NULL;
  struct extension old;
  int r = bitmap_read_extension (delta, &old, &wrong);

  if (r < 0) {
    log_warning (update->log, "%s: extension cannot be read at byte %"
                 G_GUINT64_FORMAT ": %s: it is dropped, but its space is not "
                 "given back", delta->path, bitmap_extension_offset (delta),
                 g_strerror (-r));
    wrong = g_strdup ("");
  }
  else if (wrong)
    log_warning (update->log, "%s: extension: %s: it is dropped, but its space "
                 "may not be given back", delta->path, wrong);
  if (wrong) {
    update->old_clusters = g_array_new (FALSE, FALSE, sizeof (uint64_t));
    return true;
  }
  update->old_clusters = bitmap_list_clusters (delta, &old);
  update->nr_dropped = old.nr_bitmaps;
  r = bitmap_get_state (&delta->header) != BITMAP_VALID
      || check_changeable (delta, &old, error) ? 0 : -1;
  extension_clear (&old);
  return r == 0;
}

static bool
begin_dropping (struct bitmap_update *update, GError **error)
{
  struct owners owners = { .update = update };

  if (!check_writable (update, error) || !load_leniently (update, error))
    return false;
  /* The BAT of one that is in use may say anything: nothing but the header is
   * touched then.
   */
  if (!format_is_dirty (update->delta->header.in_use)) {
    if (!load_bat (update, &owners, error))
      return false;
    if (owners.shared)
      log_warning (update->log, "%s: extension: its cluster at byte %"
                   G_GUINT64_FORMAT " is also that of BAT entry %"
                   G_GUINT32_FORMAT ", whose it stays", update->delta->path,
                   owners.offset, owners.index);
    return true;
  }
  log_warning (update->log, "%s: was not closed (in use is 0x%08"
               G_GINT32_MODIFIER "x), or a Virtuozzo kernel has it mounted: do "
               "not change it then; nothing but its header is changed",
               update->delta->path, update->delta->header.in_use);
  g_array_set_size (update->old_clusters, 0);
  update->data_end = update->end;
  return true;
}

bool
bitmap_update_begin_drop (struct bitmap_update *update, struct delta *delta,
                          bool dry_run, const struct log *log,
                          GError **error)
{
  init_update (update, delta, dry_run, log);
  if (begin_dropping (update, error))
    return true;
  bitmap_update_end (update);
  return false;
}

/* ---- Merging ----------------------------------------------------------- */

bool
bitmap_update_check_length (const struct bitmap_update *update, uint64_t more,
                            GError **error)
{
  const uint64_t length = extension_length (&update->new) + more;
  const uint32_t cluster_size = update->delta->layout.cluster_size;

  if (length <= cluster_size)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: its bitmaps would need an extension of %" G_GUINT64_FORMAT
               " bytes, but that is one cluster, of %" G_GUINT32_FORMAT
               ": use a coarser granularity, or fewer bitmaps",
               update->delta->path, length, cluster_size);
  return false;
}

struct merge {
  struct bitmap_update *update;
  struct extension_bitmap *target;
  uint64_t nr_bits;
  struct bitmap_reader source;
  uint64_t from, to;            /* what is to be set next, in the target's bits */
  uint8_t *bits;                /* a cluster of them */
};

/* Returns as bitmap_read_run. */
static int
next_run (struct merge *merge, GError **error)
{
  return bitmap_read_run_as (&merge->source, merge->target, &merge->from,
                             &merge->to, error);
}

/* Set bits FROM up to TO.  Was one of them clear? */
static bool
set_bits (uint8_t *bits, uint64_t from, uint64_t to)
{
  if (bitmap_next_bit (bits, from, to, false) == to)
    return false;
  for (; from < to && from % 8 != 0; from++)
    bits[from / 8] |= (uint8_t) (1u << from % 8);
  memset (bits + from / 8, 0xff, (to - from) / 8);
  for (from += (to - from) / 8 * 8; from < to; from++)
    bits[from / 8] |= (uint8_t) (1u << from % 8);
  return true;
}

static bool
load_cluster (struct merge *merge, uint64_t sector, GError **error)
{
  const struct delta *delta = merge->update->delta;
  int r;

  memset (merge->bits, sector == 1 ? 0xff : 0, delta->layout.cluster_size);
  if (sector <= 1)
    return true;
  r = delta_pread (delta, merge->bits, delta->layout.cluster_size,
                   sector * FORMAT_SECTOR_SIZE);
  if (r < 0)
    error_set_system (error, r, "%s: bitmap cannot be read at byte %"
                      G_GUINT64_FORMAT, delta->path,
                      sector * FORMAT_SECTOR_SIZE);
  return r == 0;
}

/* Set what the source has among the bits of L1 entry I.  Returns as bitmap_read_run. */
static int
merge_cluster (struct merge *merge, uint64_t i, GError **error)
{
  const uint64_t bits_per_cluster =
    8 * (uint64_t) merge->update->delta->layout.cluster_size;
  const uint64_t start = i * bits_per_cluster;
  const uint64_t end = MIN (start + bits_per_cluster, merge->nr_bits);
  bool changed = false;
  uint64_t offset;
  int r = 1;

  if (!load_cluster (merge, merge->target->l1[i], error))
    return -1;
  while (r > 0 && merge->from < end) {
    const uint64_t from = MAX (merge->from, start);

    if (set_bits (merge->bits, from - start, MIN (merge->to, end) - start))
      changed = true;
    if (merge->to > end)
      break;                    /* the rest is in the next cluster */
    r = next_run (merge, error);
  }
  if (r < 0 || !changed)
    return r;
  if (bitmap_next_bit (merge->bits, 0, end - start, false) == end - start) {
    merge->target->l1[i] = 1;
    return r;
  }
  if (!write_cluster (merge->update, merge->bits, &offset, error))
    return -1;
  merge->target->l1[i] = offset / FORMAT_SECTOR_SIZE;
  return r;
}

static bool
merge_all (struct merge *merge, GError **error)
{
  const uint64_t bits_per_cluster =
    8 * (uint64_t) merge->update->delta->layout.cluster_size;
  int r = next_run (merge, error);

  for (uint64_t i = 0; r > 0; i++) {
    i = MAX (i, merge->from / bits_per_cluster);
    if (i >= merge->target->nr_l1)
      break;
    r = merge_cluster (merge, i, error);
  }
  return r >= 0;
}

/* Neither an empty table, nor one that is longer than it has to be. */
static void
size_l1 (struct extension_bitmap *bitmap)
{
  const uint32_t nr = (uint32_t) bitmap->nr_l1_needed;

  bitmap->l1 = g_renew (uint64_t, bitmap->l1, nr);
  for (uint32_t i = bitmap->nr_l1; i < nr; i++)
    bitmap->l1[i] = 0;
  bitmap->nr_l1 = nr;
}

bool
bitmap_update_merge (struct bitmap_update *update, guint i,
                     const struct delta *source_delta,
                     const struct extension_bitmap *source, GError **error)
{
  struct merge merge = {
    .update = update,
    .target =
      &g_array_index (update->new.bitmaps, struct extension_bitmap, i),
  };
  bool good;

  if (merge.target->nr_l1 < merge.target->nr_l1_needed
      && !bitmap_update_check_length (update, 8 * merge.target->nr_l1_needed, error))
    return false;
  merge.bits = g_try_malloc (update->delta->layout.cluster_size);
  if (!merge.bits) {
    error_set_system (error, ENOMEM, "%s: no memory for a cluster of bits",
                      update->delta->path);
    return false;
  }
  size_l1 (merge.target);
  merge.nr_bits = extension_nr_bits (merge.target);
  bitmap_read_begin (&merge.source, source_delta, source);
  good = merge_all (&merge, error);
  bitmap_read_end (&merge.source);
  g_free (merge.bits);
  extension_update_clusters (&update->new);
  return good;
}

/* ---- Committing -------------------------------------------------------- */

static bool
is_empty (const struct extension *extension)
{
  return extension->bitmaps->len == 0 && extension->others->len == 0;
}

/* What is written next goes behind all clusters of bits. */
static void
pass_bits (struct bitmap_update *update)
{
  const uint32_t cluster_size = update->delta->layout.cluster_size;
  const GArray *clusters = update->new.bit_clusters;

  for (guint i = 0; i < clusters->len; i++)
    update->next_cell =
      MAX (update->next_cell,
           cell_from (update->delta, g_array_index (clusters, uint64_t, i)
                                       + cluster_size));
}

static bool
write_extension (struct bitmap_update *update, uint64_t *offset,
                 GError **error)
{
  const struct format_layout *layout = &update->delta->layout;
  g_autofree uint8_t *bytes = NULL;

  if (!bitmap_update_check_length (update, 0, error))
    return false;
  pass_bits (update);
  bytes = g_try_malloc (layout->cluster_size);
  if (!bytes) {
    error_set_system (error, ENOMEM, "%s: no memory for the extension",
                      update->delta->path);
    return false;
  }
  extension_encode (&update->new, layout, bytes);
  return write_cluster (update, bytes, offset, error);
}

static bool
switch_header (struct bitmap_update *update, uint64_t offset, GError **error)
{
  struct format_header header = update->delta->header;
  int r = delta_sync (update->delta);

  if (r < 0) {
    error_set_system (error, r, "%s: cannot be synced; it keeps the bitmaps "
                      "that it had", update->delta->path);
    return false;
  }
  header.extension_sectors = offset / FORMAT_SECTOR_SIZE;
  if (offset != 0)
    header.in_use = FORMAT_CLOSED_EXTENSION;
  else if (!format_is_dirty (header.in_use)) {
    header.in_use = FORMAT_IN_USE;      /* until close_image */
    update->marked = true;
  }
  if (update->marked)
    header.flags &= ~FORMAT_FLAG_CONVERSION;
  r = write_header (update->delta, &header);
  /* Either may be on the disk: what both name must stay there. */
  update->committed = true;
  if (r < 0) {
    error_set_system (error, r, "%s: header cannot be written: it may carry "
                      "the bitmaps that it had, or the new ones",
                      update->delta->path);
    return false;
  }
  update->delta->header = header;
  return true;
}

/* How long the file has to be with CLUSTERS where they are. */
static uint64_t
needed_size (const struct bitmap_update *update, const GArray *clusters)
{
  const uint32_t cluster_size = update->delta->layout.cluster_size;
  uint64_t size = update->data_end;

  if (update->new.others->len > 0)
    return update->end;
  if (clusters->len > 0)
    size = MAX (size, g_array_index (clusters, uint64_t, clusters->len - 1)
                        + cluster_size);
  return MIN (size, update->end);
}

/* What only the old extension used. */
static void
release_old (struct bitmap_update *update, const GArray *clusters)
{
  const uint32_t cluster_size = update->delta->layout.cluster_size;
  int r = 0;

  if (update->file_size_after < update->end)
    r = delta_truncate (update->delta, update->file_size_after);
  for (guint i = 0; r == 0 && i < update->old_clusters->len; i++) {
    const uint64_t offset =
      g_array_index (update->old_clusters, uint64_t, i);
    guint which;

    if (offset < update->file_size_after
        && !overlaps (clusters, cluster_size, offset, &which))
      r = release (update, cluster_size, offset);
  }
  if (r < 0)
    log_warning (update->log, "%s: bitmaps are changed, but the space of the old "
                 "ones cannot be given back: %s", update->delta->path,
                 g_strerror (-r));
}

/* An image that has lost its bitmaps, and the space of which is cleared. */
static bool
close_image (struct bitmap_update *update, GError **error)
{
  struct format_header header = update->delta->header;
  int r = delta_sync (update->delta);

  header.in_use = FORMAT_CLOSED;
  if (r == 0)
    r = write_header (update->delta, &header);
  if (r < 0) {
    error_set_system (error, r, "%s: its bitmaps are removed, but it cannot be "
                      "closed: it stays marked as in use, with no data lost",
                      update->delta->path);
    return false;
  }
  update->delta->header = header;
  return true;
}

static bool
commit_once (struct bitmap_update *update, GError **error)
{
  g_autoptr (GArray) clusters = g_array_copy (update->new.bit_clusters);
  uint64_t offset = 0;

  if (!is_empty (&update->new)) {
    if (!write_extension (update, &offset, error))
      return false;
    g_array_append_val (clusters, offset);
  }
  g_array_sort (clusters, bitmap_compare_offsets);
  update->file_size_after = needed_size (update, clusters);
  if (update->dry_run)
    return true;
  if (!switch_header (update, offset, error))
    return false;
  release_old (update, clusters);
  if (delta_size (update->delta, &update->delta->file_size) < 0)
    update->delta->file_size = update->end;
  return offset != 0 || !update->marked || close_image (update, error);
}

/* ---- Packing ------------------------------------------------------------ */

/* A change leaves holes where the old clusters were.  So the new ones follow, the
 * highest first, by a change like any other, in which they are what is old; and then
 * the extension, for which there may be no room before.  Each time bits come to lie
 * lower, or they stay and the extension does: so this ends, with nothing in the file
 * but what is in use, and a check finds no leak.
 */

/* An L1 entry that names a cluster. */
struct entry {
  uint64_t *sector;
};

static gint
compare_entries (gconstpointer a, gconstpointer b)
{
  const struct entry *x = a, *y = b;

  return *x->sector > *y->sector ? -1 : *x->sector < *y->sector;
}

/* Highest first. */
static GArray *
list_entries (const struct extension *extension)
{
  GArray *list = g_array_new (FALSE, FALSE, sizeof (struct entry));

  for (guint i = 0; i < extension->bitmaps->len; i++) {
    const struct extension_bitmap *bitmap =
      &g_array_index (extension->bitmaps, struct extension_bitmap, i);

    for (uint32_t j = 0; j < bitmap->nr_l1; j++) {
      const struct entry entry = { &bitmap->l1[j] };

      if (bitmap->l1[j] > 1)
        g_array_append_val (list, entry);
    }
  }
  g_array_sort (list, compare_entries);
  return list;
}

/* Is a cell free that lies below OFFSET?  It is not taken. */
static bool
can_move (struct bitmap_update *update, uint64_t offset)
{
  const uint64_t cell = update->next_cell;
  uint64_t free_offset;
  const bool can =
    take_cluster (update, &free_offset) == 0 && free_offset < offset;

  update->next_cell = cell;
  return can;
}

static bool
move_bits (struct bitmap_update *update, uint64_t *sector, uint8_t *bytes,
           GError **error)
{
  const struct delta *delta = update->delta;
  uint64_t offset = *sector * FORMAT_SECTOR_SIZE;
  const int r = delta_pread (delta, bytes, delta->layout.cluster_size, offset);

  if (r < 0) {
    error_set_system (error, r, "%s: bitmap cannot be read at byte %"
                      G_GUINT64_FORMAT, delta->path, offset);
    return false;
  }
  if (!write_cluster (update, bytes, &offset, error))
    return false;
  *sector = offset / FORMAT_SECTOR_SIZE;
  return true;
}

/* Returns 1 when something was moved, 0 when there is nothing to move, or -1. */
static int
pack_bits (struct bitmap_update *update, GError **error)
{
  g_autoptr (GArray) entries = list_entries (&update->new);
  g_autofree uint8_t *bytes =
    g_try_malloc (update->delta->layout.cluster_size);
  int moved = 0;

  for (guint i = 0; bytes && i < entries->len; i++) {
    uint64_t *sector = g_array_index (entries, struct entry, i).sector;

    if (!can_move (update, *sector * FORMAT_SECTOR_SIZE))
      break;
    if (!move_bits (update, sector, bytes, error))
      return -1;
    moved = 1;
  }
  extension_update_clusters (&update->new);
  return moved;
}

/* Returns as pack_bits. */
static int
pack_once (struct delta *delta, const struct log *log, GError **error)
{
  struct bitmap_update update;
  int r;

  if (!bitmap_update_begin (&update, delta, false, log, error))
    return -1;
  r = pack_bits (&update, error);
  if (r == 0) {
    pass_bits (&update);
    r = can_move (&update, bitmap_extension_offset (delta));
  }
  if (r > 0 && !commit_once (&update, error))
    r = -1;
  bitmap_update_end (&update);
  return r;
}

/* The change is made: what fails here is only worth a warning. */
static void
pack (struct bitmap_update *update)
{
  struct delta *delta = update->delta;
  g_autoptr (GError) error = NULL;
  int r = 1;

  if (bitmap_get_state (&delta->header) != BITMAP_VALID
      || update->has_unknown_owners)
    return;
  while (r > 0)
    r = pack_once (delta, update->log, &error);
  if (r < 0)
    log_warning (update->log, "bitmaps are changed, but not all space of the old "
                 "ones is given back: %s", error->message);
  update->file_size_after = delta->file_size;
}

/* The size that packing comes to. */
static uint64_t
packed_size (const struct bitmap_update *update)
{
  const uint64_t nr = update->new.bit_clusters->len + 1;
  const uint64_t first = cell_from (update->delta, update->data_end);

  if (is_empty (&update->new) || update->has_unknown_owners)
    return update->file_size_after;
  return format_cell_offset (&update->delta->layout, first + nr);
}

bool
bitmap_update_commit (struct bitmap_update *update, GError **error)
{
  if (!commit_once (update, error))
    return false;
  if (update->dry_run)
    update->file_size_after = packed_size (update);
  else
    pack (update);
  return true;
}

/* Nothing names what was written. */
static void
undo (struct bitmap_update *update)
{
  const struct delta *delta = update->delta;
  int r = 0;

  if (update->end > delta->file_size)
    r = delta_truncate (delta, delta->file_size);
  if (!update->marked)
    return;
  if (r == 0 && update->first_written < delta->file_size)
    r = release (update, delta->file_size - update->first_written,
                 update->first_written);
  if (r == 0)
    r = delta_sync (delta);
  if (r == 0)
    r = write_header (delta, &delta->header);
  if (r < 0)
    log_warning (update->log, "%s: stays marked as in use, with no data lost: %s",
                 delta->path, g_strerror (-r));
}

void
bitmap_update_end (struct bitmap_update *update)
{
  if (!update->committed && !update->dry_run)
    undo (update);
  extension_clear (&update->new);
  g_clear_pointer (&update->old_clusters, g_array_unref);
}

/* ---- Between deltas ---------------------------------------------------- */

static bool
copy_one (struct bitmap_update *update, const struct delta *from,
          const struct extension_bitmap *bitmap, GError **error)
{
  struct extension_bitmap copy = *bitmap;

  copy.l1 = NULL;
  copy.nr_l1 = 0;
  copy.nr_l1_needed =
    extension_nr_l1 (&update->delta->layout, extension_nr_bits (bitmap));
  extension_add_bitmap (&update->new, &copy);
  return bitmap_update_merge (update, update->new.bitmaps->len - 1, from,
                              bitmap, error);
}

static bool
copy_all (const struct delta *from, const struct extension *extension,
          struct delta *to, const struct log *log, GError **error)
{
  struct bitmap_update update;
  bool good;

  if (bitmap_get_state (&to->header) != BITMAP_NONE) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: has bitmaps already, to which those of %s would have to be "
                 "added", to->path, from->path);
    return false;
  }
  if (!bitmap_update_begin (&update, to, false, log, error))
    return false;
  good = true;
  for (guint i = 0; good && i < extension->bitmaps->len; i++)
    good = copy_one (&update, from,
                     &g_array_index (extension->bitmaps,
                                     struct extension_bitmap, i), error);
  good = good && bitmap_update_commit (&update, error);
  bitmap_update_end (&update);
  return good;
}

bool
bitmap_copy (struct delta *from, struct delta *to, const struct log *log,
             GError **error)
{
  struct extension extension;
  bool good;

  switch (bitmap_get_state (&from->header)) {
  case BITMAP_NONE:
    return true;
  case BITMAP_STALE:
    log_warning (log ? log : &no_log,
                 "%s: has bitmaps, but they are stale: %s gets none",
                 from->path, to->path);
    return true;
  case BITMAP_VALID:
    break;
  }
  if (!bitmap_load (from, &extension, error))
    return false;
  good = check_changeable (from, &extension, error)
         && (extension.bitmaps->len == 0
             || copy_all (from, &extension, to, log, error));
  extension_clear (&extension);
  return good;
}

bool
bitmap_remove_all (struct delta *delta, const struct log *log, GError **error)
{
  struct bitmap_update update;
  bool good;

  if (bitmap_get_state (&delta->header) != BITMAP_VALID)
    return true;
  if (!bitmap_update_begin (&update, delta, false, log, error))
    return false;
  while (update.new.bitmaps->len > 0)
    extension_remove_bitmap (&update.new, update.new.bitmaps->len - 1);
  good = bitmap_update_commit (&update, error);
  bitmap_update_end (&update);
  return good;
}

bool
bitmap_move (struct delta *from, struct delta *to, const struct log *log,
             GError **error)
{
  return bitmap_copy (from, to, log, error)
         && bitmap_remove_all (from, log, error);
}
