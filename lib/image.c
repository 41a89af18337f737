/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Opening and closing an image, and the public face of requests: see
 * ploop-core.h.
 *
 * Opening reads the whole BAT into the map and refuses an image whose BAT
 * cannot be right, before a byte is served.  The one thing that is taken as it
 * is: in an image that was never closed, entries that point past the end of
 * the file.  A server that was killed, or a power cut, leaves such when the
 * entry reached the disk and the file's new size did not; nothing that was
 * flushed is there.
 */

#include <config.h>

#include <errno.h>

#include "bat.h"
#include "request.h"

struct ploop_image {
  struct disk disk;
  struct log log;
};

/* ---- Opening ----------------------------------------------------------- */

/* Changed-block bitmaps that are valid now would not be after a write. */
static bool
has_valid_extension (const struct delta *delta)
{
  return delta->header.extension_sectors != 0
         && delta->header.in_use != FORMAT_IN_USE;
}

/* Open for writing where that is asked for and can be done, else for reading.
 */
static struct delta *
open_delta (const char *path, bool read_only, const struct log *log,
            GError **error)
{
  struct delta *delta =
    delta_open (path, read_only ? DELTA_LOCK_READER : DELTA_LOCK_WRITER,
                error);

  if (!delta || read_only)
    return delta;
  if (delta->read_only) {
    log_warning (log, "%s: may not be written (permissions or file system): "
                 "opened read-only", delta->path);
    return delta;
  }
  if (has_valid_extension (delta)) {
    log_warning (log, "%s: carries changed-block bitmaps, which a write would "
                 "make untrue: opened read-only", delta->path);
    delta_close (delta);
    return delta_open (path, DELTA_LOCK_READER, error);
  }
  return delta;
}

static bool
refuse_conversion (const struct delta *delta, GError **error)
{
  if (!(delta->header.flags & FORMAT_FLAG_CONVERSION)
      || !format_is_dirty (delta->header.in_use))
    return false;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
               "%s: flags are %" G_GUINT32_FORMAT " and in use is 0x%08"
               G_GINT32_MODIFIER "x: a version conversion was interrupted; "
               "finish it with the ploop tool, which keeps the old index in "
               "%s.idx", delta->path, delta->header.flags,
               delta->header.in_use, delta->path);
  return true;
}

/* What loading the BAT collects. */
struct loading {
  struct ploop_image *image;
  GArray *lost;                 /* of uint32_t: guest clusters */
  GError **error;
  bool failed;
};

static bool
load_entry (void *opaque, uint32_t index, uint32_t entry)
{
  struct loading *loading = opaque;

  map_fill (&loading->image->disk.map, index, map_word (0, entry, 0));
  return true;
}

static bool
load_fault (void *opaque, const struct bat_fault *fault)
{
  struct loading *loading = opaque;
  const struct delta *delta = loading->image->disk.delta;
  g_autofree char *text = NULL;

  if (bat_fault_is_unfinished (delta, fault)) {
    g_array_append_val (loading->lost, fault->index);
    return true;
  }
  text = bat_fault_describe (delta, fault);
  g_set_error (loading->error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
               "%s: %s: the image is damaged; run 'ploop-img check %s' for all "
               "that is wrong, and work on a copy", delta->path, text,
               delta->path);
  loading->failed = true;
  return false;
}

/* Read the BAT into the map. */
static int
load_map (struct ploop_image *image, struct bat_summary *summary,
          GArray *lost, GError **error)
{
  struct loading loading = { .image = image, .lost = lost, .error = error };
  const struct bat_visitor visitor = {
    .entry = load_entry,
    .fault = load_fault,
    .opaque = &loading,
  };
  const struct delta *delta = image->disk.delta;
  int r;

  r = map_init (&image->disk.map, delta->layout.nr_entries);
  if (r < 0) {
    error_set_system (error, r, "%s: no memory for a map of %" G_GUINT32_FORMAT
                      " clusters", delta->path, delta->layout.nr_entries);
    return -1;
  }
  if (bat_scan (delta, &visitor, summary, error) < 0 || loading.failed)
    return -1;
  if (format_is_dirty (delta->header.in_use))
    log_warning (&image->log, "%s: was not closed (in use is 0x%08"
                 G_GINT32_MODIFIER "x), or a Virtuozzo kernel has it mounted: "
                 "do not write to it then; its BAT was checked, and %u entries "
                 "of clusters that are not in the file count as unallocated",
                 delta->path, delta->header.in_use, lost->len);
  return 0;
}

/* What only a writer needs. */
static int
prepare_writing (struct ploop_image *image,
                 const struct bat_summary *summary, GArray *lost,
                 GError **error)
{
  struct disk *disk = &image->disk;
  const uint64_t nr_unmapped =
    disk->map.nr_clusters - (summary->nr_allocated - lost->len);
  int r;

  r = alloc_init (&disk->alloc, disk->delta, &image->log, summary->data_end,
                  nr_unmapped);
  if (r == 0)
    r = commit_init (&disk->commit, disk->delta, &disk->map, &image->log,
                     g_array_ref (lost));
  if (r < 0) {
    error_set_system (error, r, "%s: no memory to write", disk->delta->path);
    return -1;
  }
  return 0;
}

static int
load_image (struct ploop_image *image, GError **error)
{
  g_autoptr (GArray) lost = g_array_new (FALSE, FALSE, sizeof (uint32_t));
  struct bat_summary summary;

  if (refuse_conversion (image->disk.delta, error)
      || load_map (image, &summary, lost, error) < 0)
    return -1;
  log_debug (&image->log, "%s: version %u, %" G_GUINT64_FORMAT " bytes, "
             "clusters of %" G_GUINT32_FORMAT " bytes, %" G_GUINT32_FORMAT
             " of %" G_GUINT32_FORMAT " allocated, opened for %s",
             image->disk.delta->path, ploop_version (image),
             ploop_size (image), ploop_cluster_size (image),
             summary.nr_allocated, image->disk.delta->layout.nr_entries,
             ploop_is_read_only (image) ? "reading" : "writing");
  if (ploop_is_read_only (image))
    return 0;
  return prepare_writing (image, &summary, lost, error);
}

static void
free_image (struct ploop_image *image)
{
  commit_destroy (&image->disk.commit);
  alloc_destroy (&image->disk.alloc);
  map_destroy (&image->disk.map);
  delta_close (image->disk.delta);
  g_free (image);
}

ploop_image *
ploop_open (const char *path, const struct ploop_open_options *options,
            GError **error)
{
  struct ploop_image *image = g_new0 (struct ploop_image, 1);

  if (options)
    image->log = (struct log) { options->log, options->log_opaque };
  image->disk.delta = open_delta (path, options && options->read_only,
                                  &image->log, error);
  if (!image->disk.delta || load_image (image, error) < 0) {
    free_image (image);
    return NULL;
  }
  return image;
}

/* ---- Closing ----------------------------------------------------------- */

/* Leave the file as one that was closed.  Returns 0 or a negative errno. */
static int
finish (struct disk *disk)
{
  /* Whoever left the image open left preallocated space behind, too. */
  const bool debris = commit_is_marked (&disk->commit)
                      && format_is_dirty (disk->delta->header.in_use);
  int r;

  r = commit_flush (&disk->commit);
  if (r < 0)
    return r;
  /* Whether the cut or the cleared mark reaches the disk first is all the
   * same: a file may be longer than its clusters.
   */
  r = alloc_cut_tail (&disk->alloc, debris);
  if (r < 0)
    return r;
  return commit_unmark (&disk->commit);
}

int
ploop_close (ploop_image *image, GError **error)
{
  int r = 0;

  if (!image)
    return 0;
  if (!ploop_is_read_only (image))
    r = finish (&image->disk);
  if (r < 0)
    error_set_system (error, r, "%s: could not be closed and stays marked as "
                      "in use; what was written since the last flush may be "
                      "lost", image->disk.delta->path);
  free_image (image);
  return r < 0 ? -1 : 0;
}

/* ---- The guest's disk -------------------------------------------------- */

uint64_t
ploop_size (const ploop_image *image)
{
  return image->disk.delta->layout.size;
}

uint32_t
ploop_cluster_size (const ploop_image *image)
{
  return image->disk.delta->layout.cluster_size;
}

unsigned
ploop_version (const ploop_image *image)
{
  return image->disk.delta->header.version;
}

bool
ploop_is_read_only (const ploop_image *image)
{
  return image->disk.delta->read_only;
}

bool
ploop_is_rotational (const ploop_image *image)
{
  return delta_is_rotational (image->disk.delta);
}

static bool
is_on_disk (const ploop_image *image, uint64_t length, uint64_t offset)
{
  const uint64_t size = ploop_size (image);

  return offset <= size && length <= size - offset;
}

/* 0, or why a request that changes the disk is refused. */
static int
check_change (const ploop_image *image, uint64_t length, uint64_t offset,
              unsigned flags)
{
  if (!is_on_disk (image, length, offset) || (flags & ~PLOOP_FUA) != 0)
    return -EINVAL;
  return ploop_is_read_only (image) ? -EROFS : 0;
}

int
ploop_pread (ploop_image *image, void *buf, size_t length, uint64_t offset)
{
  if (!is_on_disk (image, length, offset))
    return -EINVAL;
  return request_read (&image->disk, buf, length, offset);
}

int
ploop_pwrite (ploop_image *image, const void *buf, size_t length,
              uint64_t offset, unsigned flags)
{
  int r = check_change (image, length, offset, flags);

  if (r < 0)
    return r;
  return request_write (&image->disk, buf, length, offset,
                        (flags & PLOOP_FUA) != 0);
}

int
ploop_zero (ploop_image *image, uint64_t length, uint64_t offset,
            unsigned flags)
{
  int r = check_change (image, length, offset, flags);

  if (r < 0)
    return r;
  return request_zero (&image->disk, length, offset,
                       (flags & PLOOP_FUA) != 0);
}

int
ploop_flush (ploop_image *image)
{
  return ploop_is_read_only (image) ? 0 : request_flush (&image->disk);
}
