/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Changed-block bitmaps of a disk, by its name and theirs: ploop_list_bitmaps and its
 * siblings in ploop-core.h.  What happens on the disk is bitmap-update.c's.
 */

#include <config.h>

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bitmap.h"
#include "bitmap-update.h"
#include "location.h"
#include "lock.h"

#define DEFAULT_GRANULARITY 65536u
/* What libploop and qemu can count in 32 bits of bytes. */
#define MIN_GRANULARITY FORMAT_SECTOR_SIZE
#define MAX_GRANULARITY (UINT64_C (2) << 30)

/* ---- The delta that carries them ---------------------------------------- */

struct carrier {
  struct delta *delta;
  int lock_fd;                  /* of a descriptor by another name; -1: none */
};

static void
close_carrier (struct carrier *carrier)
{
  delta_close (carrier->delta);
  if (carrier->lock_fd >= 0)
    close (carrier->lock_fd);
}

static bool
has_one_part (const struct location *location, const char *path,
              GError **error)
{
  if (location->nr_parts == 1)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: has %u <Storage>: each part of a split disk has bitmaps of "
               "its own: give the part's file", path, location->nr_parts);
  return false;
}

/* A descriptor by another name than the one that the delta's own lock is about. */
static bool
lock_other_descriptor (struct carrier *carrier, const char *descriptor,
                       enum delta_lock lock, GError **error)
{
  g_autofree char *beside = lock_descriptor_name (carrier->delta->path);

  return lock == DELTA_LOCK_NONE || strcmp (beside, descriptor) == 0
         || lock_descriptor_file (descriptor, descriptor,
                                  lock == DELTA_LOCK_WRITER
                                    ? DESCRIPTOR_LOCK_WRITER
                                    : DESCRIPTOR_LOCK_READER,
                                  &carrier->lock_fd, error);
}

static bool
open_located (struct carrier *carrier, const struct location *location,
              enum delta_lock lock, bool descriptor_is_locked,
              const struct log *log, GError **error)
{
  const struct chain_source *top =
    &g_array_index (location->deltas, struct chain_source,
                    location->deltas->len - 1);
  const struct delta_source source = {
    .path = top->path,
    .path_fd = top->path_fd,
    .descriptor_is_locked = descriptor_is_locked,
    .log = log,
  };

  carrier->delta = delta_open_source (&source, lock, error);
  return carrier->delta
         && (!location->descriptor || descriptor_is_locked
             || lock_other_descriptor (carrier, location->descriptor->path,
                                       lock, error))
         && location_is_current (location, error);
}

/* One delta of a disk is as good as its top here, if it is named. */
static bool
locate (struct location *location, const char *path, const struct log *log,
        GError **error)
{
  const struct ploop_open_options options = { .read_only = true };
  g_autofree char *xml = location_descriptor (path);

  if (xml)
    return location_find (location, path, 0, &options, log, error);
  *location = (struct location) {
    .deltas = chain_sources_new (),
    .nr_parts = 1,
  };
  chain_sources_add (location->deltas, path, -1, false);
  return true;
}

static bool
open_carrier (struct carrier *carrier, const char *path, enum delta_lock lock,
              bool descriptor_is_locked, const struct log *log,
              GError **error)
{
  struct location location;
  bool good;

  *carrier = (struct carrier) { .lock_fd = -1 };
  if (!locate (&location, path, log, error))
    return false;
  good = has_one_part (&location, path, error)
         && open_located (carrier, &location, lock, descriptor_is_locked, log,
                          error);
  location_clear (&location);
  if (!good)
    close_carrier (carrier);
  return good;
}

/* ---- Describing -------------------------------------------------------- */

/* Bits FROM up to TO, as bytes of the disk. */
static void
bits_to_bytes (const struct extension_bitmap *bitmap, uint64_t from,
               uint64_t to, uint64_t *offset, uint64_t *length)
{
  *offset = from * bitmap->granularity * FORMAT_SECTOR_SIZE;
  *length = MIN (to * bitmap->granularity, bitmap->size_sectors)
              * FORMAT_SECTOR_SIZE - *offset;
}

static bool
each_range (const struct delta *delta, const struct extension_bitmap *bitmap,
            ploop_dirty_fn report, void *opaque, GError **error)
{
  struct bitmap_reader reader;
  uint64_t from, to, offset, length;
  int r;

  bitmap_read_begin (&reader, delta, bitmap);
  while ((r = bitmap_read_run (&reader, &from, &to, error)) > 0) {
    bits_to_bytes (bitmap, from, to, &offset, &length);
    if (!report (opaque, offset, length))
      break;
  }
  bitmap_read_end (&reader);
  return r >= 0;
}

static bool
count_range (void *opaque, uint64_t offset, uint64_t length)
{
  uint64_t *nr_dirty = opaque;

  (void) offset;
  *nr_dirty += length;
  return true;
}

static bool
describe (const struct delta *delta, const struct extension_bitmap *bitmap,
          struct ploop_bitmap *described, GError **error)
{
  *described = (struct ploop_bitmap) {
    .is_stale = bitmap_get_state (&delta->header) == BITMAP_STALE,
    .size = bitmap->size_sectors * FORMAT_SECTOR_SIZE,
    .granularity = (uint64_t) bitmap->granularity * FORMAT_SECTOR_SIZE,
  };
  bitmap_format_uuid (bitmap->uuid, described->uuid);
  return each_range (delta, bitmap, count_range, &described->nr_dirty, error);
}

void
ploop_bitmap_free (struct ploop_bitmap *bitmap)
{
  g_free (bitmap);
}

static void
free_bitmap (gpointer bitmap)
{
  ploop_bitmap_free (bitmap);
}

static bool
list_extension (const struct delta *delta, GPtrArray *list, GError **error)
{
  struct extension extension;
  bool good = true;

  if (bitmap_get_state (&delta->header) == BITMAP_NONE)
    return true;
  if (!bitmap_load (delta, &extension, error))
    return false;
  for (guint i = 0; good && i < extension.bitmaps->len; i++) {
    struct ploop_bitmap *bitmap = g_new (struct ploop_bitmap, 1);

    g_ptr_array_add (list, bitmap);
    good = describe (delta, &g_array_index (extension.bitmaps,
                                            struct extension_bitmap, i),
                     bitmap, error);
  }
  extension_clear (&extension);
  return good;
}

GPtrArray *
ploop_list_bitmaps (const char *path, GError **error)
{
  static const struct log log;
  g_autoptr (GPtrArray) list = g_ptr_array_new_with_free_func (free_bitmap);
  struct carrier carrier;
  bool good;

  if (!open_carrier (&carrier, path, DELTA_LOCK_READER, false, &log, error))
    return NULL;
  good = list_extension (carrier.delta, list, error);
  close_carrier (&carrier);
  return good ? g_steal_pointer (&list) : NULL;
}

/* ---- Bitmaps by name ---------------------------------------------------- */

static bool
parse_uuid (const char *text, uint8_t uuid[BITMAP_UUID_SIZE], GError **error)
{
  if (bitmap_parse_uuid (text, uuid))
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "'%s' is not a UUID: use the form "
               "01234567-89ab-cdef-0123-456789abcdef", text);
  return false;
}

/* What is stale says nothing that could be used. */
static bool
check_fresh (const struct delta *delta, GError **error)
{
  switch (bitmap_get_state (&delta->header)) {
  case BITMAP_VALID:
    return true;
  case BITMAP_NONE:
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: has no changed-block bitmaps", delta->path);
    break;
  case BITMAP_STALE:
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: in use is 0x%08" G_GINT32_MODIFIER "x: its bitmaps are "
                 "stale, and do not say what has changed: copy all of the disk",
                 delta->path, delta->header.in_use);
  }
  return false;
}

/* Load the extension of DELTA and find a bitmap in it; EXTENSION is to be cleared when
 * this returns 0 or above.
 */
static int
load_bitmap (const struct delta *delta, const char *text,
             struct extension *extension, GError **error)
{
  uint8_t uuid[BITMAP_UUID_SIZE];
  int i;

  if (!parse_uuid (text, uuid, error) || !check_fresh (delta, error)
      || !bitmap_load (delta, extension, error))
    return -1;
  i = bitmap_find (delta, extension, uuid, error);
  if (i < 0)
    extension_clear (extension);
  return i;
}

int
ploop_dump_bitmap (const char *path, const char *uuid, ploop_dirty_fn report,
                   void *opaque, GError **error)
{
  static const struct log log;
  struct carrier carrier;
  struct extension extension;
  int i;

  if (!open_carrier (&carrier, path, DELTA_LOCK_READER, false, &log, error))
    return -1;
  i = load_bitmap (carrier.delta, uuid, &extension, error);
  if (i >= 0) {
    if (!each_range (carrier.delta,
                     &g_array_index (extension.bitmaps,
                                     struct extension_bitmap, i),
                     report, opaque, error))
      i = -1;
    extension_clear (&extension);
  }
  close_carrier (&carrier);
  return i < 0 ? -1 : 0;
}

/* ---- Changing ---------------------------------------------------------- */

struct change {
  const char *path;
  struct ploop_bitmap_options options;
  struct log log;
  struct carrier carrier;
  struct bitmap_update update;
  struct ploop_bitmap_result result;
};

static bool
open_change (struct change *change, const char *path,
             const struct ploop_bitmap_options *options, GError **error)
{
  *change = (struct change) { .path = path };
  if (options)
    change->options = *options;
  change->log = (struct log) { change->options.log,
                               change->options.log_opaque };
  if (!open_carrier (&change->carrier, path,
                     change->options.dry_run ? DELTA_LOCK_READER
                                             : DELTA_LOCK_WRITER,
                     false, &change->log, error))
    return false;
  change->result.file_size_before = change->result.file_size_after =
    change->carrier.delta->file_size;
  return true;
}

static bool
begin_change (struct change *change, GError **error)
{
  return bitmap_update_begin (&change->update, change->carrier.delta,
                              change->options.dry_run, &change->log, error);
}

static bool
commit_change (struct change *change, GError **error)
{
  if (!bitmap_update_commit (&change->update, error))
    return false;
  change->result.file_size_after = change->update.file_size_after;
  return true;
}

/* Close it, and tell the result if GOOD. */
static int
close_change (struct change *change, bool good,
              struct ploop_bitmap_result *result)
{
  close_carrier (&change->carrier);
  if (good && result)
    *result = change->result;
  return good ? 0 : -1;
}

/* ---- Adding ------------------------------------------------------------ */

static bool
check_granularity (uint64_t granularity, GError **error)
{
  if (granularity >= MIN_GRANULARITY && granularity <= MAX_GRANULARITY
      && (granularity & (granularity - 1)) == 0)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "granularity is %" G_GUINT64_FORMAT " bytes: must be a power of "
               "two from %u to %" G_GUINT64_FORMAT, granularity,
               MIN_GRANULARITY, MAX_GRANULARITY);
  return false;
}

/* UUID must not be that of a bitmap that is there. */
static bool
check_new (const struct change *change, const uint8_t uuid[BITMAP_UUID_SIZE],
           const char *text, GError **error)
{
  const GArray *bitmaps = change->update.new.bitmaps;

  for (guint i = 0; i < bitmaps->len; i++)
    if (memcmp (g_array_index (bitmaps, struct extension_bitmap, i).uuid,
                uuid, BITMAP_UUID_SIZE) == 0) {
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                   "%s: has a bitmap with the UUID %s already",
                   change->carrier.delta->path, text);
      return false;
    }
  return true;
}

/* Returns false and sets ERROR when its table would be larger than any image. */
static bool
add_bitmap (struct change *change, const uint8_t uuid[BITMAP_UUID_SIZE],
            uint64_t granularity, bool all_set, GError **error)
{
  struct bitmap_update *update = &change->update;
  const struct format_layout *layout = &change->carrier.delta->layout;
  struct extension_bitmap bitmap = {
    .size_sectors = layout->size / FORMAT_SECTOR_SIZE,
    .granularity = (uint32_t) (granularity / FORMAT_SECTOR_SIZE),
  };
  const uint64_t nr_bits = extension_nr_bits (&bitmap);

  memcpy (bitmap.uuid, uuid, sizeof bitmap.uuid);
  bitmap.nr_l1_needed = extension_nr_l1 (layout, nr_bits);
  if (!bitmap_update_check_length (update, 8 * bitmap.nr_l1_needed, error))
    return false;
  bitmap.nr_l1 = (uint32_t) bitmap.nr_l1_needed;
  bitmap.l1 = g_new (uint64_t, bitmap.nr_l1);
  for (uint32_t i = 0; i < bitmap.nr_l1; i++)
    bitmap.l1[i] = all_set;
  extension_add_bitmap (&update->new, &bitmap);
  return describe (change->carrier.delta, &bitmap, &change->result.bitmap,
                   error);
}

int
ploop_add_bitmap (const char *path, const char *uuid, uint64_t granularity,
                  bool all_set, const struct ploop_bitmap_options *options,
                  struct ploop_bitmap_result *result, GError **error)
{
  g_autofree char *text = uuid ? g_strdup (uuid) : g_uuid_string_random ();
  uint8_t bytes[BITMAP_UUID_SIZE];
  struct change change;
  bool good;

  if (granularity == 0)
    granularity = DEFAULT_GRANULARITY;
  if (!parse_uuid (text, bytes, error)
      || !check_granularity (granularity, error)
      || !open_change (&change, path, options, error))
    return -1;
  good = begin_change (&change, error);
  if (good) {
    good = check_new (&change, bytes, text, error)
           && add_bitmap (&change, bytes, granularity, all_set, error)
           && commit_change (&change, error);
    bitmap_update_end (&change.update);
  }
  return close_change (&change, good, result);
}

/* ---- Removing ---------------------------------------------------------- */

static bool
remove_one (struct change *change, const uint8_t uuid[BITMAP_UUID_SIZE],
            GError **error)
{
  struct extension *new = &change->update.new;
  const int i = bitmap_find (change->carrier.delta, new, uuid, error);

  if (i < 0)
    return false;
  extension_remove_bitmap (new, (guint) i);
  change->result.nr_removed = 1;
  return commit_change (change, error);
}

static bool
remove_usable (struct change *change, GError **error)
{
  struct extension *new = &change->update.new;

  change->result.nr_removed = new->bitmaps->len;
  while (new->bitmaps->len > 0)
    extension_remove_bitmap (new, new->bitmaps->len - 1);
  return commit_change (change, error);
}

static bool
drop_unusable (struct change *change, GError **error)
{
  bool good;

  change->result.was_unusable = true;
  if (!bitmap_update_begin_drop (&change->update, change->carrier.delta,
                                 change->options.dry_run, &change->log, error))
    return false;
  change->result.nr_removed = change->update.nr_dropped;
  good = commit_change (change, error);
  bitmap_update_end (&change->update);
  return good;
}

static bool
remove_all (struct change *change, GError **error)
{
  g_autoptr (GError) why = NULL;
  bool good;

  switch (bitmap_get_state (&change->carrier.delta->header)) {
  case BITMAP_NONE:
    return true;
  case BITMAP_STALE:
    return drop_unusable (change, error);
  case BITMAP_VALID:
    break;
  }
  if (begin_change (change, &why)) {
    good = remove_usable (change, error);
    bitmap_update_end (&change->update);
    return good;
  }
  if (g_error_matches (why, PLOOP_ERROR, PLOOP_ERROR_CORRUPT))
    return drop_unusable (change, error);
  g_propagate_error (error, g_steal_pointer (&why));
  return false;
}

int
ploop_remove_bitmap (const char *path, const char *uuid,
                     const struct ploop_bitmap_options *options,
                     struct ploop_bitmap_result *result, GError **error)
{
  uint8_t bytes[BITMAP_UUID_SIZE];
  struct change change;
  bool good;

  if ((uuid && !parse_uuid (uuid, bytes, error))
      || !open_change (&change, path, options, error))
    return -1;
  if (!uuid)
    good = remove_all (&change, error);
  else {
    good = check_fresh (change.carrier.delta, error)
           && begin_change (&change, error);
    if (good) {
      good = remove_one (&change, bytes, error);
      bitmap_update_end (&change.update);
    }
  }
  return close_change (&change, good, result);
}

/* ---- Merging ----------------------------------------------------------- */

static bool
is_same_directory (const struct delta *delta, const struct delta *other)
{
  g_autofree char *a = g_path_get_dirname (delta->path);
  g_autofree char *b = g_path_get_dirname (other->path);

  return strcmp (a, b) == 0;
}

static bool
is_same_file (const struct delta *delta, const struct delta *other)
{
  struct stat a, b;

  return fstat (delta->fd, &a) == 0 && fstat (other->fd, &b) == 0
         && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Open the source, unless it is the very image that is changed, whose locks would be in
 * its way: then its delta is NULL.  So would be the lock of the descriptor that both
 * lie beside.
 */
static bool
open_source (const struct change *change, const char *path,
             struct carrier *source, GError **error)
{
  const struct delta *delta = change->carrier.delta;
  bool same, beside;

  *source = (struct carrier) { .lock_fd = -1 };
  if (!path)
    return true;
  if (!open_carrier (source, path, DELTA_LOCK_NONE, true, &change->log,
                     error))
    return false;
  same = is_same_file (delta, source->delta);
  beside = is_same_directory (delta, source->delta);
  close_carrier (source);
  *source = (struct carrier) { .lock_fd = -1 };
  return same
         || open_carrier (source, path, DELTA_LOCK_READER, beside,
                          &change->log, error);
}

/* Do bitmaps of this and of the source fit? */
static bool
check_pair (const struct delta *delta, const struct extension_bitmap *into,
            const struct delta *source_delta,
            const struct extension_bitmap *source, GError **error)
{
  if (delta == source_delta
      && memcmp (into->uuid, source->uuid, sizeof into->uuid) == 0)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: a bitmap is not merged into itself: give two",
                 delta->path);
  else if (into->size_sectors != source->size_sectors)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: its bitmap is of a disk of %" G_GUINT64_FORMAT " bytes, "
                 "that of %s of one of %" G_GUINT64_FORMAT ": they are not of "
                 "one disk", delta->path,
                 into->size_sectors * FORMAT_SECTOR_SIZE, source_delta->path,
                 source->size_sectors * FORMAT_SECTOR_SIZE);
  else
    return true;
  return false;
}

/* How many bytes INTO marks when SOURCE is merged into it: what runs of either cover.
 */
static bool
count_both (const struct delta *delta, const struct extension_bitmap *into,
            const struct delta *source_delta,
            const struct extension_bitmap *source, uint64_t *nr_dirty,
            GError **error)
{
  struct bitmap_reader readers[2];
  uint64_t from[2], to[2], covered = 0, offset, length;
  int r[2];

  bitmap_read_begin (&readers[0], delta, into);
  bitmap_read_begin (&readers[1], source_delta, source);
  r[0] = bitmap_read_run_as (&readers[0], into, &from[0], &to[0], error);
  r[1] = r[0] < 0 ? -1 : bitmap_read_run_as (&readers[1], into, &from[1],
                                             &to[1], error);
  *nr_dirty = 0;
  while (r[0] >= 0 && r[1] >= 0 && r[0] + r[1] > 0) {
    const unsigned k = r[0] == 0 || (r[1] > 0 && from[1] < from[0]);

    if (to[k] > covered) {
      bits_to_bytes (into, MAX (from[k], covered), to[k], &offset, &length);
      *nr_dirty += length;
      covered = to[k];
    }
    r[k] = bitmap_read_run_as (&readers[k], into, &from[k], &to[k], error);
  }
  bitmap_read_end (&readers[0]);
  bitmap_read_end (&readers[1]);
  return r[0] >= 0 && r[1] >= 0;
}

/* Told before it is done: afterwards nothing may fail. */
static bool
merge_bitmap (struct change *change, guint i,
              const struct delta *source_delta,
              const struct extension_bitmap *source, GError **error)
{
  const struct delta *delta = change->carrier.delta;
  struct bitmap_update *update = &change->update;
  const struct extension_bitmap *into =
    &g_array_index (update->new.bitmaps, struct extension_bitmap, i);

  return check_pair (delta, into, source_delta, source, error)
         && describe (delta, into, &change->result.bitmap, error)
         && count_both (delta, into, source_delta, source,
                        &change->result.bitmap.nr_dirty, error)
         && bitmap_update_merge (update, i, source_delta, source, error)
         && commit_change (change, error);
}

static bool
merge_from (struct change *change, const char *into,
            const struct delta *source_delta, const char *source,
            GError **error)
{
  uint8_t uuid[BITMAP_UUID_SIZE];
  struct extension extension;
  int i, j;
  bool good = false;

  if (!parse_uuid (into, uuid, error)
      || !check_fresh (change->carrier.delta, error))
    return false;
  j = load_bitmap (source_delta, source, &extension, error);
  if (j < 0)
    return false;
  if (begin_change (change, error)) {
    i = bitmap_find (change->carrier.delta, &change->update.new, uuid, error);
    good = i >= 0
           && merge_bitmap (change, (guint) i, source_delta,
                            &g_array_index (extension.bitmaps,
                                            struct extension_bitmap, j),
                            error);
    bitmap_update_end (&change->update);
  }
  extension_clear (&extension);
  return good;
}

int
ploop_merge_bitmap (const char *path, const char *into,
                    const char *source_path, const char *source,
                    const struct ploop_bitmap_options *options,
                    struct ploop_bitmap_result *result, GError **error)
{
  struct change change;
  struct carrier other;
  bool good;

  if (!open_change (&change, path, options, error))
    return -1;
  good = open_source (&change, source_path, &other, error);
  if (good) {
    good = merge_from (&change, into,
                       other.delta ? other.delta : change.carrier.delta,
                       source, error);
    close_carrier (&other);
  }
  return close_change (&change, good, result);
}
