/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Taking, deleting and returning to snapshots of a disk that nobody uses:
 * ploop_create_snapshot and those that follow it in ploop-core.h.
 *
 * A snapshot costs nothing but a new, empty delta.  That is made first, and is on disk
 * before the descriptor names it; the descriptor is replaced as a whole, which is the
 * moment when all changes; and what it names no longer is removed last.  So whenever
 * power is cut, the descriptor names what is there.
 *
 * Names are given as ploop gives them: the delta that is written to is always
 * DESCRIPTOR_TOP_GUID, and what was that gets a name of its own.  Where an old
 * descriptor calls its top otherwise, that keeps its name; where it calls its base so,
 * a new top has a random one.
 *
 * Changed-block bitmaps go from what was the top to what is it: copied before the
 * descriptor is replaced, and removed after that.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bitmap-update.h"
#include "described.h"
#include "image.h"
#include "merge.h"

/* What the new delta of each part is to be like. */
struct new_delta {
  char *path;
  char *file;                   /* as the descriptor names it */
  struct ploop_create_options options;
  struct stat like;             /* the file whose owner and mode it gets */
  bool created;
};

struct change {
  struct described described;
  const struct log *log;
  bool dry_run;
  GArray *deltas;               /* of struct new_delta, by storage */
  GPtrArray *frozen;            /* of struct image: stopped, and kept from others */
};

static guint
nr_parts (const struct change *change)
{
  return change->described.descriptor->storages->len;
}

static void
clear_delta (gpointer opaque)
{
  struct new_delta *delta = opaque;

  g_free (delta->path);
  g_free (delta->file);
}

static void
free_frozen (gpointer image)
{
  image_free (image);
}

static bool
begin (struct change *change, const char *path, GError **error)
{
  change->deltas = g_array_new (FALSE, TRUE, sizeof (struct new_delta));
  g_array_set_clear_func (change->deltas, clear_delta);
  change->frozen = g_ptr_array_new_with_free_func (free_frozen);
  return described_open (&change->described, path, !change->dry_run, error);
}

static void
end (struct change *change)
{
  g_ptr_array_unref (change->frozen);
  described_close (&change->described);
  g_array_unref (change->deltas);
}

/* ---- The deltas that are there ----------------------------------------- */

/* Open the chain of GUID in storage number PART, as a whole; WRITER: so that nobody
 * else can, though a raw disk is only read.
 */
static struct image *
open_chain (const struct change *change, guint part, const char *guid,
            bool writer, struct location *location, GError **error)
{
  const struct ploop_open_options options = {
    .prealloc = FORMAT_DEFAULT_CLUSTER,
    .log = change->log->write,
    .log_opaque = change->log->opaque,
  };
  g_autoptr (GPtrArray) images =
    descriptor_chain (change->described.descriptor, part, guid, error);
  struct image *image;

  if (!images
      || !described_locate (&change->described, part, images, images->len,
                            location, error))
    return NULL;
  location->read_only = !writer || location_is_raw (location);
  image = image_open (location, &options, error);
  if (!image)
    described_forget (location);
  return image;
}

static int
close_chain (struct image *image, struct location *location, GError **error)
{
  const int r = image_stop (image, error);

  image_free (image);
  described_forget (location);
  return r;
}

/* A new delta must not take over from one whose end nobody has seen. */
static bool
recover (struct image *image, GError **error)
{
  const int r = image_recover (image);

  if (r == 0)
    return true;
  error_set_system (error, r, "%s: was not closed, and cannot be changed",
                    image->disk.delta->path);
  return false;
}

/* The highest delta of IMAGE must stay what it is, and be known to be that.  One with
 * bitmaps is only read.
 */
static bool
judge_top (const struct image *image, bool writer, GError **error)
{
  const struct delta *delta = image->disk.delta;

  if (!writer || !delta->read_only || delta->is_raw
      || format_has_valid_extension (&delta->header))
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
               "%s: may not be written: see its permissions, and whether its file "
               "system is mounted read-only", delta->path);
  return false;
}

/* ---- New deltas -------------------------------------------------------- */

static char *
new_guid (void)
{
  g_autofree char *uuid = g_uuid_string_random ();

  return descriptor_normalise_guid (uuid);
}

/* PATH, where a file lies, as the descriptor can name it.  What it calls that file may
 * lead there by links: with a GUID behind it, it would lead elsewhere.
 */
static const char *
name_below (const struct descriptor *descriptor, const char *path)
{
  const size_t length = strlen (descriptor->directory);

  if (strncmp (path, descriptor->directory, length) != 0)
    return path;
  path += length;
  return path + strspn (path, "/");
}

/* Beside the base, as ploop names it.  A name that is taken is not taken again. */
static bool
name_delta (const struct change *change, guint part, struct new_delta *new,
            GError **error)
{
  const struct descriptor *descriptor = change->described.descriptor;
  g_autoptr (GPtrArray) chain = descriptor_chain (descriptor, part, NULL, error);
  g_autofree char *guid = new_guid ();
  g_autofree char *base = NULL;
  int fd;

  if (!chain)
    return false;
  fd = descriptor_open_file (descriptor, chain->pdata[0], false, &base, error);
  if (fd == -1)
    return false;
  close (fd);
  new->path = g_strdup_printf ("%s.%s", base, guid);
  new->file = g_strdup (name_below (descriptor, new->path));
  return true;
}

/* As IMAGE: a delta over it. */
static bool
plan_delta (struct change *change, guint part, const struct image *image,
            GError **error)
{
  const struct delta *top = image->disk.delta;
  struct new_delta new = {
    .options = {
      .size = (top->layout.size + FORMAT_SECTOR_SIZE - 1)
              / FORMAT_SECTOR_SIZE * FORMAT_SECTOR_SIZE,
      .cluster_size = top->layout.cluster_size,
      .version = top->is_raw ? 0 : top->header.version,
    },
  };
  const bool ok = name_delta (change, part, &new, error);

  if (ok && fstat (top->fd, &new.like) == -1) {
    error_set_system (error, errno, "%s: cannot be examined", top->path);
    clear_delta (&new);
    return false;
  }
  if (ok)
    g_array_append_val (change->deltas, new);
  return ok;
}

/* Whoever may use the other deltas may use this one; after a power cut, too. */
static int
make_alike (const char *path, const struct stat *like)
{
  const int fd = open (path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  int r = 0;

  if (fd == -1)
    return -errno;
  /* The owner before the mode, of which it may take bits away. */
  if (fchown (fd, like->st_uid, like->st_gid) == -1
      && fchown (fd, (uid_t) -1, like->st_gid) == -1 && errno != EPERM)
    r = -errno;
  if (r == 0 && (fchmod (fd, like->st_mode & 0777) == -1 || fsync (fd) == -1))
    r = -errno;
  close (fd);
  return r;
}

static bool
create_delta (struct new_delta *new, GError **error)
{
  int r;

  if (ploop_create (new->path, &new->options, error) == -1)
    return false;
  new->created = true;
  r = make_alike (new->path, &new->like);
  if (r < 0)
    error_set_system (error, r, "%s: cannot be given to who owns the disk",
                      new->path);
  return r == 0;
}

static bool
create_deltas (struct change *change, GError **error)
{
  for (guint i = 0; i < change->deltas->len; i++)
    if (!create_delta (&g_array_index (change->deltas, struct new_delta, i),
                       error))
      return false;
  return true;
}

/* Will whoever reads the descriptor find them? */
static bool
find_delta (const struct descriptor *descriptor, guint part,
            const struct new_delta *new, GError **error)
{
  const struct descriptor_image *image =
    descriptor_find_image (descriptor, part, descriptor->top_guid);
  g_autofree char *path = NULL;
  const int fd = descriptor_open_file (descriptor, image, false, &path, error);

  if (fd == -1)
    return false;
  close (fd);
  if (strcmp (path, new->path) == 0)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: <File> would be %s, which is not %s, but %s: are there links "
               "among the names of the deltas?", descriptor->path, new->file,
               new->path, path);
  return false;
}

static bool
find_deltas (const struct change *change, GError **error)
{
  for (guint i = 0; i < change->deltas->len; i++)
    if (!find_delta (change->described.descriptor, i,
                     &g_array_index (change->deltas, struct new_delta, i), error))
      return false;
  return true;
}

/* The descriptor on disk does not name them. */
static void
remove_deltas (const struct change *change)
{
  for (guint i = 0; i < change->deltas->len; i++) {
    const struct new_delta *new =
      &g_array_index (change->deltas, struct new_delta, i);

    if (new->created)
      unlink (new->path);
  }
}

/* ---- Tracking ---------------------------------------------------------- */

/* The delta GUID of storage number PART, by itself.  It may be raw. */
static struct delta *
open_delta (const struct change *change, guint part, const char *guid,
            enum delta_lock lock, GError **error)
{
  g_autoptr (GPtrArray) images = g_ptr_array_new ();
  struct location location;
  struct delta *delta;

  g_ptr_array_add (images,
                   (gpointer) descriptor_find_image (change->described.descriptor,
                                                     part, guid));
  if (!described_locate (&change->described, part, images, 1, &location, error))
    return NULL;
  delta = location_open_delta (&location, 0, lock, change->log, error);
  described_forget (&location);
  return delta;
}

static struct delta *
open_new (const struct change *change, guint part, GError **error)
{
  const struct delta_source source = {
    .path = g_array_index (change->deltas, struct new_delta, part).path,
    .path_fd = -1,
    .descriptor_is_locked = true,
    .log = change->log,
  };

  return delta_open_source (&source, DELTA_LOCK_WRITER, error);
}

static bool
carries_bitmaps (const struct delta *delta)
{
  return !delta->is_raw && bitmap_get_state (&delta->header) == BITMAP_VALID;
}

static bool
copy_bitmaps_of (const struct change *change, guint part, const char *guid,
                 GError **error)
{
  /* It is frozen. */
  struct delta *from = open_delta (change, part, guid, DELTA_LOCK_NONE, error);
  struct delta *to = NULL;
  bool ok = from != NULL;

  if (ok && carries_bitmaps (from)) {
    to = open_new (change, part, error);
    ok = to && bitmap_copy (from, to, change->log, error);
  }
  delta_close (from);
  delta_close (to);
  return ok;
}

/* What is written to the new deltas is tracked in them. */
static bool
copy_bitmaps (const struct change *change, const char *guid, GError **error)
{
  for (guint i = 0; i < nr_parts (change); i++)
    if (!copy_bitmaps_of (change, i, guid, error))
      return false;
  return true;
}

/* The new deltas have them.  Those that stay are of no use, and do no harm. */
static void
remove_bitmaps (const struct change *change, const char *guid)
{
  for (guint i = 0; i < nr_parts (change); i++) {
    g_autoptr (GError) error = NULL;
    struct delta *delta = open_delta (change, i, guid, DELTA_LOCK_WRITER, &error);

    if (delta && carries_bitmaps (delta))
      bitmap_remove_all (delta, change->log, &error);
    if (error)
      log_warning (change->log, "changed-block bitmaps stay in the snapshot, too: %s",
                   error->message);
    delta_close (delta);
  }
}

/* ---- The descriptor ---------------------------------------------------- */

/* What is the top now has the name GUID from now on. */
static bool
rename_top (struct descriptor *descriptor, const char *guid, GError **error)
{
  return strcmp (descriptor->top_guid, guid) == 0
         || descriptor_rename (descriptor, descriptor->top_guid, guid, error);
}

/* The new deltas are the top, over PARENT.  In descriptors of the first ploops, the base
 * has the name that is the top's today, and keeps it.
 */
static bool
describe_deltas (struct change *change, const char *parent, GError **error)
{
  struct descriptor *descriptor = change->described.descriptor;
  g_autofree char *guid =
    descriptor_find_shot (descriptor, DESCRIPTOR_TOP_GUID)
      ? new_guid () : g_strdup (DESCRIPTOR_TOP_GUID);

  if (!descriptor_add_shot (descriptor, guid, parent, error))
    return false;
  for (guint i = 0; i < change->deltas->len; i++)
    if (!descriptor_add_image (
          descriptor, i, guid,
          g_array_index (change->deltas, struct new_delta, i).file, error))
      return false;
  return descriptor_set_top (descriptor, guid, error)
         && described_is_sound (&change->described, NULL, error);
}

/* Make the new deltas, and let the descriptor, which names them already, be the one on
 * disk.  If FROM is not NULL, tracking goes on from that GUID.
 */
static bool
store (struct change *change, const char *from, GError **error)
{
  struct descriptor *descriptor = change->described.descriptor;
  const struct stat before = descriptor->read;

  if (create_deltas (change, error) && find_deltas (change, error)
      && (!from || copy_bitmaps (change, from, error))
      && descriptor_store (descriptor, error)) {
    g_ptr_array_set_size (change->frozen, 0);
    if (from)
      remove_bitmaps (change, from);
    return true;
  }
  /* It was replaced, but perhaps not for good: both must find their files. */
  if (descriptor->read.st_ino == before.st_ino)
    remove_deltas (change);
  return false;
}

/* What a delta that is not the top any more is to be called: GUID if that is not NULL,
 * what it is called now if it can stay so, or a random one (g_free).  NULL with ERROR
 * set when GUID cannot be.
 */
static char *
choose_guid (const struct descriptor *descriptor, const char *guid,
             GError **error)
{
  g_autofree char *normal = guid ? descriptor_normalise_guid (guid) : NULL;

  if (!guid)
    return strcmp (descriptor->top_guid, DESCRIPTOR_TOP_GUID) == 0
             ? new_guid () : g_strdup (descriptor->top_guid);
  if (!normal || strcmp (normal, DESCRIPTOR_NO_GUID) == 0
      || strcmp (normal, DESCRIPTOR_TOP_GUID) == 0)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: GUID is '%s': must be one such as "
                 "{01234567-89ab-cdef-0123-456789abcdef}, and neither that of the "
                 "top delta nor all zeros", descriptor->path, guid);
  else if (descriptor_find_shot (descriptor, normal)
           && !descriptor_is_top (descriptor, normal))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: GUID is %s, which another snapshot has", descriptor->path,
                 normal);
  else
    return g_steal_pointer (&normal);
  return NULL;
}

/* ---- Taking one -------------------------------------------------------- */

/* Every delta below the new ones is sound, and closed; and nobody opens it to write to
 * it before the descriptor says that it is not the top: qemu knows no lock but its own.
 */
static bool
freeze_part (struct change *change, guint part, GError **error)
{
  struct location location;
  struct image *image =
    open_chain (change, part, NULL, !change->dry_run, &location, error);
  bool ok;

  if (!image)
    return false;
  ok = judge_top (image, !change->dry_run, error) && recover (image, error)
       && plan_delta (change, part, image, error);
  if (image_stop (image, ok ? error : NULL) == -1)
    ok = false;
  described_forget (&location);
  g_ptr_array_add (change->frozen, image);
  return ok;
}

static bool
freeze (struct change *change, GError **error)
{
  for (guint i = 0; i < nr_parts (change); i++)
    if (!freeze_part (change, i, error))
      return false;
  return true;
}

static bool
describe_snapshot (struct change *change, const char *guid, bool temporary,
                   GError **error)
{
  struct descriptor *descriptor = change->described.descriptor;

  return rename_top (descriptor, guid, error)
         && (!temporary
             || descriptor_set_temporary (descriptor, guid, true, error))
         && describe_deltas (change, guid, error);
}

static int
create_snapshot (struct change *change,
                 const struct ploop_create_snapshot_options *options,
                 char **guid, GError **error)
{
  g_autofree char *chosen =
    choose_guid (change->described.descriptor, options->guid, error);

  if (!chosen || !freeze (change, error)
      || !describe_snapshot (change, chosen, options->temporary, error))
    return -1;
  if (!change->dry_run && !store (change, chosen, error))
    return -1;
  if (guid)
    *guid = g_steal_pointer (&chosen);
  return 0;
}

int
ploop_create_snapshot (const char *path,
                       const struct ploop_create_snapshot_options *options,
                       char **guid, GError **error)
{
  static const struct ploop_create_snapshot_options none;
  const struct ploop_create_snapshot_options *o = options ? options : &none;
  const struct log log = { o->log, o->log_opaque };
  struct change change = { .log = &log, .dry_run = o->dry_run };
  int r = -1;

  if (begin (&change, path, error))
    r = create_snapshot (&change, o, guid, error);
  end (&change);
  return r;
}

/* ---- Returning to one -------------------------------------------------- */

/* Is anything in the top delta of storage number PART that would be lost? */
static bool
top_has_data (struct change *change, guint part, bool *has_data, GError **error)
{
  struct location location;
  struct image *image = open_chain (change, part, NULL, false, &location, error);
  const struct map *map;

  if (!image)
    return false;
  map = &image->disk.map;
  for (uint64_t i = 0; i < map->nr_clusters && !*has_data; i++) {
    const uint64_t word = map_lookup (map, i);

    *has_data = map_word_is_mapped (word)
                && map_word_level (word) == chain_top_level (&image->disk.chain);
  }
  return close_chain (image, &location, error) == 0;
}

static bool
may_leave_top (struct change *change, const char *guid,
               const struct ploop_switch_options *options, GError **error)
{
  const struct descriptor *descriptor = change->described.descriptor;
  g_autoptr (GPtrArray) children =
    descriptor_list_children (descriptor, descriptor->top_guid);
  bool has_data = false;

  if (descriptor_is_top (descriptor, guid))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: %s is the disk as it is now, no snapshot", descriptor->path,
                 guid);
  else if (options->discard && children->len > 0)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: %u deltas rest on the disk as it is now, %s, which cannot be "
                 "discarded: keep it", descriptor->path, children->len,
                 descriptor->top_guid);
  else if (options->discard || options->keep)
    return true;
  else {
    for (guint i = 0; i < nr_parts (change) && !has_data; i++)
      if (!top_has_data (change, i, &has_data, error))
        return false;
    if (!has_data && children->len == 0)
      return true;
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: the disk has been written to since its last snapshot: say "
                 "whether that is to be kept as a snapshot (--keep) or lost "
                 "(--discard)",
                 descriptor->path);
  }
  return false;
}

/* A new delta over GUID in each part. */
static bool
plan_deltas_over (struct change *change, const char *guid, GError **error)
{
  for (guint i = 0; i < nr_parts (change); i++) {
    struct location location;
    struct image *image =
      open_chain (change, i, guid, false, &location, error);
    bool ok;

    if (!image)
      return false;
    ok = plan_delta (change, i, image, error);
    if (close_chain (image, &location, ok ? error : NULL) == -1 || !ok)
      return false;
  }
  return true;
}

/* The disk is as large as it was then. */
static bool
restore_size (struct change *change, GError **error)
{
  struct descriptor *descriptor = change->described.descriptor;
  const struct descriptor_storage *last =
    g_ptr_array_index (descriptor->storages, nr_parts (change) - 1);
  const struct new_delta *new =
    &g_array_index (change->deltas, struct new_delta, nr_parts (change) - 1);

  return descriptor_set_size_sectors (
    descriptor,
    last->start_sectors + new->options.size / FORMAT_SECTOR_SIZE, error);
}

/* GUID is the parent of a new top; the old one is called KEPT, or is not there. */
static bool
describe_switch (struct change *change, const char *guid, const char *kept,
                 GError **error)
{
  struct descriptor *descriptor = change->described.descriptor;
  g_autofree char *old = g_strdup (descriptor->top_guid);

  if (kept && !rename_top (descriptor, kept, error))
    return false;
  if (!kept
      && (!descriptor_set_top (descriptor, guid, error)
          || !descriptor_remove (descriptor, old, error)))
    return false;
  return describe_deltas (change, guid, error) && restore_size (change, error);
}

static int
switch_snapshot (struct change *change, const char *wanted,
                 const struct ploop_switch_options *options, char **kept,
                 GError **error)
{
  const struct descriptor *descriptor = change->described.descriptor;
  const struct descriptor_shot *shot =
    descriptor_need_shot (descriptor, wanted, error);
  g_autoptr (GPtrArray) paths = g_ptr_array_new_with_free_func (g_free);
  g_autofree char *guid = NULL, *name = NULL;

  if (!shot || !may_leave_top (change, shot->guid, options, error))
    return -1;
  guid = g_strdup (shot->guid);
  /* What is kept must be closed and sound; what goes may be damaged, that may be why it
   * goes, but it must be in nobody's hands.
   */
  if (options->keep ? !freeze (change, error)
                    : !described_collect_files (&change->described,
                                                descriptor->top_guid,
                                                !change->dry_run, paths, error))
    return -1;
  if (options->keep)
    name = choose_guid (descriptor, NULL, error);
  g_array_set_size (change->deltas, 0);
  if (!plan_deltas_over (change, guid, error)
      || !describe_switch (change, guid, name, error))
    return -1;
  if (change->dry_run)
    paths->len = 0;
  else if (!store (change, NULL, error)
           || !described_remove_files (&change->described, paths, error))
    return -1;
  *kept = g_steal_pointer (&name);
  return 0;
}

int
ploop_switch_snapshot (const char *path, const char *guid,
                       const struct ploop_switch_options *options,
                       char **kept, GError **error)
{
  static const struct ploop_switch_options none;
  const struct ploop_switch_options *o = options ? options : &none;
  const struct log log = { o->log, o->log_opaque };
  struct change change = { .log = &log, .dry_run = o->dry_run };
  g_autofree char *name = NULL;
  int r = -1;

  if (o->discard && o->keep) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: what was written since the last snapshot cannot be both kept "
                 "and discarded: give one of both", path);
    return -1;
  }
  if (begin (&change, path, error))
    r = switch_snapshot (&change, guid, o, &name, error);
  end (&change);
  if (kept)
    *kept = g_steal_pointer (&name);
  return r;
}

/* ---- Marking one ------------------------------------------------------- */

static int
mark_snapshot (struct change *change, const char *guid, bool temporary,
               GError **error)
{
  struct descriptor *descriptor = change->described.descriptor;
  const struct descriptor_shot *shot =
    descriptor_need_shot (descriptor, guid, error);

  if (!shot)
    return -1;
  if (descriptor_is_top (descriptor, shot->guid)) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: %s is the disk as it is now, no snapshot", descriptor->path,
                 shot->guid);
    return -1;
  }
  if ((shot->temporary != DESCRIPTOR_PERMANENT) == temporary)
    return 0;
  return descriptor_set_temporary (descriptor, shot->guid, temporary, error)
         && (change->dry_run || descriptor_store (descriptor, error)) ? 0 : -1;
}

int
ploop_mark_snapshot (const char *path, const char *guid, bool temporary,
                     bool dry_run, GError **error)
{
  static const struct log no_log;
  struct change change = { .log = &no_log, .dry_run = dry_run };
  int r = -1;

  if (begin (&change, path, error))
    r = mark_snapshot (&change, guid, temporary, error);
  end (&change);
  return r;
}

/* ---- Deleting one ------------------------------------------------------ */

/* Nothing rests on it. */
static int
remove_leaf (struct change *change, const char *guid, GError **error)
{
  struct described *described = &change->described;
  g_autoptr (GPtrArray) paths = g_ptr_array_new_with_free_func (g_free);

  if (!described_collect_files (described, guid, !change->dry_run, paths, error)
      || !descriptor_remove (described->descriptor, guid, error)
      || !described_is_sound (described, NULL, error))
    return -1;
  if (change->dry_run)
    return 0;
  return descriptor_store (described->descriptor, error)
         && described_remove_files (described, paths, error) ? 0 : -1;
}

static int
delete_snapshot (struct change *change, const char *wanted,
                 struct merge *merge, GError **error)
{
  const struct descriptor *descriptor = change->described.descriptor;
  const struct descriptor_shot *shot =
    descriptor_need_shot (descriptor, wanted, error);
  g_autoptr (GPtrArray) children =
    shot ? descriptor_list_children (descriptor, shot->guid) : NULL;
  g_autofree char *guid = shot ? g_strdup (shot->guid) : NULL;
  g_autofree char *child = NULL;

  if (!shot)
    return -1;
  if (descriptor_is_top (descriptor, guid))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: %s is the disk as it is now, no snapshot", descriptor->path,
                 guid);
  else if (children->len > 1)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: %u deltas rest on %s: delete or merge those first, until one "
                 "is left", descriptor->path, children->len, guid);
  else if (children->len == 0)
    return remove_leaf (change, guid, error);
  else {
    child = g_strdup (((const struct descriptor_shot *) children->pdata[0])->guid);
    return merge_range (merge, guid, child, error);
  }
  return -1;
}

int
ploop_delete_snapshot (const char *path, const char *guid,
                       const struct ploop_delete_snapshot_options *options,
                       ploop_progress_fn progress, void *opaque,
                       struct ploop_merge_result *result, GError **error)
{
  static const struct ploop_delete_snapshot_options none;
  const struct ploop_delete_snapshot_options *o = options ? options : &none;
  const struct log log = { o->log, o->log_opaque };
  struct change change = { .log = &log, .dry_run = o->dry_run };
  struct merge merge = {
    .described = &change.described,
    .log = &log,
    .dry_run = o->dry_run,
    .progress = progress,
    .opaque = opaque,
    .result = result,
  };
  int r = -1;

  *result = (struct ploop_merge_result) { .interrupted = false };
  if (begin (&change, path, error))
    r = delete_snapshot (&change, guid, &merge, error);
  end (&change);
  return r;
}
