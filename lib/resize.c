/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Giving a disk another size: ploop_resize in ploop-core.h.
 *
 * All that says how large an image's disk is lies in one sector, the first, which the
 * disk writes whole or not at all: that write is the moment when the size changes.
 * What the new header says must be true before it:
 *
 *   larger   clusters that lie where the longer BAT will are moved away (mover.h); that
 *            place is filled with zeros, entries that name nothing; and so is what the
 *            last cluster has behind the end of the disk, for it comes to light
 *   smaller  entries behind the new end are removed, so that the BAT is followed by
 *            zeros
 *
 * At each step the old header is as true as the new one will be.
 */

#include <config.h>

#include <errno.h>
#include <sys/stat.h>

#include "described.h"
#include "location.h"
#include "lock.h"
#include "mover.h"
#include "resize.h"

/* Moved with one commit. */
#define BATCH_BYTES (UINT64_C (64) << 20)

#define ZERO_BYTES ((size_t) 1 << 20)

struct resize {
  struct mover mover;
  uint64_t size;                /* bytes, to be */
  bool shrink, discard;
  struct format_header header;  /* to be */
  struct format_layout layout;
  struct ploop_resize_result *result;
};

static bool
is_larger (const struct resize *resize)
{
  return resize->size > resize->mover.delta->layout.size;
}

/* ---- Clusters in the way ----------------------------------------------- */

/* Where a cluster lies in the file; 0: nowhere. */
static uint64_t
host_of (const struct mover *mover, uint32_t index)
{
  const uint64_t word = map_lookup (&mover->map, index);

  return map_word_is_mapped (word)
           ? format_entry_offset (&mover->delta->layout, map_word_entry (word))
           : 0;
}

static bool
is_in_the_way (const struct resize *resize, uint32_t index)
{
  const uint64_t host = host_of (&resize->mover, index);

  return host > 0 && host < resize->layout.data_start;
}

/* The first cell of the data area to be. */
static uint64_t
first_cell (const struct resize *resize)
{
  const struct format_layout *layout = &resize->mover.delta->layout;

  return resize->layout.data_start <= layout->data_start
           ? 0
           : (resize->layout.data_start - layout->data_start)
               / layout->cluster_size;
}

/* Cells that the longer BAT takes: none of them is a place to move to. */
static void
count_in_the_way (struct resize *resize)
{
  struct mover *mover = &resize->mover;
  const struct format_layout *layout = &mover->delta->layout;

  for (uint32_t i = 0; i < layout->nr_entries; i++)
    resize->result->nr_moved += is_in_the_way (resize, i);
  mover->nr_bytes_to_do = resize->result->nr_moved * layout->cluster_size;
}

/* Copy cluster INDEX to the first free cell from *CELL on. */
static int
move_away (struct resize *resize, uint32_t index, uint64_t *cell)
{
  struct mover *mover = &resize->mover;
  int r;

  *cell = cells_next (&mover->cells, *cell, mover->cells.nr, CELLS_FREE);
  if (*cell == mover->cells.nr)
    return mover_fail (mover, -ENOSPC, "no BAT entry can name a place for the "
                       "clusters that the longer BAT needs");
  r = mover_reach (mover, *cell);
  if (r < 0)
    return r;
  r = mover_copy (mover, host_of (mover, index), *cell);
  if (r == 0)
    mover_publish (mover, index, *cell);
  else if (r != -ECANCELED)
    mover_fail (mover, r, "host cluster at byte %" G_GUINT64_FORMAT " cannot be "
                "moved to byte %" G_GUINT64_FORMAT, host_of (mover, index),
                mover_offset (mover, *cell));
  return r;
}

/* What is published is good for who reads the map, so it may be committed at any time:
 * here so that what was copied is not copied again for nothing.
 */
static int
move_all_away (struct resize *resize)
{
  struct mover *mover = &resize->mover;
  const struct format_layout *layout = &mover->delta->layout;
  uint64_t cell = first_cell (resize), bytes = 0;

  for (uint32_t i = 0; i < layout->nr_entries; i++) {
    int r;

    if (!is_in_the_way (resize, i))
      continue;
    r = move_away (resize, i, &cell);
    bytes += layout->cluster_size;
    if (r == 0 && bytes >= BATCH_BYTES) {
      r = mover_commit (mover);
      bytes = 0;
    }
    if (r < 0)
      return r;
  }
  return mover_commit (mover);
}

/* ---- Larger ------------------------------------------------------------ */

/* Not holes: kernels that know none read the BAT. */
static int
write_zeros (struct mover *mover, uint64_t start, uint64_t end)
{
  g_autofree uint8_t *zeros = g_malloc0 (ZERO_BYTES);

  while (start < end) {
    const size_t n = (size_t) MIN (end - start, ZERO_BYTES);
    const int r = delta_pwrite (mover->delta, zeros, n, start);

    if (r < 0)
      return mover_fail (mover, r, "the longer BAT cannot be written at byte %"
                         G_GUINT64_FORMAT, start);
    start += n;
  }
  mover->file_size = MAX (mover->file_size, end);
  return 0;
}

/* What a disk of SIZE bytes leaves of its last cluster, if this delta has that. */
static bool
find_rest (const struct mover *mover, uint64_t size, uint64_t *offset,
           uint64_t *length)
{
  const uint32_t cluster_size = mover->delta->layout.cluster_size;
  const uint64_t inside = size % cluster_size;
  const uint64_t host =
    inside ? host_of (mover, (uint32_t) (size / cluster_size)) : 0;

  *offset = host + inside;
  *length = cluster_size - inside;
  return host > 0;
}

static int
clear_rest (struct mover *mover, uint64_t size)
{
  uint64_t offset, length;

  return find_rest (mover, size, &offset, &length)
           ? mover_clear (mover, length, offset) : 0;
}

static int
make_room (struct resize *resize)
{
  struct mover *mover = &resize->mover;
  const struct format_layout *old = &mover->delta->layout;
  int r = move_all_away (resize);

  if (r == 0)
    r = write_zeros (mover, old->bat_end, resize->layout.data_start);
  if (r == 0)
    r = clear_rest (mover, old->size);
  return r;
}

/* ---- Smaller ----------------------------------------------------------- */

static int
refuse_data (const struct resize *resize, uint64_t offset, GError **error)
{
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: byte %" G_GUINT64_FORMAT " of the disk, behind its new end (%"
               G_GUINT64_FORMAT "), is not zero: make the file system smaller "
               "first, or say that what is there may be lost (--discard)",
               resize->mover.delta->path, offset, resize->size);
  return -1;
}

/* LENGTH bytes of the file at OFFSET, which are at byte GUEST of the disk; or behind its
 * end: what is there, nobody has written.
 */
static int
check_zeros (const struct resize *resize, uint64_t offset, uint64_t length,
             uint64_t guest, GError **error)
{
  const struct delta *delta = resize->mover.delta;
  const uint64_t end = offset + delta_length_inside (delta, length, guest);
  uint64_t position;
  const int r = delta_find_nonzero (delta, offset, end, &position);

  if (r < 0) {
    error_set_system (error, r, "%s: cannot be read at byte %" G_GUINT64_FORMAT,
                      delta->path, position);
    return -1;
  }
  return position < end
           ? refuse_data (resize, guest + (position - offset), error) : 0;
}

/* A cluster behind the end may be dropped: it is zeros, or nobody minds. */
static int
judge_cluster (struct resize *resize, uint32_t index, GError **error)
{
  const struct delta *delta = resize->mover.delta;
  const uint64_t cluster_size = delta->layout.cluster_size;
  const uint64_t host = host_of (&resize->mover, index);

  if (host == 0)
    return 0;
  if (!resize->shrink && !resize->discard) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: cluster %" G_GUINT32_FORMAT " of the disk, behind its new end "
                 "(%" G_GUINT64_FORMAT " bytes), has been written to: make the file "
                 "system smaller first, and say that such clusters may go if they "
                 "are zeros (--shrink)", delta->path, index, resize->size);
    return -1;
  }
  resize->result->nr_dropped++;
  return resize->discard ? 0 : check_zeros (resize, host, cluster_size,
                                            index * cluster_size, error);
}

static int
judge_data (struct resize *resize, GError **error)
{
  const uint32_t nr = resize->mover.delta->layout.nr_entries;
  uint64_t offset, length;

  if (!resize->discard
      && find_rest (&resize->mover, resize->size, &offset, &length)
      && check_zeros (resize, offset, length, resize->size, error) == -1)
    return -1;
  for (uint32_t i = resize->layout.nr_entries; i < nr; i++)
    if (judge_cluster (resize, i, error) == -1)
      return -1;
  return 0;
}

static int
drop_behind_end (struct resize *resize)
{
  struct mover *mover = &resize->mover;

  for (uint32_t i = resize->layout.nr_entries;
       i < mover->delta->layout.nr_entries; i++)
    mover_drop (mover, i);
  return mover_commit (mover);
}

/* ---- An image ---------------------------------------------------------- */

static int
prepare (struct resize *resize)
{
  const int r =
    is_larger (resize) ? make_room (resize) : drop_behind_end (resize);

  return r == 0 && !is_larger (resize)
           ? clear_rest (&resize->mover, resize->size) : r;
}

/* All that came before is on disk when the header is written. */
static int
replace_header (struct resize *resize)
{
  struct mover *mover = &resize->mover;
  int r = delta_sync (mover->delta);

  if (r < 0)
    return mover_fail (mover, r, "the file cannot be synced");
  r = commit_replace_header (&mover->commit, &resize->header);
  return r < 0 ? mover_fail (mover, r, "the header cannot be written") : 0;
}

/* Where a file ends that was made smaller: without clusters, behind the shorter BAT. */
static uint64_t
new_end (const struct resize *resize)
{
  const uint64_t end = mover_end (&resize->mover);

  return end == resize->mover.delta->layout.data_start
           ? resize->layout.data_start : end;
}

/* What the BAT does not take any more. */
static int
give_back_bat (struct resize *resize)
{
  struct mover *mover = &resize->mover;
  const uint64_t start = resize->layout.data_start;
  const uint64_t end = mover->delta->layout.data_start;

  return mover->keep_holes_out || start >= end
           ? 0 : mover_clear (mover, end - start, start);
}

/* With the header that it has, the file need not be longer than it was, but for clusters
 * that were moved behind its end.
 */
static void
take_back (struct mover *mover)
{
  mover_cut (mover, MAX (mover_end (mover), mover->delta->file_size));
}

static int
run (struct resize *resize, GError **error)
{
  struct mover *mover = &resize->mover;
  int r = mover_begin (mover);

  if (r == 0) {
    mover_tell (mover, 0);
    r = mover->interrupted ? -ECANCELED : prepare (resize);
    if (r < 0)
      take_back (mover);
    else
      r = replace_header (resize);
    if (r == 0)
      r = give_back_bat (resize);
    /* Cells of the old layout that are below the new one's are the BAT now. */
    mover_finish (mover, r == 0 && !is_larger (resize) ? new_end (resize) : 0);
  }
  resize->result->interrupted = r == -ECANCELED;
  resize->result->bytes_copied = mover->bytes_copied;
  return mover_report (mover, "resize it again when the cause is gone", error);
}

static bool
has_bitmaps (const struct delta *delta, GError **error)
{
  if (!format_has_valid_extension (&delta->header))
    return false;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: extension offset is %" G_GUINT64_FORMAT " sectors: it carries "
               "changed-block bitmaps, which are of a disk of this size: ploop-img "
               "bitmap remove takes them away", delta->path,
               delta->header.extension_sectors);
  return true;
}

/* Resize->mover.delta is open. */
static int
resize_image (struct resize *resize, bool dry_run, GError **error)
{
  struct mover *mover = &resize->mover;
  const struct delta *delta = mover->delta;
  uint64_t nr_more;

  if (has_bitmaps (delta, error))
    return -1;
  if (!format_resize_header (&delta->header, &delta->layout, resize->size,
                             &resize->header, &resize->layout, error)) {
    g_prefix_error (error, "%s: ", delta->path);
    return -1;
  }
  if (mover->keep_holes_out)
    delta_make_no_holes (mover->delta);
  /* As many as can be in the way, off the grid too. */
  nr_more = 2 * first_cell (resize) + 2;
  if (mover_init (mover, nr_more, error) == -1
      || mover_load (mover, error) == -1)
    return -1;
  if (is_larger (resize))
    count_in_the_way (resize);
  else if (judge_data (resize, error) == -1)
    return -1;
  return dry_run || (resize->size == delta->layout.size
                     && !format_is_dirty (delta->header.in_use))
           ? 0 : run (resize, error);
}

int
resize_grow (struct delta *delta, uint64_t size, const struct log *log,
             GError **error)
{
  struct ploop_resize_result result = { 0 };
  struct resize resize = {
    .mover = { .delta = delta, .log = *log },
    .size = size,
    .result = &result,
  };
  const int r = resize_image (&resize, false, error);

  mover_destroy (&resize.mover);
  return r;
}

/* ---- A raw disk -------------------------------------------------------- */

static int
judge_raw (struct resize *resize, const struct delta *delta, GError **error)
{
  uint64_t start = resize->size, stop;

  if (resize->discard || !delta_next_data (delta, delta->file_size, &start, &stop))
    return 0;
  if (resize->shrink)
    return check_zeros (resize, start, delta->file_size - start, start, error);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: there is data behind byte %" G_GUINT64_FORMAT ", where it is to "
               "end: make the file system smaller first, and say that what is there "
               "may go if it is zeros (--shrink)", delta->path, resize->size);
  return -1;
}

static int
resize_raw (struct resize *resize, bool dry_run, GError **error)
{
  const struct delta *delta = resize->mover.delta;
  const uint64_t max = (uint64_t) FORMAT_MAX_ENTRIES * delta->layout.cluster_size;
  int r;

  /* Nobody would open it any more. */
  if (resize->size == 0 || resize->size % FORMAT_SECTOR_SIZE != 0
      || resize->size > max) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: disk size cannot become %" G_GUINT64_FORMAT " bytes: must be a "
                 "multiple of 512, and at most the %" G_GUINT64_FORMAT " that "
                 "clusters of %" G_GUINT32_FORMAT " bytes allow", delta->path,
                 resize->size, max, delta->layout.cluster_size);
    return -1;
  }
  if (resize->size < delta->file_size && judge_raw (resize, delta, error) == -1)
    return -1;
  if (dry_run)
    return 0;
  r = delta_truncate (delta, resize->size);
  if (r == 0)
    r = delta_sync (delta);
  if (r < 0)
    error_set_system (error, r, "%s: cannot become %" G_GUINT64_FORMAT " bytes long",
                      delta->path, resize->size);
  return r < 0 ? -1 : 0;
}

/* ---- All of it --------------------------------------------------------- */

static int
resize_delta (struct resize *resize, struct delta *delta, bool dry_run,
              GError **error)
{
  int r = -1;

  resize->mover.delta = delta;
  resize->result->old_size = delta->layout.size;
  if (!dry_run && delta->read_only)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
                 "%s: may not be written: see its permissions, and whether its file "
                 "system is mounted read-only", delta->path);
  else
    r = delta->is_raw ? resize_raw (resize, dry_run, error)
                      : resize_image (resize, dry_run, error);
  mover_destroy (&resize->mover);
  return r;
}

/* A disk that is one image, without a descriptor. */
static int
resize_file (struct resize *resize, const char *path, bool dry_run,
             GError **error)
{
  g_autofree char *owner = NULL;
  struct delta *delta;

  if (!location_find_owner (path, &owner, error))
    return -1;
  if (owner) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: is one delta of %s, which says how large the disk is: give "
                 "that", path, owner);
    return -1;
  }
  delta = delta_open (path, dry_run ? DELTA_LOCK_READER : DELTA_LOCK_WRITER, error);
  return delta ? resize_delta (resize, delta, dry_run, error) : -1;
}

/* The kernel wants no lower delta that is larger than an upper one, and what they have
 * behind the end would come back when the disk grows.
 */
static bool
lower_deltas_fit (const struct described *described, const GPtrArray *images,
                  guint part, uint64_t size, GError **error)
{
  struct location location;
  bool ok;

  if (!described_locate (described, part, images, images->len - 1, &location,
                         error))
    return false;
  ok = true;
  for (guint i = 0; ok && i < location.deltas->len; i++) {
    struct delta *delta =
      location_open_delta (&location, i, DELTA_LOCK_READER, NULL, error);

    ok = delta != NULL;
    if (delta && delta->layout.size > size) {
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                   "%s: a delta below the top, has a disk of %" G_GUINT64_FORMAT
                   " bytes: the disk can have %" G_GUINT64_FORMAT " when it is "
                   "merged", delta->path, delta->layout.size, size);
      ok = false;
    }
    delta_close (delta);
  }
  described_forget (&location);
  return ok;
}

static struct delta *
open_top (const struct described *described, const GPtrArray *images, guint part,
          bool dry_run, GError **error)
{
  struct location location;
  struct delta *delta;

  if (!described_locate (described, part, images, images->len, &location, error))
    return NULL;
  delta = location_open_delta (&location, images->len - 1,
                               dry_run ? DELTA_LOCK_READER : DELTA_LOCK_WRITER,
                               NULL, error);
  described_forget (&location);
  return delta;
}

/* The last part of a split disk is what ends the disk. */
static int
resize_part (struct resize *resize, const struct described *described, guint part,
             bool dry_run, GError **error)
{
  const struct descriptor_storage *storage =
    g_ptr_array_index (described->descriptor->storages, part);
  const uint64_t start = storage->start_sectors * FORMAT_SECTOR_SIZE;
  g_autoptr (GPtrArray) images =
    descriptor_chain (described->descriptor, part, NULL, error);
  struct delta *delta;
  int r;

  if (!images)
    return -1;
  if (resize->size <= start) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: disk size cannot become %" G_GUINT64_FORMAT " bytes: only the "
                 "last part of a split disk changes, which begins at byte %"
                 G_GUINT64_FORMAT, described->descriptor->path, resize->size, start);
    return -1;
  }
  resize->size -= start;
  if (!lower_deltas_fit (described, images, part, resize->size, error))
    return -1;
  delta = open_top (described, images, part, dry_run, error);
  r = delta ? resize_delta (resize, delta, dry_run, error) : -1;
  resize->result->old_size += start;
  resize->size += start;
  return r;
}

static int
resize_described (struct resize *resize, const char *xml, bool dry_run,
                  GError **error)
{
  struct described described;
  int r;

  if (!described_open (&described, xml, !dry_run, error))
    return -1;
  r = resize_part (resize, &described, described.descriptor->storages->len - 1,
                   dry_run, error);
  if (r == 0 && !dry_run && !resize->result->interrupted
      && !(descriptor_set_size_sectors (described.descriptor,
                                        resize->size / FORMAT_SECTOR_SIZE, error)
           && descriptor_store (described.descriptor, error)))
    r = -1;
  described_close (&described);
  return r;
}

int
ploop_resize (const char *path, uint64_t size,
              const struct ploop_resize_options *options,
              ploop_progress_fn progress, void *opaque,
              struct ploop_resize_result *result, GError **error)
{
  static const struct ploop_resize_options none;
  const struct ploop_resize_options *o = options ? options : &none;
  g_autofree char *xml = location_descriptor (path);
  struct resize resize = {
    .mover = {
      .log = { o->log, o->log_opaque },
      .keep_holes_out = o->keep_holes_out,
      .progress = progress,
      .opaque = opaque,
    },
    .size = size,
    .shrink = o->shrink,
    .discard = o->discard,
    .result = result,
  };

  *result = (struct ploop_resize_result) { .new_size = size };
  return xml ? resize_described (&resize, xml, o->dry_run, error)
             : resize_file (&resize, path, o->dry_run, error);
}
