/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Copying what can be read of a damaged disk: ploop_rescue in ploop-core.h.
 *
 * What is wrong with the BATs is known before anything is copied, and is listed first,
 * cluster by cluster.  Then the data is copied, and what of it cannot be read is added.
 *
 * The hard rule: where a delta has, or may have, a cluster that cannot be had, no lower
 * one's is taken for it unasked.  A file system that is partly older than itself is
 * worse than one with a hole that is known.
 */

#include <config.h>

#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "location.h"
#include "lock.h"
#include "pieces.h"
#include "ranges.h"
#include "salvage.h"
#include "sink.h"

/* One of the disks that a split disk consists of; most have one. */
struct part {
  uint64_t start, length;       /* bytes of the disk */
  uint32_t cluster_size;        /* bytes, of all levels */
  GPtrArray *levels;            /* of struct salvage, base first */
};

struct rescue {
  const char *path;
  const struct ploop_rescue_options *options;
  struct log log;
  GPtrArray *parts;             /* of struct part, in order, without gaps */
  uint64_t size;                /* bytes */
  int descriptor_lock_fd;       /* -1: none */

  struct sink *sink;
  uint8_t *bufs[PIECES_NR_THREADS];
  pthread_mutex_t lock;         /* for: */
  struct ranges ranges;
  uint64_t written;             /* bytes */
};

/* ---- Opening ----------------------------------------------------------- */

static void
close_level (gpointer opaque)
{
  salvage_close (opaque);
}

static void
free_part (gpointer opaque)
{
  struct part *part = opaque;

  g_ptr_array_unref (part->levels);
  g_free (part);
}

static struct part *
add_part (struct rescue *rescue)
{
  struct part *part = g_new0 (struct part, 1);

  part->levels = g_ptr_array_new_with_free_func (close_level);
  g_ptr_array_add (rescue->parts, part);
  return part;
}

static struct salvage *
get_level (const struct part *part, unsigned level)
{
  return g_ptr_array_index (part->levels, level);
}

static const struct salvage *
get_top (const struct part *part)
{
  return get_level (part, part->levels->len - 1);
}

/* A delta that could not be opened for the reason WHY, which is taken over: may it be
 * missing?
 */
static bool
add_missing (struct rescue *rescue, struct part *part, const char *name,
             GError *why, GError **error)
{
  if (!rescue->options->missing_ok
      || !g_error_matches (why, PLOOP_ERROR, PLOOP_ERROR_SYSTEM)) {
    g_propagate_error (error, why);
    return false;
  }
  log_warning (&rescue->log, "%s: counts as missing", why->message);
  g_error_free (why);
  g_ptr_array_add (part->levels, salvage_new_missing (name));
  return true;
}

static bool
add_level (struct rescue *rescue, struct part *part,
           const struct chain_source *file, const char *index, bool insist,
           GError **error)
{
  const struct ploop_rescue_options *options = rescue->options;
  const struct salvage_source source = {
    .path = file->path,
    .path_fd = file->path_fd,
    .may_be_raw = file->may_be_raw,
    .index = index,
    .given = { options->version, options->cluster_size, options->size },
    .insist = insist,
  };
  GError *why = NULL;
  struct salvage *level = salvage_open (&source, &rescue->log, &why);

  if (!level)
    return add_missing (rescue, part, file->path, why, error);
  g_ptr_array_add (part->levels, level);
  return true;
}

/* Let all levels have clusters of one size, the descriptor's if it has been read: a
 * raw disk has none of its own.
 */
static bool
agree_on_clusters (struct part *part, GError **error)
{
  const struct salvage *first = NULL;

  for (unsigned i = part->levels->len; i-- > 0;) {
    const struct salvage *level = get_level (part, i);

    if (!level->file || level->is_raw)
      continue;
    if (first && first->layout.cluster_size != level->layout.cluster_size) {
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                   "%s: cluster size is %" G_GUINT32_FORMAT " bytes, but that of "
                   "%s is %" G_GUINT32_FORMAT ": they are not of one chain, or one "
                   "header is wrong: give the cluster size", level->name,
                   level->layout.cluster_size, first->name,
                   first->layout.cluster_size);
      return false;
    }
    first = first ? first : level;
  }
  if (first)
    part->cluster_size = first->layout.cluster_size;
  if (part->cluster_size == 0)
    part->cluster_size = FORMAT_DEFAULT_CLUSTER;
  for (unsigned i = 0; i < part->levels->len; i++)
    if (get_level (part, i)->is_raw)
      salvage_be_raw (get_level (part, i), part->cluster_size);
  return true;
}

/* ---- By names ---------------------------------------------------------- */

static bool
open_files (struct rescue *rescue, GError **error)
{
  const struct ploop_rescue_options *options = rescue->options;
  const struct ploop_open_options where = {
    .read_only = true,
    .bases = options->bases,
    .snapshot = options->snapshot,
  };
  struct location location;
  struct part *part = add_part (rescue);
  bool ok = true;

  if (!location_find (&location, rescue->path, 0, &where, &rescue->log, error))
    return false;
  for (guint i = 0; i < location.deltas->len && ok; i++) {
    const bool is_top = i + 1 == location.deltas->len;

    ok = add_level (rescue, part,
                    &g_array_index (location.deltas, struct chain_source, i),
                    is_top ? options->index : NULL,
                    location.deltas->len == 1, error);
  }
  location_clear (&location);
  if (!ok || !agree_on_clusters (part, error))
    return false;
  part->length = get_top (part)->file ? get_top (part)->layout.size
                                      : options->size;
  return true;
}

/* ---- By a descriptor --------------------------------------------------- */

static bool
add_image (struct rescue *rescue, struct part *part,
           const struct descriptor *descriptor,
           const struct descriptor_image *image, GError **error)
{
  GError *why = NULL;
  char *path = NULL;
  const int fd =
    descriptor_open_file (descriptor, image, false, &path, &why);
  const struct chain_source file = {
    .path = path,
    .path_fd = fd,
    .may_be_raw = image->is_plain && part->levels->len == 0,
  };
  bool ok;

  if (fd == -1)
    return add_missing (rescue, part, image->file, why, error);
  ok = add_level (rescue, part, &file, NULL, false, error);
  close (fd);
  g_free (path);
  return ok;
}

static bool
open_storage (struct rescue *rescue, const struct descriptor *descriptor,
              guint number, GError **error)
{
  const struct descriptor_storage *storage =
    g_ptr_array_index (descriptor->storages, number);
  g_autoptr (GPtrArray) images =
    descriptor_chain (descriptor, number, rescue->options->snapshot, error);
  struct part *part;

  if (!images)
    return false;
  part = add_part (rescue);
  part->start = storage->start_sectors * FORMAT_SECTOR_SIZE;
  part->length = (storage->end_sectors - storage->start_sectors)
                 * FORMAT_SECTOR_SIZE;
  part->cluster_size = storage->cluster_sectors * FORMAT_SECTOR_SIZE;
  for (guint i = 0; i < images->len; i++)
    if (!add_image (rescue, part, descriptor, g_ptr_array_index (images, i),
                    error))
      return false;
  if (!agree_on_clusters (part, error))
    return false;
  /* The disk may have grown at its end; then the header rules. */
  if (number + 1 == descriptor->storages->len && get_top (part)->file)
    part->length = get_top (part)->layout.size;
  return true;
}

static bool
open_described (struct rescue *rescue, const char *xml, GError **error)
{
  g_autoptr (Descriptor) descriptor = NULL;

  if (rescue->options->bases || rescue->options->index) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: bases and an index are for a disk that is given by the name "
                 "of its top delta's file", rescue->path);
    return false;
  }
  descriptor = descriptor_load (xml, error);
  if (!descriptor) {
    g_prefix_error (error, "restore the descriptor, or give the files one by one: ");
    return false;
  }
  if (!lock_descriptor_file (descriptor->path, descriptor->path,
                             DESCRIPTOR_LOCK_READER,
                             &rescue->descriptor_lock_fd, error))
    return false;
  for (guint i = 0; i < descriptor->storages->len; i++)
    if (!open_storage (rescue, descriptor, i, error))
      return false;
  return true;
}

/* Of a disk whose top is missing, nothing but this bounds what its size may be. */
static bool
check_size (const struct rescue *rescue, const struct part *part,
            GError **error)
{
  if (part->length == 0)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: how large the disk is, is not known: give the size",
                 rescue->path);
  else if ((part->length - 1) / part->cluster_size >= FORMAT_MAX_ENTRIES)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: size is %" G_GUINT64_FORMAT " bytes, must be at most %"
                 G_GUINT64_FORMAT " with clusters of %" G_GUINT32_FORMAT " bytes",
                 rescue->path, part->length,
                 (uint64_t) FORMAT_MAX_ENTRIES * part->cluster_size,
                 part->cluster_size);
  else
    return true;
  return false;
}

static bool
open_disk (struct rescue *rescue, GError **error)
{
  g_autofree char *xml = location_descriptor (rescue->path);

  if (xml ? !open_described (rescue, xml, error)
          : !open_files (rescue, error))
    return false;
  for (guint i = 0; i < rescue->parts->len; i++) {
    const struct part *part = g_ptr_array_index (rescue->parts, i);

    if (!check_size (rescue, part, error))
      return false;
    rescue->size = part->start + part->length;
  }
  return true;
}

/* ---- Where a cluster is ------------------------------------------------ */

struct found {
  const struct salvage *from;   /* NULL: nowhere */
  unsigned level;               /* of that */
  struct salvage_place place;   /* there */
  const struct salvage *damaged;        /* the first above it that should have it;
                                           NULL: none */
  enum ploop_rescue_kind kind;  /* of that damage, if there is */
  enum ploop_rescue_reason reason;
};

static void
note_damage (struct found *found, const struct salvage *level,
             const struct salvage_place *place)
{
  const enum ploop_rescue_kind kind =
    place->state == SALVAGE_LOST ? PLOOP_RESCUE_LOST : PLOOP_RESCUE_DOUBTFUL;

  if (found->damaged && found->kind <= kind)
    return;
  found->damaged = level;
  found->kind = kind;
  found->reason = place->reason;
}

/* Where is cluster INDEX of PART, in the levels below number BELOW? */
static void
find_cluster (const struct rescue *rescue, const struct part *part,
              unsigned below, uint64_t index, struct found *found)
{
  *found = (struct found) { .from = NULL };
  while (below-- > 0) {
    const struct salvage *level = get_level (part, below);
    struct salvage_place place;

    salvage_look (level, index, &place);
    if (place.state == SALVAGE_SOUND || place.state == SALVAGE_SHARED) {
      found->from = level;
      found->level = below;
      found->place = place;
      break;
    }
    if (place.state == SALVAGE_NOTHING)
      continue;
    note_damage (found, level, &place);
    if (place.state == SALVAGE_LOST && !rescue->options->fall_through)
      return;
  }
  if (found->from && found->damaged && found->kind == PLOOP_RESCUE_LOST)
    found->kind = PLOOP_RESCUE_OLDER;
}

static const struct part *
find_part (const struct rescue *rescue, uint64_t offset)
{
  guint i = 0;

  for (;; i++) {
    const struct part *part = g_ptr_array_index (rescue->parts, i);

    if (offset < part->start + part->length)
      return part;
  }
}

/* ---- What is wrong with the BATs --------------------------------------- */

static void
note (struct rescue *rescue, uint64_t offset, uint64_t length,
      enum ploop_rescue_kind kind, enum ploop_rescue_reason reason,
      const struct salvage *damaged, uint64_t other)
{
  const struct ploop_rescue_range range = {
    .offset = offset,
    .length = length,
    .kind = kind,
    .reason = reason,
    .path = damaged->name,
    .other = other,
  };

  pthread_mutex_lock (&rescue->lock);
  ranges_note (&rescue->ranges, &range);
  pthread_mutex_unlock (&rescue->lock);
}

/* The rest of a cluster of which the file has only the beginning; LENGTH bytes are on
 * the disk.
 */
static void
list_cut_off (struct rescue *rescue, uint64_t start,
              const struct found *found, uint64_t length)
{
  const struct salvage_place *place = &found->place;
  const uint64_t end = MIN (place->length, length);

  if (place->nr_there < end)
    note (rescue, start + place->nr_there, end - place->nr_there,
          PLOOP_RESCUE_DOUBTFUL, PLOOP_RESCUE_CUT_OFF, found->from, 0);
}

static void
list_cluster (struct rescue *rescue, const struct part *part, uint64_t index)
{
  const uint64_t start = index * part->cluster_size;
  const uint64_t length = MIN (part->cluster_size, part->length - start);
  struct found found;

  find_cluster (rescue, part, part->levels->len, index, &found);
  if (found.damaged)
    note (rescue, part->start + start, length, found.kind, found.reason,
          found.damaged, 0);
  if (!found.from)
    return;
  if (found.place.state == SALVAGE_SHARED)
    note (rescue, part->start + start, length, PLOOP_RESCUE_DOUBTFUL,
          PLOOP_RESCUE_SHARED, found.from,
          part->start + (uint64_t) found.place.other * part->cluster_size);
  list_cut_off (rescue, part->start + start, &found, length);
}

static void
list_damage (struct rescue *rescue)
{
  for (guint i = 0; i < rescue->parts->len; i++) {
    const struct part *part = g_ptr_array_index (rescue->parts, i);
    const uint64_t nr =
      (part->length + part->cluster_size - 1) / part->cluster_size;

    for (uint64_t index = 0; index < nr; index++)
      list_cluster (rescue, part, index);
  }
}

/* ---- Reading ----------------------------------------------------------- */

/* A stretch of one cluster, to be read. */
struct stretch {
  struct rescue *rescue;
  const struct part *part;
  unsigned below;               /* the levels that count */
  uint64_t offset;              /* bytes of the part */
  size_t length;
  uint8_t *buf;
  const struct found *found;    /* while it is read */
};

static bool read_stretch (struct stretch *stretch);

/* The same, LENGTH bytes at AT of it, from the levels below the one that has it.  Does
 * one of them have it?
 */
static bool
read_below (const struct stretch *stretch, size_t at, size_t length)
{
  struct stretch lower = *stretch;

  lower.below = stretch->found->level;
  lower.offset += at;
  lower.length = length;
  lower.buf += at;
  return read_stretch (&lower);
}

static void
note_unreadable (void *opaque, uint64_t offset, uint64_t length)
{
  const struct stretch *stretch = opaque;
  struct rescue *rescue = stretch->rescue;
  const struct found *found = stretch->found;
  const uint64_t begin =
    found->place.offset + stretch->offset % stretch->part->cluster_size;
  const size_t at = (size_t) (offset - begin);
  const bool older = rescue->options->fall_through
                     && read_below (stretch, at, (size_t) length);

  note (rescue, stretch->part->start + stretch->offset + at, length,
        older ? PLOOP_RESCUE_OLDER : PLOOP_RESCUE_LOST,
        PLOOP_RESCUE_UNREADABLE, found->from, 0);
}

/* Returns false when no level has it: it is zeros. */
static bool
read_stretch (struct stretch *stretch)
{
  const uint32_t cluster_size = stretch->part->cluster_size;
  const uint64_t within = stretch->offset % cluster_size;
  const struct salvage_place *place;
  struct found found;
  size_t there;

  find_cluster (stretch->rescue, stretch->part, stretch->below,
                stretch->offset / cluster_size, &found);
  stretch->found = &found;
  memset (stretch->buf, 0, stretch->length);
  if (!found.from)
    return false;
  place = &found.place;
  there = (size_t) MIN (stretch->length,
                        place->nr_there > within ? place->nr_there - within : 0);
  if (there > 0)
    tolerant_read (found.from->file, stretch->buf, there,
                   place->offset + within, note_unreadable, stretch);
  return true;
}

/* ---- Copying ----------------------------------------------------------- */

/* The next data of the cluster that byte OFFSET of the part is in, at or behind it.
 * Returns false when there is none.
 */
static bool
next_in_cluster (const struct rescue *rescue, const struct part *part,
                 uint64_t *offset)
{
  const uint64_t within = *offset % part->cluster_size;
  struct found found;
  uint64_t start, stop;

  find_cluster (rescue, part, part->levels->len, *offset / part->cluster_size,
                &found);
  if (!found.from)
    return false;
  start = found.place.offset + within;
  if (!delta_next_data_at_open (found.from->file->delta,
                                found.place.offset + found.place.nr_there,
                                &start, &stop))
    return false;
  *offset += start - (found.place.offset + within);
  return true;
}

static uint64_t
next_data (void *opaque, uint64_t offset)
{
  const struct rescue *rescue = opaque;

  while (offset < rescue->size) {
    const struct part *part = find_part (rescue, offset);
    uint64_t in_part = offset - part->start;

    if (next_in_cluster (rescue, part, &in_part))
      return MIN (part->start + in_part, rescue->size);
    in_part = (in_part / part->cluster_size + 1) * part->cluster_size;
    offset = part->start + MIN (in_part, part->length);
  }
  return rescue->size;
}

static int
rescue_piece (void *opaque, unsigned thread, uint64_t offset, size_t length,
              GError **error)
{
  struct rescue *rescue = opaque;
  uint8_t *buf = rescue->bufs[thread];
  uint64_t written;
  int r;

  for (size_t done = 0, n; done < length; done += n) {
    const struct part *part = find_part (rescue, offset + done);
    const uint64_t in_part = offset + done - part->start;
    struct stretch stretch = {
      .rescue = rescue,
      .part = part,
      .below = part->levels->len,
      .offset = in_part,
      .buf = buf + done,
    };

    n = (size_t) MIN (length - done,
                      part->cluster_size - in_part % part->cluster_size);
    n = (size_t) MIN (n, part->length - in_part);
    stretch.length = n;
    read_stretch (&stretch);
  }
  r = sink_write_data (rescue->sink, thread, buf, length, offset, &written);
  pthread_mutex_lock (&rescue->lock);
  rescue->written += written;
  pthread_mutex_unlock (&rescue->lock);
  if (r < 0)
    error_set_system (error, r, "the copy cannot be written at byte %"
                      G_GUINT64_FORMAT, offset);
  return r < 0 ? -1 : 0;
}

static int
copy_content (struct rescue *rescue, struct pieces *pieces, GError **error)
{
  int r;

  for (unsigned i = 0; i < PIECES_NR_THREADS; i++)
    rescue->bufs[i] = g_malloc (PIECES_BYTES);
  r = pieces_run (pieces, error);
  for (unsigned i = 0; i < PIECES_NR_THREADS; i++)
    g_free (rescue->bufs[i]);
  return r;
}

static int
copy_disk (struct rescue *rescue, const char *target, struct pieces *pieces,
           struct ploop_rescue_result *result, GError **error)
{
  const struct ploop_rescue_options *options = rescue->options;
  const struct sink_options sink_options = {
    .raw = options->raw,
    .version = options->target_version,
    .cluster_size = options->target_cluster_size,
    .overwrite = options->overwrite,
    .is_zero = options->target_is_zero,
    .nr_threads = PIECES_NR_THREADS,
  };
  int r;

  rescue->sink = sink_open (target, rescue->size, &sink_options, &rescue->log,
                            &result->interrupted, error);
  if (!rescue->sink)
    return result->interrupted ? 0 : -1;
  list_damage (rescue);
  pieces->size = result->size = rescue->size;
  pieces->in_order = sink_is_stream (rescue->sink);
  r = copy_content (rescue, pieces, error);
  result->bytes_read = pieces->worked;
  result->bytes_written = rescue->written;
  result->interrupted = r == 0 && pieces->cancelled;
  if (r == 0 && !result->interrupted)
    return sink_finish (rescue->sink, error);
  sink_abandon (rescue->sink);
  return r;
}

/* ---- All of it --------------------------------------------------------- */

static bool
check_options (const struct ploop_rescue_options *options, GError **error)
{
  if (options->version > 2)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "version is %u, must be 1 or 2", options->version);
  else if (options->cluster_size % FORMAT_SECTOR_SIZE != 0
           || options->cluster_size / FORMAT_SECTOR_SIZE
                > FORMAT_MAX_CLUSTER_SECTORS)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "cluster size is %" G_GUINT32_FORMAT " bytes, must be a "
                 "multiple of 512, and at most %" G_GUINT64_FORMAT,
                 options->cluster_size,
                 (uint64_t) FORMAT_MAX_CLUSTER_SECTORS * FORMAT_SECTOR_SIZE);
  else if (options->size % FORMAT_SECTOR_SIZE != 0
           || options->size / FORMAT_SECTOR_SIZE > FORMAT_MAX_SIZE_SECTORS)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "size is %" G_GUINT64_FORMAT " bytes, must be a multiple of "
                 "512, and below 2^63", options->size);
  else
    return true;
  return false;
}

static int
rescue_disk (struct rescue *rescue, const char *target, struct pieces *pieces,
             struct ploop_rescue_result *result, GError **error)
{
  const struct ploop_rescue_options *options = rescue->options;

  if (!check_options (options, error) || !open_disk (rescue, error)
      || copy_disk (rescue, target, pieces, result, error) == -1)
    return -1;
  if (!result->interrupted)
    ranges_tell (&rescue->ranges, options->range, options->range_opaque,
                 result);
  return 0;
}

int
ploop_rescue (const char *path, const char *target,
              const struct ploop_rescue_options *options,
              ploop_progress_fn progress, void *opaque,
              struct ploop_rescue_result *result, GError **error)
{
  static const struct ploop_rescue_options none;
  const struct ploop_rescue_options *o = options ? options : &none;
  struct rescue rescue = {
    .path = path,
    .options = o,
    .log = { o->log, o->log_opaque },
    .parts = g_ptr_array_new_with_free_func (free_part),
    .descriptor_lock_fd = -1,
  };
  struct pieces pieces = {
    .next_data = next_data,
    .work = rescue_piece,
    .opaque = &rescue,
    .progress = progress,
    .progress_opaque = opaque,
  };
  int r;

  *result = (struct ploop_rescue_result) { .interrupted = false };
  pthread_mutex_init (&rescue.lock, NULL);
  ranges_init (&rescue.ranges);
  r = rescue_disk (&rescue, target, &pieces, result, error);
  ranges_clear (&rescue.ranges);
  pthread_mutex_destroy (&rescue.lock);
  if (rescue.descriptor_lock_fd >= 0)
    close (rescue.descriptor_lock_fd);
  g_ptr_array_unref (rescue.parts);
  return r;
}
