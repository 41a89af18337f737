/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Merging neighbouring deltas into the lowest of them: ploop_merge in ploop-core.h.
 *
 * What the upper deltas have is written to the disk as it was with the lowest one on
 * top: by requests as a guest makes them, with all that keeps these safe.  A cluster
 * is copied from the highest delta that has it, once.
 *
 * Nobody sees it happen.  Whoever reads the disk, or a snapshot that stays, finds what
 * is copied in the upper delta, and the descriptor names that until all is on disk:
 * then it is replaced, and only then are files removed.  Before, it says of the
 * snapshots that are to go that they are temporary: their content is lost with the
 * first byte that is written, and may stay so if the merge is cut short.  The same
 * merge, done again, completes it.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bitmap-update.h"
#include "chain.h"
#include "lock.h"
#include "merge.h"
#include "parts.h"
#include "pieces.h"
#include "resize.h"

/* One merge of files: what is above, and where it goes. */
struct merging {
  struct chain upper;           /* the lowest of them first */
  struct map map;               /* which of them has a cluster */
  uint64_t size;                /* of the disk, bytes */
  uint32_t cluster_size;
  ploop_image *image;           /* it goes here, or to: */
  struct delta *raw;
  uint8_t *bufs[PIECES_NR_THREADS];
  struct pieces pieces;
  uint64_t to_copy;             /* bytes, of clusters */
  bool begun;                   /* it may have been written to */
};

static const char *
target_path (const struct merging *merging)
{
  return merging->raw ? merging->raw->path
                      : merging->image->parts[0].image->disk.delta->path;
}

/* ---- The upper deltas -------------------------------------------------- */

static enum delta_lock
lock_for (bool writer)
{
  return writer ? DELTA_LOCK_WRITER : DELTA_LOCK_READER;
}

/* Deltas FIRST and those above it.  They are to be removed: nobody may use them. */
static bool
open_uppers (struct merging *merging, const struct location *location, guint first,
             bool writer, const struct log *log, GError **error)
{
  struct chain *chain = &merging->upper;

  chain->nr_levels = location->deltas->len - first;
  chain->levels = g_new0 (struct delta *, chain->nr_levels);
  for (unsigned i = 0; i < chain->nr_levels; i++) {
    chain->levels[i] =
      location_open_delta (location, first + i, lock_for (writer), log, error);
    if (!chain->levels[i])
      return false;
  }
  merging->size = chain_top (chain)->layout.size;
  merging->cluster_size = chain_top (chain)->layout.cluster_size;
  return true;
}

static bool
have_one_cluster_size (const struct merging *merging, GError **error)
{
  for (unsigned i = 0; i < merging->upper.nr_levels; i++) {
    const struct delta *delta = merging->upper.levels[i];

    if (delta->layout.cluster_size != merging->cluster_size) {
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                   "%s: cluster size is %" G_GUINT32_FORMAT " bytes, but that of "
                   "%s is %" G_GUINT32_FORMAT ": they are not of one chain",
                   delta->path, delta->layout.cluster_size,
                   chain_top (&merging->upper)->path, merging->cluster_size);
      return false;
    }
  }
  return true;
}

static bool
carries_bitmaps (const struct delta *delta)
{
  return bitmap_get_state (&delta->header) == BITMAP_VALID;
}

/* A bitmap says what has changed since a backup.  That of the highest delta goes where
 * its data goes; of one in between, the merged delta would not have it, and nobody would
 * notice.
 */
static bool
have_no_bitmaps (const struct merging *merging, GError **error)
{
  for (unsigned i = 0; i + 1 < merging->upper.nr_levels; i++) {
    const struct delta *delta = merging->upper.levels[i];

    if (carries_bitmaps (delta)) {
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                   "%s: carries changed-block bitmaps, which merging would lose: "
                   "ploop-img bitmap remove takes them away", delta->path);
      return false;
    }
  }
  return true;
}

static bool
load_uppers (struct merging *merging, const struct log *log, GError **error)
{
  g_autoptr (GArray) lost = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  struct chain_summary summary = { .lost = lost };
  const struct delta *top = chain_top (&merging->upper);
  const int r = map_init (&merging->map, top->layout.nr_entries);

  if (r < 0) {
    error_set_system (error, r, "%s: no memory for a map of %" G_GUINT32_FORMAT
                      " clusters", top->path, top->layout.nr_entries);
    return false;
  }
  return chain_load (&merging->upper, &merging->map, log, &summary, error) == 0;
}

/* ---- Where it goes ----------------------------------------------------- */

/* The disk with the lowest delta on top. */
static bool
open_target (struct merging *merging, struct location *location, bool writer,
             const struct log *log, GError **error)
{
  const struct ploop_open_options options = {
    .read_only = !writer,
    .log = log->write,
    .log_opaque = log->opaque,
  };

  location->read_only = !writer;
  if (location_is_raw (location)) {
    merging->raw =
      location_open_delta (location, 0, lock_for (writer), log, error);
    return merging->raw != NULL;
  }
  merging->image = parts_open (location, &options, error);
  return merging->image != NULL;
}

/* Where the upper delta has bitmaps, too, those of the lower one are what is left of a
 * snapshot that was cut short, or of this merge.
 */
static bool
may_lose_bitmaps (const struct merging *merging)
{
  const struct delta *lower =
    merging->raw ? NULL : merging->image->parts[0].image->disk.delta;

  return lower && carries_bitmaps (lower)
         && carries_bitmaps (chain_top (&merging->upper));
}

/* To be asked before anything is spoilt for it. */
static bool
can_grow (const struct merging *merging, GError **error)
{
  const struct delta *delta =
    merging->raw ? NULL : merging->image->parts[0].image->disk.delta;
  struct format_header header;
  struct format_layout layout;

  if (!delta || delta->layout.size >= merging->size
      || format_resize_header (&delta->header, &delta->layout, merging->size,
                               &header, &layout, error))
    return true;
  g_prefix_error (error, "%s: must become as large as %s, above it: ", delta->path,
                  chain_top (&merging->upper)->path);
  return false;
}

static bool
judge_target (const struct merging *merging, bool writer, GError **error)
{
  const uint64_t size = merging->raw ? merging->raw->layout.size
                                     : ploop_size (merging->image);
  const uint32_t cluster_size =
    merging->raw ? merging->cluster_size : ploop_cluster_size (merging->image);
  const bool read_only = merging->raw ? merging->raw->read_only
                                      : ploop_is_read_only (merging->image);

  if (cluster_size != merging->cluster_size)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_FORMAT,
                 "%s: cluster size is %" G_GUINT32_FORMAT " bytes, but that of %s, "
                 "above it, is %" G_GUINT32_FORMAT ": they are not of one chain",
                 target_path (merging), cluster_size,
                 chain_top (&merging->upper)->path, merging->cluster_size);
  else if (size > merging->size)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: has a disk of %" G_GUINT64_FORMAT " bytes, larger than that "
                 "of %s, above it (%" G_GUINT64_FORMAT "): what lies behind would "
                 "come to light", target_path (merging), size,
                 chain_top (&merging->upper)->path, merging->size);
  else if (merging->raw && carries_bitmaps (chain_top (&merging->upper)))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: carries changed-block bitmaps, for which a raw disk, %s, has no "
                 "place: ploop-img bitmap remove takes them away",
                 chain_top (&merging->upper)->path, target_path (merging));
  else if (writer && read_only && !may_lose_bitmaps (merging))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
                 "%s: may not be written: see its permissions, whether its file "
                 "system is mounted read-only, and whether it carries "
                 "changed-block bitmaps (ploop-img bitmap remove)",
                 target_path (merging));
  else
    return can_grow (merging, error);
  return false;
}

/* ---- Copying ----------------------------------------------------------- */

static uint64_t
next_mapped (void *opaque, uint64_t offset)
{
  const struct merging *merging = opaque;
  uint64_t cluster = offset / merging->cluster_size;

  if (map_word_is_mapped (map_lookup (&merging->map, cluster)))
    return offset;
  while (++cluster < merging->map.nr_clusters)
    if (map_word_is_mapped (map_lookup (&merging->map, cluster)))
      return cluster * merging->cluster_size;
  return merging->size;
}

static int
write_target (struct merging *merging, const uint8_t *buf, size_t length,
              uint64_t offset)
{
  return merging->raw ? delta_pwrite (merging->raw, buf, length, offset)
                      : ploop_pwrite (merging->image, buf, length, offset, 0);
}

/* Over a lower delta, the request leaves zeros that hide it. */
static int
zero_target (struct merging *merging, uint64_t length, uint64_t offset)
{
  int r;

  if (length == 0)
    return 0;
  if (!merging->raw)
    return ploop_zero (merging->image, length, offset, PLOOP_UNMAP);
  r = delta_punch (merging->raw, length, offset);
  return r == -ENOTSUP ? delta_zero (merging->raw, length, offset) : r;
}

/* LENGTH bytes at HOST of DELTA's file go to OFFSET of the disk. */
static int
copy_range (struct merging *merging, const struct delta *delta, uint8_t *buf,
            uint64_t host, size_t length, uint64_t offset)
{
  const uint64_t end = host + length;
  uint64_t at = host, data = host, stop;
  int r = 0;

  while (r == 0 && delta_next_data (delta, end, &data, &stop)) {
    r = zero_target (merging, data - at, offset + (at - host));
    if (r == 0)
      r = delta_pread (delta, buf, stop - data, data);
    if (r == 0)
      r = write_target (merging, buf, stop - data, offset + (data - host));
    at = data = stop;
  }
  return r == 0 ? zero_target (merging, end - at, offset + (at - host)) : r;
}

/* What of a piece lies in one cluster. */
static int
copy_cluster (struct merging *merging, uint8_t *buf, size_t length,
              uint64_t offset)
{
  const uint64_t word =
    map_lookup (&merging->map, offset / merging->cluster_size);
  const struct delta *delta;
  uint64_t host;
  size_t inside;
  int r;

  if (!map_word_is_mapped (word))
    return 0;
  delta = chain_delta (&merging->upper, word);
  host = format_entry_offset (&delta->layout, map_word_entry (word))
         + offset % merging->cluster_size;
  /* A delta that is not the highest may end before the disk does. */
  inside = (size_t) delta_length_inside (delta, length, offset);
  r = copy_range (merging, delta, buf, host, inside, offset);
  return r == 0 ? zero_target (merging, length - inside, offset + inside) : r;
}

static int
copy_piece (void *opaque, unsigned thread, uint64_t offset, size_t length,
            GError **error)
{
  struct merging *merging = opaque;
  int r = 0;

  while (r == 0 && length > 0) {
    const uint64_t left =
      merging->cluster_size - offset % merging->cluster_size;
    const size_t n = (size_t) MIN (length, left);

    r = copy_cluster (merging, merging->bufs[thread], n, offset);
    if (r < 0)
      error_set_system (error, r, "%s: cannot take what is at byte %"
                        G_GUINT64_FORMAT " of the disk: nothing is lost: merge "
                        "again when the cause is gone", target_path (merging),
                        offset);
    offset += n;
    length -= n;
  }
  return r < 0 ? -1 : 0;
}

static uint64_t
count_to_copy (const struct merging *merging)
{
  uint64_t nr = 0;

  for (uint64_t i = 0; i < merging->map.nr_clusters; i++)
    nr += map_word_is_mapped (map_lookup (&merging->map, i));
  return MIN (nr * merging->cluster_size, merging->size);
}

static int
copy_all (struct merging *merging, GError **error)
{
  int r;

  for (unsigned i = 0; i < PIECES_NR_THREADS; i++)
    merging->bufs[i] = g_malloc (PIECES_BYTES);
  r = pieces_run (&merging->pieces, error);
  for (unsigned i = 0; i < PIECES_NR_THREADS; i++)
    g_free (merging->bufs[i]);
  return r;
}

/* ---- One merge of files ------------------------------------------------ */

/* As long as the disk; and on disk, all of it. */
static int
finish_raw (struct merging *merging, GError **error)
{
  int r = merging->raw->file_size < merging->size
            ? delta_truncate (merging->raw, merging->size) : 0;

  if (r == 0)
    r = delta_sync (merging->raw);
  if (r < 0)
    error_set_system (error, r, "%s: cannot be synced", merging->raw->path);
  return r < 0 ? -1 : 0;
}

/* LOCATION is of all; in the end, of the lowest NR_LOWER and what they rest on.  If
 * WRITER, the deltas that are to go are kept from everybody, too.
 */
static bool
open_all (struct merging *merging, struct location *location, guint nr_lower,
          bool writer, const struct log *log, GError **error)
{
  if (!open_uppers (merging, location, nr_lower, writer, log, error)
      || !have_one_cluster_size (merging, error)
      || !have_no_bitmaps (merging, error) || !load_uppers (merging, log, error))
    return false;
  g_array_set_size (location->deltas, nr_lower);
  if (location->cluster_size == 0)
    location->cluster_size = merging->cluster_size;
  return open_target (merging, location, writer, log, error)
         && judge_target (merging, writer, error);
}

static void
close_uppers (struct merging *merging)
{
  chain_close (&merging->upper);
  map_destroy (&merging->map);
}

/* Returns 0 when what was written is there for good. */
static int
close_target (struct merging *merging, GError **error)
{
  int r = 0;

  if (merging->raw && merging->begun)
    r = finish_raw (merging, error);
  delta_close (merging->raw);
  if (merging->image && ploop_close (merging->image, error) == -1)
    r = -1;
  return r;
}

/* ---- Parts ------------------------------------------------------------- */

/* A disk has one part, or several if it is split. */
struct part_merging {
  struct location location;     /* of the lowest delta and those below it */
  struct merging merging;
};

static bool
open_part (const struct merge *merge, struct part_merging *part,
           guint nr_lower, GError **error)
{
  part->merging.pieces = (struct pieces) {
    .next_data = next_mapped,
    .work = copy_piece,
    .opaque = &part->merging,
    .progress = merge->progress,
    .progress_opaque = merge->opaque,
  };
  if (!open_all (&part->merging, &part->location, nr_lower, !merge->dry_run,
                 merge->log, error))
    return false;
  part->merging.pieces.size = part->merging.size;
  part->merging.to_copy = count_to_copy (&part->merging);
  merge->result->nr_deltas += part->merging.upper.nr_levels;
  merge->result->bytes_to_copy += part->merging.to_copy;
  return true;
}

static struct delta *
open_lowest (const struct part_merging *part, const struct log *log,
             GError **error)
{
  const struct location *location = &part->location;

  return location_open_delta (location, location->deltas->len - 1,
                              DELTA_LOCK_WRITER, log, error);
}

static bool
drop_bitmaps (const struct part_merging *part, const struct log *log,
              GError **error)
{
  struct delta *delta = open_lowest (part, log, error);
  const bool ok = delta && bitmap_remove_all (delta, log, error);

  delta_close (delta);
  return ok;
}

static bool
grow_target (const struct part_merging *part, const struct log *log,
             GError **error)
{
  struct delta *delta = open_lowest (part, log, error);

  return delta && resize_grow (delta, part->merging.size, log, error) == 0;
}

/* The lowest delta may be of a smaller disk, or have bitmaps that are of no more use. */
static bool
prepare_target (struct part_merging *part, const struct log *log, GError **error)
{
  struct merging *merging = &part->merging;
  const bool grows = merging->image && ploop_size (merging->image) < merging->size;
  const bool drops = may_lose_bitmaps (merging);

  if (!grows && !drops)
    return true;
  ploop_close (g_steal_pointer (&merging->image), NULL);
  return (!drops || drop_bitmaps (part, log, error))
         && (!grows || grow_target (part, log, error))
         && open_target (merging, &part->location, true, log, error);
}

/* With all data there for good: so are the bitmaps of the highest delta then. */
static bool
copy_bitmaps (const struct part_merging *part, const struct log *log,
              GError **error)
{
  struct delta *upper = chain_top (&part->merging.upper);
  struct delta *lowest;
  bool ok;

  if (format_has_valid_extension (&upper->header) && !carries_bitmaps (upper))
    log_warning (log, "%s: its changed-block bitmaps are stale, and go with it",
                 upper->path);
  if (!carries_bitmaps (upper))
    return true;
  lowest = open_lowest (part, log, error);
  ok = lowest && bitmap_copy (upper, lowest, log, error);
  delta_close (lowest);
  return ok;
}

/* One that was not closed is closed in the end, though nothing may have to be written. */
static bool
recover_target (const struct merging *merging, GError **error)
{
  const int r =
    merging->image ? image_recover (merging->image->parts[0].image) : 0;

  if (r < 0)
    error_set_system (error, r, "%s: was not closed, and cannot be changed",
                      target_path (merging));
  return r == 0;
}

/* Returns 0 when all of it is on disk, or it was cancelled. */
static int
copy_part (const struct merge *merge, struct part_merging *part,
           GError **error)
{
  struct merging *merging = &part->merging;
  int r;

  merging->begun = true;
  r = prepare_target (part, merge->log, error) && recover_target (merging, error)
        ? copy_all (merging, error) : -1;
  if (close_target (merging, r == 0 ? error : NULL) == -1)
    r = -1;
  merging->raw = NULL;
  merging->image = NULL;
  merge->result->interrupted |= merging->pieces.cancelled;
  if (r == -1 || merging->pieces.cancelled)
    return r;
  merge->result->bytes_copied += merging->to_copy;
  return copy_bitmaps (part, merge->log, error) ? 0 : -1;
}

static void
close_part (struct part_merging *part)
{
  close_target (&part->merging, NULL);
  close_uppers (&part->merging);
  described_forget (&part->location);
}

static int
copy_parts (const struct merge *merge, struct part_merging *parts, guint nr,
            GError **error)
{
  for (guint i = 0; i < nr && !merge->result->interrupted; i++)
    if (copy_part (merge, &parts[i], error) == -1)
      return -1;
  return 0;
}

/* ---- A range of a described disk --------------------------------------- */

/* The GUIDs of LOWER and all up to UPPER, the lowest first; or NULL with ERROR set when
 * they are not ancestor and descendant, or something else rests on one of them.
 */
static GPtrArray *
list_range (const struct descriptor *descriptor, const char *lower,
            const char *upper, GError **error)
{
  g_autoptr (GPtrArray) chain = descriptor_chain (descriptor, 0, upper, error);
  g_autoptr (GPtrArray) range = g_ptr_array_new_with_free_func (g_free);

  if (!chain)
    return NULL;
  for (guint i = 0; i < chain->len; i++) {
    const struct descriptor_image *image = g_ptr_array_index (chain, i);

    if (range->len > 0 || strcmp (image->guid, lower) == 0)
      g_ptr_array_add (range, g_strdup (image->guid));
  }
  if (range->len > 1)
    return g_steal_pointer (&range);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: %s does not rest on %s: nothing can be merged",
               descriptor->path, upper, lower);
  return NULL;
}

static bool
nothing_else_rests_on (const struct descriptor *descriptor,
                       const GPtrArray *range, GError **error)
{
  for (guint i = 0; i + 1 < range->len; i++) {
    const char *guid = g_ptr_array_index (range, i);
    g_autoptr (GPtrArray) children =
      descriptor_list_children (descriptor, guid);

    for (guint j = 0; j < children->len; j++) {
      const struct descriptor_shot *shot = g_ptr_array_index (children, j);

      if (strcmp (shot->guid, g_ptr_array_index (range, i + 1)) == 0)
        continue;
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                   "%s: the snapshot %s rests on %s, too, which cannot be merged "
                   "with another: delete the one that is not needed first",
                   descriptor->path, shot->guid, guid);
      return false;
    }
  }
  return true;
}

/* From now on, their content is not what it was. */
static bool
mark_temporary (struct described *described, const GPtrArray *range,
                GError **error)
{
  bool changed = false;

  for (guint i = 0; i + 1 < range->len; i++) {
    const char *guid = g_ptr_array_index (range, i);

    if (descriptor_find_shot (described->descriptor, guid)->temporary
        != DESCRIPTOR_PERMANENT)
      continue;
    if (!descriptor_set_temporary (described->descriptor, guid, true, error))
      return false;
    changed = true;
  }
  return !changed || descriptor_store (described->descriptor, error);
}

/* The highest GUID goes to the file of the lowest one; all others go. */
static bool
describe_merged (struct descriptor *descriptor, const GPtrArray *range,
                 GError **error)
{
  const char *lower = g_ptr_array_index (range, 0);
  const char *upper = g_ptr_array_index (range, range->len - 1);

  for (guint i = 0; i < descriptor->storages->len; i++)
    if (!descriptor_set_file (descriptor, i, upper,
                              descriptor_find_image (descriptor, i, lower),
                              error))
      return false;
  for (guint i = 0; i + 1 < range->len; i++)
    if (!descriptor_remove (descriptor, g_ptr_array_index (range, i), error))
      return false;
  return true;
}

static bool
collect_uppers (struct described *described, const GPtrArray *range,
                GPtrArray *paths, GError **error)
{
  /* They are open, and locked. */
  for (guint i = 1; i < range->len; i++)
    if (!described_collect_files (described, g_ptr_array_index (range, i), false,
                                  paths, error))
      return false;
  return true;
}

static bool
replace_described (struct described *described, const GPtrArray *range,
                   GError **error)
{
  g_autoptr (GPtrArray) paths = g_ptr_array_new_with_free_func (g_free);

  return collect_uppers (described, range, paths, error)
         && describe_merged (described->descriptor, range, error)
         && described_is_sound (described,
                                g_ptr_array_index (range, range->len - 1),
                                error)
         && descriptor_store (described->descriptor, error)
         && described_remove_files (described, paths, error);
}

/* The files of all of PARTS, which has room for each storage. */
static bool
open_parts (const struct merge *merge, const GPtrArray *range,
            struct part_merging *parts, GError **error)
{
  const struct descriptor *descriptor = merge->described->descriptor;
  const char *upper = g_ptr_array_index (range, range->len - 1);

  for (guint i = 0; i < descriptor->storages->len; i++) {
    g_autoptr (GPtrArray) images =
      descriptor_chain (descriptor, i, upper, error);

    if (!images
        || !described_locate (merge->described, i, images, images->len,
                              &parts[i].location, error)
        || !open_part (merge, &parts[i], images->len - (range->len - 1),
                       error))
      return false;
  }
  return true;
}

static int
merge_parts (struct merge *merge, const GPtrArray *range, GError **error)
{
  struct described *described = merge->described;
  const guint nr = described->descriptor->storages->len;
  g_autofree struct part_merging *parts = g_new0 (struct part_merging, nr);
  int r = -1;

  if (open_parts (merge, range, parts, error)
      && (merge->dry_run || mark_temporary (described, range, error)))
    r = merge->dry_run ? 0 : copy_parts (merge, parts, nr, error);
  if (r == 0 && !merge->dry_run && !merge->result->interrupted
      && !replace_described (described, range, error))
    r = -1;
  for (guint i = 0; i < nr; i++)
    close_part (&parts[i]);
  return r;
}

int
merge_range (struct merge *merge, const char *lower, const char *upper,
             GError **error)
{
  const struct descriptor *descriptor = merge->described->descriptor;
  g_autoptr (GPtrArray) range = list_range (descriptor, lower, upper, error);

  if (!range || !nothing_else_rests_on (descriptor, range, error)
      || !described_has_own_files (merge->described, lower, error))
    return -1;
  return merge_parts (merge, range, error);
}

/* ---- Files without a descriptor ---------------------------------------- */

/* Merging what a descriptor knows, and not telling it, would leave it with a chain that
 * is not one any more.
 */
static bool
is_free_of_descriptors (const GArray *sources, GError **error)
{
  for (guint i = 0; i < sources->len; i++) {
    const char *path = g_array_index (sources, struct chain_source, i).path;
    g_autofree char *descriptor = NULL;

    if (!location_find_owner (path, &descriptor, error))
      return false;
    if (!descriptor)
      continue;
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: is one delta of %s: give that, and the GUID of the snapshot",
                 path, descriptor);
    return false;
  }
  return true;
}

/* Other descriptors beside them, which need not know them: ploop locks these.  The
 * locks' file descriptors are added to FDS.
 */
static bool
lock_beside (const GArray *sources, bool writer, GArray *fds, GError **error)
{
  g_autoptr (GHashTable) seen =
    g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);

  for (guint i = 0; i < sources->len; i++) {
    char *real =
      realpath (g_array_index (sources, struct chain_source, i).path, NULL);
    char *beside = real ? lock_descriptor_name (real) : NULL;
    int fd = -1;
    const bool ok = !real || !g_hash_table_add (seen, beside)
                    || lock_descriptor (real,
                                        writer ? DESCRIPTOR_LOCK_WRITER
                                               : DESCRIPTOR_LOCK_READER,
                                        &fd, error);

    free (real);
    if (!ok)
      return false;
    if (fd >= 0)
      g_array_append_val (fds, fd);
  }
  return true;
}

static void
add_sources (GArray *sources, const char *path, const char *const *bases)
{
  const guint nr = g_strv_length ((gchar **) bases);

  for (guint i = nr; i-- > 0;)
    chain_sources_add (sources, bases[i], -1, i == nr - 1);
  chain_sources_add (sources, path, -1, false);
}

static int
merge_files (struct merge *merge, const char *path,
             const struct ploop_merge_options *options, GError **error)
{
  g_autoptr (GArray) fds = g_array_new (FALSE, FALSE, sizeof (int));
  struct part_merging part = {
    .location = {
      .deltas = chain_sources_new (),
      .descriptor_is_locked = true,
      .nr_parts = 1,
    },
  };
  GArray *sources = part.location.deltas;
  int r = -1;

  add_sources (sources, path, options->bases);
  if (is_free_of_descriptors (sources, error)
      && lock_beside (sources, !merge->dry_run, fds, error)
      && open_part (merge, &part, options->all ? 1 : sources->len - 1, error))
    r = merge->dry_run ? 0 : copy_part (merge, &part, error);
  close_part (&part);
  for (guint i = 0; i < fds->len; i++)
    close (g_array_index (fds, int, i));
  return r;
}

/* ---- All --------------------------------------------------------------- */

static const char *
find_base (const struct descriptor *descriptor, const char *upper,
           GError **error)
{
  g_autoptr (GPtrArray) chain = descriptor_chain (descriptor, 0, upper, error);

  return chain ? ((const struct descriptor_image *) chain->pdata[0])->guid
               : NULL;
}

/* The GUID of the lowest delta, as DESCRIPTOR has it. */
static const char *
choose_lower (const struct descriptor *descriptor,
              const struct descriptor_shot *upper,
              const struct ploop_merge_options *options, GError **error)
{
  const struct descriptor_shot *lower;

  if (!upper->parent_guid) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: %s is a base, and rests on nothing that it could be merged "
                 "into", descriptor->path, upper->guid);
    return NULL;
  }
  if (options->all)
    return find_base (descriptor, upper->guid, error);
  if (!options->into)
    return upper->parent_guid;
  lower = descriptor_need_shot (descriptor, options->into, error);
  return lower ? lower->guid : NULL;
}

static int
merge_described (struct merge *merge, const char *path,
                 const struct ploop_merge_options *options, GError **error)
{
  struct described described;
  const struct descriptor_shot *upper;
  g_autofree char *lower = NULL, *guid = NULL;
  int r = -1;

  if (!described_open (&described, path, !merge->dry_run, error))
    return -1;
  merge->described = &described;
  upper = descriptor_need_shot (described.descriptor, options->snapshot, error);
  if (upper) {
    guid = g_strdup (upper->guid);
    lower = g_strdup (choose_lower (described.descriptor, upper, options, error));
  }
  if (lower)
    r = merge_range (merge, lower, guid, error);
  described_close (&described);
  return r;
}

static bool
check_options (const char *path, const struct ploop_merge_options *options,
               GError **error)
{
  if (options->all && options->into)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: into is %s, but all are to be merged: give one of both", path,
                 options->into);
  else if (options->bases && (options->into || options->snapshot))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: snapshot is %s, but with bases given there are no GUIDs", path,
                 options->into ? options->into : options->snapshot);
  else if (options->bases && !options->bases[0])
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: has no bases to be merged into", path);
  else if (options->bases
           && g_strv_length ((gchar **) options->bases) >= CHAIN_MAX_LEVELS)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: has %u bases, but a chain has %u deltas at most: merge some "
                 "of them first", path,
                 g_strv_length ((gchar **) options->bases), CHAIN_MAX_LEVELS);
  else
    return true;
  return false;
}

int
ploop_merge (const char *path, const struct ploop_merge_options *options,
             ploop_progress_fn progress, void *opaque,
             struct ploop_merge_result *result, GError **error)
{
  static const struct ploop_merge_options none;
  const struct ploop_merge_options *o = options ? options : &none;
  const struct log log = { o->log, o->log_opaque };
  struct merge merge = {
    .log = &log,
    .dry_run = o->dry_run,
    .progress = progress,
    .opaque = opaque,
    .result = result,
  };

  *result = (struct ploop_merge_result) { .interrupted = false };
  if (!check_options (path, o, error))
    return -1;
  return o->bases ? merge_files (&merge, path, o, error)
                  : merge_described (&merge, path, o, error);
}
