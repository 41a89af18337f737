/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Repairing an image: ploop_repair in ploop-core.h.
 *
 * A damaged BAT has entries that name nothing, and two entries that name one place.
 * Neither is dropped: below this delta there may be another, whose data would show
 * through.  The one gets a cluster of zeros, the other a copy of its own.  Both are made
 * behind the end of the file, so that nothing is overwritten that somebody might still
 * want; nor where an entry that is damaged points to, which would become a cluster of
 * somebody else's with the file's growth.  Then all entries follow with one commit
 * (mover.h), and only after that the file gives back what nothing names.
 */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "backup.h"
#include "bat.h"
#include "described.h"
#include "extension.h"
#include "mover.h"

struct repair {
  struct mover mover;
  const struct ploop_repair_options *options;
  struct ploop_repair_result *result;
  ploop_step_fn report;
  void *report_opaque;
  const char *name;             /* of an image by itself, as given; else NULL */

  GArray *faults;               /* of struct bat_fault: errors */
  GArray *behind;               /* of uint32_t: entries of zeros behind the end */
  GArray *extension;            /* of uint64_t, bytes, sorted: clusters in use */
  bool drops_extension;
  bool closes;
  bool is_to_change;            /* this image */
  uint64_t nr_separated, nr_zeroed;     /* in it */
};

static struct delta *
image (const struct repair *repair)
{
  return repair->mover.delta;
}

static void step (struct repair *repair, const char *format, ...)
  G_GNUC_PRINTF (2, 3);

static void
step (struct repair *repair, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  repair->result->changed = repair->is_to_change = true;
  if (!repair->report)
    return;
  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);
  repair->report (repair->report_opaque,
                  repair->name ? repair->name : image (repair)->path, text);
}

/* What is found and stays. */
static void leave (struct repair *repair, const char *format, ...)
  G_GNUC_PRINTF (2, 3);

static void
leave (struct repair *repair, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  repair->result->nr_left++;
  if (!repair->report)
    return;
  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);
  repair->report (repair->report_opaque,
                  repair->name ? repair->name : image (repair)->path, text);
}

/* ---- The extension ----------------------------------------------------- */

static bool
load_extension (const struct repair *repair, struct extension *extension)
{
  const struct format_layout *layout = &image (repair)->layout;
  const uint64_t offset =
    image (repair)->header.extension_sectors * FORMAT_SECTOR_SIZE;
  g_autofree char *wrong = extension_check_place (&image (repair)->header, layout,
                                                  image (repair)->file_size);
  g_autofree uint8_t *bytes = NULL;

  if (wrong || layout->cluster_size > FORMAT_MAX_CREATE_CLUSTER)
    return false;
  bytes = g_malloc (layout->cluster_size);
  if (delta_pread (image (repair), bytes, layout->cluster_size, offset) < 0)
    return false;
  wrong = extension_parse (bytes, layout, image (repair)->file_size, extension);
  return wrong == NULL;
}

static gint
compare_offsets (gconstpointer a, gconstpointer b)
{
  const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

/* Two bitmaps in one place: neither is true. */
static bool
overlaps_itself (const struct repair *repair)
{
  const GArray *sorted = repair->extension;

  for (guint i = 1; i < sorted->len; i++)
    if (g_array_index (sorted, uint64_t, i) - g_array_index (sorted, uint64_t, i - 1)
        < image (repair)->layout.cluster_size)
      return true;
  return false;
}

/* Bitmaps of another disk, or two by one name: of no use to anybody. */
static bool
is_useless (const struct repair *repair, const struct extension *extension)
{
  for (guint i = 0; i < extension->bitmaps->len; i++) {
    const struct extension_bitmap *bitmap =
      &g_array_index (extension->bitmaps, struct extension_bitmap, i);

    if (bitmap->size_sectors != image (repair)->header.size_sectors)
      return true;
    for (guint j = 0; j < i; j++)
      if (memcmp (bitmap->uuid,
                  g_array_index (extension->bitmaps, struct extension_bitmap,
                                 j).uuid, sizeof bitmap->uuid) == 0)
        return true;
  }
  return false;
}

/* Is what the header says of bitmaps true?  Then they are to be kept. */
static void
look_at_extension (struct repair *repair)
{
  const struct format_header *header = &image (repair)->header;
  struct extension extension;
  uint64_t offset;

  if (header->extension_sectors == 0 || format_is_dirty (header->in_use))
    return;
  if (!load_extension (repair, &extension)) {
    repair->drops_extension = true;
    return;
  }
  offset = header->extension_sectors * FORMAT_SECTOR_SIZE;
  g_array_append_val (repair->extension, offset);
  g_array_append_vals (repair->extension, extension.bit_clusters->data,
                       extension.bit_clusters->len);
  g_array_sort (repair->extension, compare_offsets);
  if (overlaps_itself (repair) || is_useless (repair, &extension))
    repair->drops_extension = true;
  extension_clear (&extension);
}

/* Does the cluster at OFFSET? */
static bool
meets_extension (const struct repair *repair, uint64_t offset)
{
  const uint64_t cluster_size = image (repair)->layout.cluster_size;
  guint low = 0, high = repair->extension->len;

  /* The first one that ends behind OFFSET. */
  while (low < high) {
    const guint middle = low + (high - low) / 2;

    if (g_array_index (repair->extension, uint64_t, middle) + cluster_size <= offset)
      low = middle + 1;
    else
      high = middle;
  }
  return low < repair->extension->len
         && g_array_index (repair->extension, uint64_t, low) < offset + cluster_size;
}

/* What a cluster of zeros was at the last backup, nobody knows. */
static bool
makes_bitmaps_untrue (const struct repair *repair)
{
  for (guint i = 0; i < repair->faults->len; i++)
    if (g_array_index (repair->faults, struct bat_fault, i).kind != BAT_SHARED)
      return true;
  return false;
}

/* Its clusters are no places for others. */
static void
keep_extension (struct repair *repair)
{
  const struct format_layout *layout = &image (repair)->layout;
  struct cells *cells = &repair->mover.cells;

  if (repair->extension->len > 0 && makes_bitmaps_untrue (repair))
    repair->drops_extension = true;
  if (repair->extension->len == 0 || repair->drops_extension)
    return;
  repair->mover.keeps_extension = true;
  for (guint i = 0; i < repair->extension->len; i++) {
    const uint64_t offset = g_array_index (repair->extension, uint64_t, i);
    const uint64_t first = format_cell_at (layout, offset);

    for (uint64_t cell = first;
         cell < cells->nr && mover_offset (&repair->mover, cell)
                               < offset + layout->cluster_size; cell++)
      cells_set_used (cells, cell);
  }
}

/* ---- The BAT ----------------------------------------------------------- */

/* No guest can read it.  Zeros can go; what is more may be what a disk of another size
 * has.
 */
static void
look_behind_end (struct repair *repair, uint32_t index, uint64_t offset)
{
  const uint64_t end = offset + image (repair)->layout.cluster_size;
  uint64_t position;

  if (delta_find_nonzero (image (repair), offset, end, &position) == 0
      && position == end)
    g_array_append_val (repair->behind, index);
  else
    leave (repair, "left alone: BAT entry %" G_GUINT32_FORMAT ", behind the end of "
           "the disk, has data: ploop-img resize makes the disk so large, or drops "
           "it", index);
}

static bool
take_entry (void *opaque, uint32_t index, uint32_t entry)
{
  struct repair *repair = opaque;
  const struct format_layout *layout = &image (repair)->layout;
  const uint64_t offset = format_entry_offset (layout, entry);

  mover_add_entry (&repair->mover, index, entry);
  if (meets_extension (repair, offset))
    repair->drops_extension = true;
  if ((uint64_t) index * layout->cluster_size >= layout->size)
    look_behind_end (repair, index, offset);
  return true;
}

static bool
take_fault (void *opaque, const struct bat_fault *fault)
{
  struct repair *repair = opaque;

  if (bat_fault_is_unfinished (image (repair), fault))
    g_array_append_val (repair->mover.lost, fault->index);
  else {
    g_array_append_val (repair->faults, *fault);
    if (fault->kind == BAT_PAST_END)
      repair->mover.marks_repair = true;
  }
  return true;
}

/* Then as many places as could be needed are known: one a fault, and two that none may
 * take, where it points to.
 */
static int
count_faults (struct repair *repair, GError **error)
{
  const struct bat_visitor visitor = { .fault = take_fault, .opaque = repair };

  repair->mover.lost = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  return bat_scan (image (repair), &visitor, NULL, error);
}

static int
load_bat (struct repair *repair, GError **error)
{
  const struct bat_visitor visitor = { .entry = take_entry, .opaque = repair };
  struct mover *mover = &repair->mover;
  g_autoptr (GArray) lost = NULL;
  int r = mover_forget_cached (mover);

  if (r < 0) {
    error_set_system (error, r, "%s: cannot be synced", image (repair)->path);
    return -1;
  }
  if (count_faults (repair, error) == -1)
    return -1;
  lost = g_steal_pointer (&mover->lost);
  if (mover_init (mover, 3 * (uint64_t) repair->faults->len + 1, error) == -1)
    return -1;
  g_array_append_vals (mover->lost, lost->data, lost->len);
  return bat_scan (image (repair), &visitor, NULL, error);
}

/* ---- Planning ---------------------------------------------------------- */

static void
plan_fault (struct repair *repair, const struct bat_fault *fault)
{
  g_autofree char *text = bat_fault_describe (image (repair), fault);

  if (fault->kind == BAT_SHARED) {
    repair->nr_separated++;
    step (repair, "%s: guest cluster %" G_GUINT32_FORMAT " gets a copy of its own",
          text, fault->index);
  }
  else {
    repair->nr_zeroed++;
    step (repair, "%s: guest cluster %" G_GUINT32_FORMAT " becomes zeros", text,
          fault->index);
  }
}

static void
plan_extension (struct repair *repair)
{
  if (!repair->drops_extension)
    return;
  repair->result->extension_dropped = true;
  step (repair, "the extension, and with it the changed-block bitmaps, is dropped: "
        "the next backup has to be a full one");
}

/* Nobody knows what was changed without it. */
static void
plan_stale_extension (struct repair *repair)
{
  if (!repair->closes || image (repair)->header.extension_sectors == 0)
    return;
  repair->result->extension_dropped = true;
  step (repair, "the extension is dropped: the image was not closed, and its "
        "changed-block bitmaps are stale: the next backup has to be a full one");
}

/* Cells of the file that an entry can name. */
static uint64_t
nr_cells (const struct repair *repair)
{
  const struct mover *mover = &repair->mover;

  return MIN (format_cells_below (&image (repair)->layout, mover->file_size),
              mover->cells.nr);
}

/* Cells that hold data and that nothing names. */
static uint64_t
count_leaks (const struct repair *repair)
{
  const uint64_t nr = nr_cells (repair);
  uint64_t stop, nr_leaks = 0;

  for (uint64_t from = 0;
       cells_next_free_run (&repair->mover.cells, nr, &from, &stop); from = stop)
    nr_leaks += bat_count_wasted (image (repair), from, stop - from);
  return nr_leaks;
}

static void
plan_leaks (struct repair *repair)
{
  const struct mover *mover = &repair->mover;
  const uint64_t end = mover_end (mover), nr = count_leaks (repair);

  repair->result->nr_given_back += nr;
  if (nr > 0)
    step (repair, "%" G_GUINT64_FORMAT " host clusters that nothing names are given "
          "back to the file system", nr);
  else if (mover->file_size > end)
    step (repair, "the file is cut off at byte %" G_GUINT64_FORMAT, end);
}

static void
plan_entries (struct repair *repair)
{
  const guint nr_lost = repair->mover.lost->len;

  repair->result->nr_cleared += nr_lost + repair->behind->len;
  if (nr_lost > 0)
    step (repair, "%u BAT entries of clusters that were never flushed are removed",
          nr_lost);
  if (repair->behind->len > 0)
    step (repair, "%u BAT entries behind the end of the disk, whose clusters are "
          "zeros, are removed", repair->behind->len);
}

/* Errors come first, and leaks may be what they have lost. */
static bool
has_errors (const struct repair *repair)
{
  return repair->faults->len > 0 || repair->drops_extension;
}

static void
plan (struct repair *repair)
{
  if (has_errors (repair) && !repair->options->all) {
    leave (repair, "left alone: there are errors, and what nothing names may be what "
           "they have lost: repair all");
    return;
  }
  for (guint i = 0; i < repair->faults->len; i++)
    plan_fault (repair, &g_array_index (repair->faults, struct bat_fault, i));
  plan_extension (repair);
  plan_entries (repair);
  plan_leaks (repair);
  repair->closes = format_is_dirty (image (repair)->header.in_use);
  if (repair->closes)
    step (repair, "the image is marked as closed");
  plan_stale_extension (repair);
  repair->mover.nr_bytes_to_do =
    repair->nr_separated * image (repair)->layout.cluster_size;
  repair->result->nr_separated += repair->nr_separated;
  repair->result->nr_zeroed += repair->nr_zeroed;
}

/* ---- Backup ------------------------------------------------------------ */

static int
back_up_leaks (const struct repair *repair, struct backup *backup,
               GError **error)
{
  const struct mover *mover = &repair->mover;
  const struct format_layout *layout = &image (repair)->layout;
  const uint64_t nr = nr_cells (repair), end = mover_offset (mover, nr);
  uint64_t stop;

  for (uint64_t from = 0; cells_next_free_run (&mover->cells, nr, &from, &stop);
       from = stop)
    if (backup_add (backup, (stop - from) * layout->cluster_size,
                    mover_offset (mover, from), error) == -1)
      return -1;
  return end < mover->file_size
           ? backup_add (backup, mover->file_size - end, end, error) : 0;
}

static int
back_up (struct repair *repair, GError **error)
{
  const enum ploop_backup when = repair->options->backup;
  struct backup *backup;
  char *path;

  if (when == PLOOP_BACKUP_NEVER
      || (when == PLOOP_BACKUP_ERRORS && !has_errors (repair)))
    return 0;
  backup = backup_begin (image (repair), repair->options->backup_path, error);
  if (!backup)
    return -1;
  if (backup_add (backup, image (repair)->layout.data_start, 0, error) == -1
      || (has_errors (repair) && back_up_leaks (repair, backup, error) == -1)) {
    backup_abandon (backup);
    return -1;
  }
  path = backup_finish (backup, error);
  if (path)
    g_ptr_array_add (repair->result->backups, path);
  return path ? 0 : -1;
}

/* ---- Repairing --------------------------------------------------------- */

/* Where damaged entries point to: behind the end of the file, perhaps, where it will
 * grow; or across its end, and what is behind it has to stay zeros.  Returns the cells that
 * were free.
 */
static GArray *
avoid_faults (struct repair *repair)
{
  struct cells *cells = &repair->mover.cells;
  const struct format_layout *layout = &image (repair)->layout;
  GArray *avoided = g_array_new (FALSE, FALSE, sizeof (uint64_t));

  for (guint i = 0; i < repair->faults->len; i++) {
    const struct bat_fault *fault =
      &g_array_index (repair->faults, struct bat_fault, i);
    uint64_t cell;

    if (fault->kind == BAT_BELOW_DATA)
      continue;
    cell = format_cell_at (layout, format_entry_offset (layout, fault->entry));
    for (unsigned j = 0; j < 2; j++, cell++)
      if (cell < cells->nr && !cells_is_used (cells, cell)) {
        cells_set_used (cells, cell);
        g_array_append_val (avoided, cell);
      }
  }
  return avoided;
}

static void
avoid_no_more (struct repair *repair, const GArray *avoided)
{
  for (guint i = 0; i < avoided->len; i++)
    cells_set_free (&repair->mover.cells, g_array_index (avoided, uint64_t, i));
}

/* Fill the next free cell from *CELL on with what the cluster is to have. */
static int
mend (struct repair *repair, const struct bat_fault *fault, uint64_t *cell)
{
  struct mover *mover = &repair->mover;
  const uint64_t from =
    format_entry_offset (&image (repair)->layout, fault->entry);
  int r;

  *cell = cells_next (&mover->cells, *cell, mover->cells.nr, CELLS_FREE);
  if (*cell == mover->cells.nr)
    return mover_fail (mover, -ENOSPC, "no BAT entry can name one more cluster");
  r = mover_reach (mover, *cell);
  if (r < 0 || fault->kind != BAT_SHARED)
    return r;
  r = mover_copy (mover, from, *cell);
  return r == 0 || r == -ECANCELED
           ? r : mover_fail (mover, r, "guest cluster %" G_GUINT32_FORMAT " cannot be "
                             "copied from byte %" G_GUINT64_FORMAT " to byte %"
                             G_GUINT64_FORMAT, fault->index, from,
                             mover_offset (mover, *cell));
}

/* A cell for each fault, in their order, is added to CELLS. */
static int
mend_all (struct repair *repair, GArray *cells)
{
  uint64_t cell =
    format_cells_below (&image (repair)->layout, repair->mover.file_size);

  for (guint i = 0; i < repair->faults->len; i++, cell++) {
    const int r =
      mend (repair, &g_array_index (repair->faults, struct bat_fault, i), &cell);

    if (r < 0)
      return r;
    g_array_append_val (cells, cell);
  }
  return 0;
}

/* All at once: a commit writes what is in a page of the BAT from what is known, and of
 * a damaged entry that is nothing.
 */
static int
publish_all (struct repair *repair, const GArray *cells)
{
  struct mover *mover = &repair->mover;

  for (guint i = 0; i < repair->faults->len; i++)
    mover_publish (mover,
                   g_array_index (repair->faults, struct bat_fault, i).index,
                   g_array_index (cells, uint64_t, i));
  for (guint i = 0; i < repair->behind->len; i++)
    mover_drop (mover, g_array_index (repair->behind, uint32_t, i));
  return mover_commit (mover);
}

/* Nothing was published: leave the image as it was found. */
static void
give_up (struct repair *repair, uint64_t file_size)
{
  struct mover *mover = &repair->mover;

  mover_cut (mover, file_size);
  if (!repair->closes)
    mover_finish (mover, 0);
}

static void
make_changes (struct repair *repair)
{
  g_autoptr (GArray) cells = g_array_new (FALSE, FALSE, sizeof (uint64_t));
  g_autoptr (GArray) avoided = NULL;
  struct mover *mover = &repair->mover;
  const uint64_t file_size = mover->file_size;

  avoided = avoid_faults (repair);
  if (mend_all (repair, cells) < 0) {
    give_up (repair, file_size);
    return;
  }
  if (publish_all (repair, cells) < 0)
    return;
  avoid_no_more (repair, avoided);
  mover_finish (mover, mover_end (mover));
}

static int
make (struct repair *repair, GError **error)
{
  struct mover *mover = &repair->mover;

  mover_tell (mover, 0);
  if (!mover->interrupted && mover_begin (mover) == 0)
    make_changes (repair);
  return mover_report (mover, "repair it again when the cause is gone", error);
}

/* ---- An image ---------------------------------------------------------- */

static bool
judge_image (const struct repair *repair, GError **error)
{
  const struct format_header *header = &image (repair)->header;

  if ((header->flags & FORMAT_FLAG_CONVERSION)
      && format_is_dirty (header->in_use))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: flags are %" G_GUINT32_FORMAT ": a version conversion was "
                 "interrupted, and the BAT is of neither version; the old one is in "
                 "%s.idx: it cannot be repaired, but what is readable be copied "
                 "(ploop-img rescue)", image (repair)->path, header->flags,
                 image (repair)->path);
  else if (image (repair)->read_only && !repair->options->dry_run)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
                 "%s: may not be written: see its permissions, and whether its file "
                 "system is mounted read-only", image (repair)->path);
  else
    return true;
  return false;
}

static int
repair_image (struct repair *repair, GError **error)
{
  int r;

  if (!judge_image (repair, error))
    return -1;
  look_at_extension (repair);
  if (load_bat (repair, error) == -1)
    return -1;
  keep_extension (repair);
  plan (repair);
  if (!repair->is_to_change || repair->options->dry_run)
    return 0;
  r = back_up (repair, error);
  if (r == 0)
    r = make (repair, error);
  repair->result->interrupted = repair->mover.interrupted;
  return r;
}

/* DELTA is taken over. */
static int
repair_delta (const struct repair *like, struct delta *delta, GError **error)
{
  struct repair repair = *like;
  int r;

  repair.mover.delta = delta;
  repair.faults = g_array_new (FALSE, FALSE, sizeof (struct bat_fault));
  repair.behind = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  repair.extension = g_array_new (FALSE, FALSE, sizeof (uint64_t));
  r = repair_image (&repair, error);
  mover_destroy (&repair.mover);
  g_array_unref (repair.faults);
  g_array_unref (repair.behind);
  g_array_unref (repair.extension);
  return r;
}

/* ---- A disk ------------------------------------------------------------ */

static enum delta_lock
lock_for (const struct repair *repair)
{
  return repair->options->dry_run ? DELTA_LOCK_READER : DELTA_LOCK_WRITER;
}

/* One image of a described disk.  A raw disk has nothing to be repaired. */
static int
repair_described (const struct repair *like, const struct described *described,
                  guint part, const struct descriptor_image *image,
                  GError **error)
{
  g_autoptr (GPtrArray) images = g_ptr_array_new ();
  struct location location;
  int r = 0;

  g_ptr_array_add (images, (gpointer) image);
  if (!described_locate (described, part, images, 1, &location, error))
    return -1;
  if (!location_is_raw (&location)) {
    struct delta *delta = location_open_delta (&location, 0, lock_for (like),
                                               &like->mover.log, error);

    r = delta ? repair_delta (like, delta, error) : -1;
  }
  described_forget (&location);
  return r;
}

static int
repair_part (const struct repair *like, const struct described *described,
             guint part, GError **error)
{
  const struct descriptor_storage *storage =
    g_ptr_array_index (described->descriptor->storages, part);

  for (guint i = 0; i < storage->images->len && !like->result->interrupted; i++)
    if (repair_described (like, described, part,
                          g_ptr_array_index (storage->images, i), error) == -1)
      return -1;
  return 0;
}

static int
repair_disk (const struct repair *like, const char *xml, GError **error)
{
  struct described described;
  int r = 0;

  if (like->options->backup_path) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: the backup is to be %s, but each image of a disk has its own: "
                 "leave out its name, or repair one image at a time", xml,
                 like->options->backup_path);
    return -1;
  }
  if (!described_open (&described, xml, !like->options->dry_run, error))
    return -1;
  for (guint i = 0; r == 0 && i < described.descriptor->storages->len; i++)
    r = repair_part (like, &described, i, error);
  described_close (&described);
  return r;
}

void
ploop_repair_result_clear (struct ploop_repair_result *result)
{
  g_clear_pointer (&result->backups, g_ptr_array_unref);
}

int
ploop_repair (const char *path, const struct ploop_repair_options *options,
              ploop_step_fn report, void *report_opaque,
              ploop_progress_fn progress, void *opaque,
              struct ploop_repair_result *result, GError **error)
{
  static const struct ploop_repair_options none;
  const struct ploop_repair_options *o = options ? options : &none;
  struct repair repair = {
    .mover = {
      .log = { o->log, o->log_opaque },
      .progress = progress,
      .opaque = opaque,
    },
    .options = o,
    .result = result,
    .report = report,
    .report_opaque = report_opaque,
  };
  g_autofree char *xml = location_descriptor (path);
  struct delta *delta;

  *result = (struct ploop_repair_result) {
    .backups = g_ptr_array_new_with_free_func (g_free),
  };
  if (xml)
    return repair_disk (&repair, xml, error);
  repair.name = path;
  delta = delta_open (path, lock_for (&repair), error);
  return delta ? repair_delta (&repair, delta, error) : -1;
}
