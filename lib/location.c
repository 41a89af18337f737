/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* From a name to the files of a disk: see location.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blank.h"
#include "location.h"
#include "lock.h"

static struct chain_source *
last_delta (const struct location *location)
{
  return &g_array_index (location->deltas, struct chain_source,
                         location->deltas->len - 1);
}

void
location_clear (struct location *location)
{
  g_clear_pointer (&location->deltas, g_array_unref);
  g_clear_pointer (&location->descriptor, descriptor_free);
}

/* Another server may have found the overlay meanwhile, and write to it: then it is
 * that one's.  Whoever opens it between our lock and the unlinking finds that its
 * name is gone.
 */
void
location_undo (const struct location *location)
{
  int fd;

  if (!location->created)
    return;
  fd = open (location->created, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW);
  if (fd == -1)
    return;
  if (lock_image (fd, location->created, true, NULL))
    unlink (location->created);
  close (fd);
}

/* ---- By a descriptor --------------------------------------------------- */


/* Does the file begin as XML does? */
static bool
looks_like_xml (const char *path)
{
  static const char byte_order_mark[] = "\xef\xbb\xbf";
  const int fd = open (path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  char start[256];
  const char *p = start;
  ssize_t n;

  if (fd == -1)
    return false;
  n = pread (fd, start, sizeof start - 1, 0);
  close (fd);
  if (n <= 0)
    return false;
  start[n] = '\0';
  if (g_str_has_prefix (p, byte_order_mark))
    p += strlen (byte_order_mark);
  p += strspn (p, " \t\r\n");
  return p[0] == '<' && (g_ascii_isalpha (p[1]) || (p[1] && strchr ("?!_", p[1])));
}

char *
location_descriptor (const char *path)
{
  g_autofree char *name = NULL;
  struct stat st;

  if (stat (path, &st) == -1)
    return NULL;
  if (S_ISDIR (st.st_mode))
    return g_build_filename (path, DESCRIPTOR_FILE_NAME, NULL);
  if (!S_ISREG (st.st_mode))
    return NULL;
  name = g_path_get_basename (path);
  /* A disk may begin with anything. */
  return g_str_equal (name, DESCRIPTOR_FILE_NAME)
             || (st.st_size <= (off_t) DESCRIPTOR_MAX_SIZE && looks_like_xml (path))
           ? g_strdup (path) : NULL;
}

bool
location_is_image (int directory_fd, const char *name, int flags)
{
  const int fd = openat (directory_fd, name,
                         O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags);
  uint8_t bytes[FORMAT_HEADER_SIZE];
  struct format_header header;
  struct stat st;
  bool is = false;

  if (fd == -1)
    return false;
  if (fstat (fd, &st) == 0 && (S_ISREG (st.st_mode) || S_ISBLK (st.st_mode)))
    is = pread (fd, bytes, sizeof bytes, 0) == (ssize_t) sizeof bytes
         && format_decode_header (bytes, &header);
  close (fd);
  return is;
}

bool
location_is_raw (const struct location *location)
{
  const struct chain_source *top = last_delta (location);
  char known[64];

  if (!top->may_be_raw)
    return false;
  g_snprintf (known, sizeof known, "/proc/self/fd/%d", top->path_fd);
  return !location_is_image (AT_FDCWD, top->path_fd >= 0 ? known : top->path, 0);
}

/* Over a raw base, ploop calls every image Plain. */
bool
location_add_image (GArray *deltas, const struct descriptor *descriptor,
                    const struct descriptor_image *image, bool allow_outside,
                    GError **error)
{
  const bool is_base = deltas->len == 0;
  char *path = NULL;
  const int fd =
    descriptor_open_file (descriptor, image, allow_outside, &path, error);

  if (fd == -1)
    return false;
  chain_sources_add (deltas, path, fd, is_base && image->is_plain);
  g_free (path);
  return true;
}

static bool
add_images (struct location *location,
            const struct ploop_open_options *options, GError **error)
{
  g_autoptr (GPtrArray) images =
    descriptor_chain (location->descriptor, location->part, options->snapshot,
                      error);

  if (!images)
    return false;
  for (guint i = 0; i < images->len; i++)
    if (!location_add_image (location->deltas, location->descriptor,
                             g_ptr_array_index (images, i),
                             options->allow_outside, error))
      return false;
  return true;
}

static bool
find_described (struct location *location, const char *path,
                const struct ploop_open_options *options, GError **error)
{
  const struct descriptor *descriptor;
  const struct descriptor_storage *storage;

  if (options->bases) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: says itself which deltas there are: leave out base=, or "
                 "give the top delta's file", path);
    return false;
  }
  descriptor = location->descriptor = descriptor_load (path, error);
  if (!descriptor)
    return false;
  location->nr_parts = descriptor->storages->len;
  if (location->nr_parts > 1 && options->overlay) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: has %u <Storage>: a split disk cannot have an overlay: "
                 "give one of its parts an overlay of its own", path,
                 location->nr_parts);
    return false;
  }
  g_assert (location->part < location->nr_parts);
  storage = g_ptr_array_index (descriptor->storages, location->part);
  location->start = storage->start_sectors * FORMAT_SECTOR_SIZE;
  location->length = (storage->end_sectors - storage->start_sectors)
                     * FORMAT_SECTOR_SIZE;
  location->cluster_size = storage->cluster_sectors * FORMAT_SECTOR_SIZE;
  if (options->snapshot
      && !descriptor_is_top (descriptor, options->snapshot))
    location->read_only = true;
  return add_images (location, options, error);
}

bool
location_is_current (const struct location *location, GError **error)
{
  const struct descriptor *descriptor = location->descriptor;
  struct stat now;

  if (!descriptor)
    return true;
  if (stat (descriptor->path, &now) == 0
      && now.st_dev == descriptor->read.st_dev
      && now.st_ino == descriptor->read.st_ino
      && now.st_size == descriptor->read.st_size
      && now.st_mtim.tv_sec == descriptor->read.st_mtim.tv_sec
      && now.st_mtim.tv_nsec == descriptor->read.st_mtim.tv_nsec)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
               "%s: was changed while the disk was opened: try again",
               descriptor->path);
  return false;
}

/* ---- A file that a descriptor knows ------------------------------------ */

/* The GUID of the file that ST is of, or NULL.  It may have other names than the one in
 * the descriptor: links of both kinds.
 */
static const char *
find_guid (const struct descriptor *descriptor, const struct stat *st)
{
  for (guint i = 0; i < descriptor->storages->len; i++) {
    const struct descriptor_storage *storage =
      g_ptr_array_index (descriptor->storages, i);

    for (guint j = 0; j < storage->images->len; j++) {
      const struct descriptor_image *image =
        g_ptr_array_index (storage->images, j);

      if (descriptor_is_file_of (descriptor, image, st, false))
        return image->guid;
    }
  }
  return NULL;
}

/* The descriptor beside PATH may know that it is only one delta of many.  NULL when there
 * is none; or, with ERROR set, when it cannot be read, and so nothing is known.
 */
static struct descriptor *
load_beside (const char *path, struct stat *st, GError **error)
{
  char *resolved = realpath (path, NULL);
  g_autofree char *xml = resolved ? lock_descriptor_name (resolved) : NULL;
  const bool found = xml && access (xml, F_OK) == 0 && stat (resolved, st) == 0;

  free (resolved);
  return found ? descriptor_load (xml, error) : NULL;
}

bool
location_find_owner (const char *path, char **owner, GError **error)
{
  struct stat st;
  g_autoptr (GError) why = NULL;
  g_autoptr (Descriptor) descriptor = load_beside (path, &st, &why);

  *owner = descriptor && find_guid (descriptor, &st)
             ? g_strdup (descriptor->path) : NULL;
  if (!why)
    return true;
  g_propagate_prefixed_error (
    error, g_steal_pointer (&why),
    "%s: whether it is one delta of many is not known: mend the descriptor, or move "
    "it away: ", path);
  return false;
}

char *
location_guid (const char *path, char **descriptor_path, char **parent)
{
  struct stat st;
  g_autoptr (Descriptor) descriptor = load_beside (path, &st, NULL);
  const char *guid = descriptor ? find_guid (descriptor, &st) : NULL;
  const struct descriptor_shot *shot =
    guid ? descriptor_find_shot (descriptor, guid) : NULL;

  *descriptor_path = guid ? g_strdup (descriptor->path) : NULL;
  *parent = shot ? g_strdup (shot->parent_guid) : NULL;
  return g_strdup (guid);
}

/* A delta without those below it reads as zeros where they have data; and one that
 * others rest on must not change.
 */
static bool
check_alone (struct location *location, const char *path,
             const struct ploop_open_options *options, const struct log *log,
             GError **error)
{
  struct stat st;
  g_autoptr (GError) why = NULL;
  g_autoptr (Descriptor) descriptor = load_beside (path, &st, &why);
  const char *guid =
    descriptor ? find_guid (descriptor, &st) : NULL;
  const struct descriptor_shot *shot =
    guid ? descriptor_find_shot (descriptor, guid) : NULL;

  if (why)
    log_warning (log, "%s: served by itself, but whether it is one delta of many "
                 "is not known: %s", path, why->message);
  if (!shot)
    return true;
  if (shot->parent_guid) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: is one delta of a disk, %s in %s: by itself, it would read "
                 "as zeros where those below it have data: open the descriptor "
                 "(with this GUID as the snapshot, if it is one), or give the "
                 "lower deltas as bases", path, guid, descriptor->path);
    return false;
  }
  if (descriptor_has_children (descriptor, guid) && !location->read_only) {
    location->read_only = true;
    if (!options->overlay)
      log_warning (log, "%s: other deltas rest on it, says %s: opened read-only",
                   path, descriptor->path);
  }
  return true;
}

/* ---- A file and those below it ----------------------------------------- */

/* Only the base may be a raw disk, and only if something is above it. */
static bool
find_files (struct location *location, const char *path,
            const struct ploop_open_options *options, const struct log *log,
            GError **error)
{
  const char *const none = NULL;
  const char *const *bases = options->bases ? options->bases : &none;
  guint nr = g_strv_length ((gchar **) bases);

  if (options->snapshot) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: snapshot is %s, but only a DiskDescriptor.xml, or a "
                 "directory that holds one, has snapshots", path,
                 options->snapshot);
    return false;
  }
  if (nr == 0) {
    chain_sources_add (location->deltas, path, -1, options->overlay != NULL);
    return check_alone (location, path, options, log, error);
  }
  if (nr >= CHAIN_MAX_LEVELS) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: has %u bases, but a chain has %u deltas at most", path,
                 nr, CHAIN_MAX_LEVELS);
    return false;
  }
  for (guint i = nr; i-- > 0;)
    chain_sources_add (location->deltas, bases[i], -1, i == nr - 1);
  chain_sources_add (location->deltas, path, -1, false);
  return true;
}

/* ---- An overlay -------------------------------------------------------- */

struct delta *
location_open_delta (const struct location *location, guint i,
                     enum delta_lock lock, const struct log *log,
                     GError **error)
{
  const struct chain_source *from =
    &g_array_index (location->deltas, struct chain_source, i);
  const struct delta_source source = {
    .path = from->path,
    .path_fd = from->path_fd,
    .raw_cluster_size =
      !from->may_be_raw ? 0
      : location->cluster_size ? location->cluster_size
      : FORMAT_DEFAULT_CLUSTER,
    .descriptor_is_locked = location->descriptor_is_locked,
    .log = log,
  };

  return delta_open_source (&source, lock, error);
}

/* As large as the disk that it goes over, with clusters as large as its.  If
 * another server has just made it, or the name is a link, opening it tells more.
 */
static bool
create_overlay (struct location *location, const char *path,
                const struct log *log, GError **error)
{
  g_autoptr (GError) why = NULL;
  const struct chain_source *over = last_delta (location);
  struct delta *delta = location_open_delta (location, location->deltas->len - 1,
                                             DELTA_LOCK_NONE, log, error);
  struct ploop_create_options options = { 0 };

  if (!delta)
    return false;
  blank_like (delta->layout.size, delta->layout.cluster_size,
              delta->header.version, &options);
  delta_close (delta);
  if (blank_create (path, &options, &why) == -1) {
    if (g_error_matches (why, PLOOP_ERROR, PLOOP_ERROR_EXISTS))
      return true;
    g_propagate_prefixed_error (error, g_steal_pointer (&why), "overlay: ");
    return false;
  }
  location->created = path;
  log_debug (log, "%s: created as an overlay on %s", path, over->path);
  return true;
}

static bool
add_overlay (struct location *location,
             const struct ploop_open_options *options, const struct log *log,
             GError **error)
{
  struct stat st;

  if (stat (options->overlay, &st) == -1) {
    if (errno == ENOENT && options->read_only) {
      g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                   "%s: there is no such overlay, and it is not created for "
                   "reading only: leave it out", options->overlay);
      return false;
    }
    if (errno != ENOENT) {
      error_set_system (error, errno, "%s: cannot be examined",
                        options->overlay);
      return false;
    }
    if (!create_overlay (location, options->overlay, log, error))
      return false;
  }
  chain_sources_add (location->deltas, options->overlay, -1, false);
  location->read_only = options->read_only;
  return true;
}

/* ---- All of it --------------------------------------------------------- */

static bool
find_disk (struct location *location, const char *path,
           const struct ploop_open_options *options, const struct log *log,
           GError **error)
{
  g_autofree char *xml = location_descriptor (path);

  return xml ? find_described (location, xml, options, error)
             : find_files (location, path, options, log, error);
}

bool
location_find (struct location *location, const char *path, unsigned part,
               const struct ploop_open_options *options,
               const struct log *log, GError **error)
{
  *location = (struct location) {
    .deltas = chain_sources_new (),
    .read_only = options->read_only,
    .part = part,
    .nr_parts = 1,
  };
  if (find_disk (location, path, options, log, error)
      && (!options->overlay || add_overlay (location, options, log, error)))
    return true;
  location_clear (location);
  return false;
}
