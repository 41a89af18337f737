/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Making a DiskDescriptor.xml anew: ploop_restore_descriptor in ploop-core.h.
 *
 * What is decided, order.h says.  Here the document is built, read back as everybody
 * will read it, and put in the place of the old one, which is kept.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "descriptor.h"
#include "evidence.h"
#include "format.h"
#include "lock.h"
#include "order.h"
#include "replace.h"
#include "xml.h"

#define NO_GUID "{00000000-0000-0000-0000-000000000000}"

/* So many old descriptors are kept. */
#define MAX_BACKUPS 1000u

struct restoration {
  const struct ploop_restore_options *options;
  struct order_say say;
  char *directory;
  int directory_fd;
  char *path;                   /* of the descriptor */
  struct relics relics;
  GPtrArray *files;             /* of struct evidence */
  struct order order;
  GArray *locks;                /* of int, file descriptors */
  struct ploop_restore_result *result;
};

/* ---- Which files ------------------------------------------------------- */

/* A descriptor stands for its directory. */
static bool
open_directory (struct restoration *r, const char *name, GError **error)
{
  const bool is_file =
    !g_file_test (name, G_FILE_TEST_IS_DIR)
    && (g_str_has_suffix (name, "/" DESCRIPTOR_FILE_NAME)
        || strcmp (name, DESCRIPTOR_FILE_NAME) == 0);

  r->directory = is_file ? g_path_get_dirname (name) : g_strdup (name);
  r->path = g_build_filename (r->directory, DESCRIPTOR_FILE_NAME, NULL);
  r->directory_fd = open (r->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (r->directory_fd >= 0)
    return true;
  error_set_system (error, errno, "%s: is not a directory that can be read",
                    r->directory);
  return false;
}

/* Does the descriptor PATH say all, of files that are there? */
static bool
is_sound (const char *path)
{
  g_autoptr (Descriptor) descriptor = descriptor_load (path, NULL);

  for (guint i = 0; descriptor && i < descriptor->storages->len; i++) {
    g_autoptr (GPtrArray) images = descriptor_chain (descriptor, i, NULL, NULL);

    for (guint n = 0; images && n < images->len; n++) {
      g_autofree char *file = NULL;
      const int fd =
        descriptor_open_file (descriptor, g_ptr_array_index (images, n), true,
                              &file, NULL);

      if (fd == -1)
        return false;
      close (fd);
    }
    if (!images)
      return false;
  }
  return descriptor != NULL;
}

static bool
is_split (const struct relics *relics)
{
  for (guint i = 0; i < relics->images->len; i++) {
    const struct relic_image *image = g_ptr_array_index (relics->images, i);

    if (strcmp (relics_find_file (relics, image->guid), image->file) != 0)
      return true;
  }
  return false;
}

static bool
check_old (const struct restoration *r, GError **error)
{
  if (r->options->files)
    return true;
  if (is_sound (r->path))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_EXISTS,
                 "%s: is sound, and there is nothing to restore: give the files, "
                 "base first, if they make another disk", r->path);
  else if (is_split (&r->relics))
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: has several images of one GUID: the descriptor of a split "
                 "disk has to be written by hand", r->path);
  else
    return true;
  return false;
}

/* The name in the directory of a file that was given as NAME (g_free), or NULL. */
static char *
name_in_directory (const struct restoration *r, const char *name,
                   GError **error)
{
  g_autofree char *directory = g_path_get_dirname (name);
  struct stat here, there;

  if (!strchr (name, '/')
      || (fstat (r->directory_fd, &here) == 0 && stat (directory, &there) == 0
          && here.st_dev == there.st_dev && here.st_ino == there.st_ino))
    return g_path_get_basename (name);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: does not lie in %s: a disk's files lie beside its descriptor",
               name, r->directory);
  return NULL;
}

static void
free_evidence (gpointer opaque)
{
  evidence_free (opaque);
}

static bool
is_given_twice (const GPtrArray *files, const char *name, GError **error)
{
  for (guint i = 0; i < files->len; i++) {
    const struct evidence *file = g_ptr_array_index (files, i);

    if (strcmp (file->name, name) != 0)
      continue;
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: is given twice: give each file once, base first", name);
    return true;
  }
  return false;
}

static bool
look_at_given (struct restoration *r, GError **error)
{
  r->files = g_ptr_array_new_with_free_func (free_evidence);
  for (const char *const *name = r->options->files; *name; name++) {
    g_autofree char *base = name_in_directory (r, *name, error);

    if (!base || is_given_twice (r->files, base, error))
      return false;
    g_ptr_array_add (r->files,
                     evidence_look (r->directory_fd, r->directory, base));
  }
  if (r->files->len > 0 && r->files->len <= DESCRIPTOR_MAX_LEVELS)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: %u files were given, must be from 1 to %u", r->directory,
               r->files->len, DESCRIPTOR_MAX_LEVELS);
  return false;
}

/* Copies of the descriptor may be as old as can be, so nothing is taken from them; but
 * whoever has to say the order may know better.
 */
static void
say_copies (const struct restoration *r)
{
  g_autoptr (GDir) dir = g_dir_open (r->directory, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name (dir))) {
    g_autofree char *path = g_build_filename (r->directory, name, NULL);

    if (g_str_has_prefix (name, DESCRIPTOR_FILE_NAME)
        && strcmp (name, DESCRIPTOR_FILE_NAME) != 0 && is_sound (path))
      order_say (&r->say, "%s: is a sound descriptor of files that are there: if it "
                 "is of the disk as it was last, put it in the place of %s", name,
                 DESCRIPTOR_FILE_NAME);
  }
}

static bool
find_order (struct restoration *r, GError **error)
{
  bool found;

  if (r->options->files)
    return look_at_given (r, error)
           && order_take (&r->order, r->files, &r->relics, &r->say, error);
  r->files = evidence_collect (r->directory_fd, r->directory, error);
  if (!r->files)
    return false;
  found = order_find (&r->order, r->files, &r->relics, &r->say, error);
  if (!found || r->order.refusal)
    say_copies (r);
  return found;
}

/* A guess is only shown. */
static bool
check_guess (const struct restoration *r, GError **error)
{
  if (!r->order.refusal || r->options->dry_run)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT, "%s: %s", r->directory,
               r->order.refusal);
  return false;
}

/* A descriptor is text, which is read without the white space around it. */
static bool
may_be_named (const char *name)
{
  for (const char *p = name; *p; p++)
    if (g_ascii_iscntrl (*p))
      return false;
  return g_utf8_validate (name, -1, NULL) && !g_ascii_isspace (name[0])
         && !g_ascii_isspace (name[strlen (name) - 1]);
}

static bool
check_names (const struct restoration *r, GError **error)
{
  for (guint i = 0; i < r->order.levels->len; i++) {
    const struct order_level *level = g_ptr_array_index (r->order.levels, i);

    if (may_be_named (level->file->name))
      continue;
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: a descriptor cannot have this file name: rename the file",
                 level->file->name);
    return false;
  }
  return true;
}

/* ---- The document ------------------------------------------------------ */

static xmlNode *
add (xmlNode *parent, const char *name, const char *text)
{
  return xmlNewTextChild (parent, NULL, (const xmlChar *) name,
                          (const xmlChar *) text);
}

static void
add_number (xmlNode *parent, const char *name, uint64_t number)
{
  g_autofree char *text = g_strdup_printf ("%" G_GUINT64_FORMAT, number);

  add (parent, name, text);
}

static void
add_parameters (xmlNode *root, uint64_t size_sectors)
{
  xmlNode *parameters = add (root, "Disk_Parameters", NULL);
  uint32_t heads, cylinders;
  uint64_t tracks;

  format_geometry (size_sectors, &heads, &cylinders);
  tracks = (uint64_t) heads * cylinders;
  add_number (parameters, "Disk_size", size_sectors);
  add_number (parameters, "Cylinders", cylinders);
  add_number (parameters, "Heads", heads);
  add_number (parameters, "Sectors", tracks > 0 ? size_sectors / tracks : 0);
  add_number (parameters, "Padding", 0);
}

/* Over a raw base, ploop calls every image Plain. */
static void
add_storage (xmlNode *root, const struct order *order)
{
  const struct order_level *base = g_ptr_array_index (order->levels, 0);
  const struct evidence *top = order_top (order)->file;
  xmlNode *storage = add (add (root, "StorageData", NULL), "Storage", NULL);
  const char *type =
    base->file->kind == EVIDENCE_RAW ? "Plain" : "Compressed";

  add_number (storage, "Start", 0);
  add_number (storage, "End", top->size_sectors);
  add_number (storage, "Blocksize",
              top->cluster_sectors > 0
                ? top->cluster_sectors
                : FORMAT_DEFAULT_CLUSTER / FORMAT_SECTOR_SIZE);
  for (guint i = 0; i < order->levels->len; i++) {
    const struct order_level *level = g_ptr_array_index (order->levels, i);
    xmlNode *image = add (storage, "Image", NULL);

    add (image, "GUID", level->guid);
    add (image, "Type", type);
    add (image, "File", level->file->name);
  }
}

static void
add_snapshots (xmlNode *root, const struct order *order)
{
  xmlNode *snapshots = add (root, "Snapshots", NULL);

  add (snapshots, "TopGUID", order->top_guid);
  for (guint i = 0; i < order->levels->len; i++) {
    const struct order_level *level = g_ptr_array_index (order->levels, i);
    xmlNode *shot = add (snapshots, "Shot", NULL);

    add (shot, "GUID", level->guid);
    add (shot, "ParentGUID", level->parent ? level->parent : NO_GUID);
    if (level->marker)
      add (shot, level->marker, NULL);
  }
}

/* libxml2 says nothing of memory that was short here; reading it back does. */
static char *
build_text (const struct order *order, bool is_virtuozzo)
{
  xmlDoc *doc = xmlNewDoc ((const xmlChar *) "1.0");
  xmlNode *root =
    xmlNewNode (NULL, (const xmlChar *) (is_virtuozzo ? "Virtuozzo_disk_image"
                                                      : "Parallels_disk_image"));
  xmlChar *text = NULL;
  char *copy;
  int length;

  xmlDocSetRootElement (doc, root);
  add_parameters (root, order_top (order)->file->size_sectors);
  add_storage (root, order);
  add_snapshots (root, order);
  xmlDocDumpFormatMemory (doc, &text, &length, 1);
  copy = g_strdup (text ? (const char *) text : "");
  xmlFree (text);
  xmlFreeDoc (doc);
  return copy;
}

/* ---- Locks ------------------------------------------------------------- */

/* Is the file still the one that was looked at? */
static bool
is_same (const struct evidence *file, int fd)
{
  struct stat now;

  return fstat (fd, &now) == 0 && now.st_dev == file->st.st_dev
         && now.st_ino == file->st.st_ino && now.st_size == file->st.st_size
         && now.st_mtim.tv_sec == file->st.st_mtim.tv_sec
         && now.st_mtim.tv_nsec == file->st.st_mtim.tv_nsec;
}

static bool
lock_file (struct restoration *r, const struct evidence *file, GError **error)
{
  g_autofree char *path = g_build_filename (r->directory, file->name, NULL);
  const int fd = openat (r->directory_fd, file->name,
                         O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

  if (fd == -1) {
    error_set_system (error, errno, "%s: cannot be opened", path);
    return false;
  }
  g_array_append_val (r->locks, fd);
  if (!lock_image (fd, path, !r->options->dry_run, error))
    return false;
  if (is_same (file, fd))
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
               "%s: was changed while it was looked at: try again", path);
  return false;
}

static bool
lock_disk (struct restoration *r, GError **error)
{
  int fd;

  for (guint i = 0; i < r->order.levels->len; i++) {
    const struct order_level *level = g_ptr_array_index (r->order.levels, i);

    if (!lock_file (r, level->file, error))
      return false;
  }
  if (!lock_descriptor_file (r->path, r->path,
                             r->options->dry_run ? DESCRIPTOR_LOCK_READER
                                                 : DESCRIPTOR_LOCK_WRITER,
                             &fd, error))
    return false;
  if (fd >= 0)
    g_array_append_val (r->locks, fd);
  return true;
}

/* ---- Writing ----------------------------------------------------------- */

/* Returns 0 or a negative errno. */
static int
write_text (int fd, const char *text)
{
  size_t length = strlen (text);

  while (length > 0) {
    const ssize_t n = write (fd, text, length);

    if (n == -1 && errno != EINTR)
      return -errno;
    if (n > 0) {
      text += n;
      length -= (size_t) n;
    }
  }
  return 0;
}

/* What was written must be read as it was meant. */
static bool
read_back (const struct restoration *r, const char *name, GError **error)
{
  g_autofree char *path = g_build_filename (r->directory, name, NULL);
  g_autoptr (Descriptor) descriptor = descriptor_load (path, error);

  for (guint i = 0; descriptor && i < r->order.levels->len; i++) {
    const struct order_level *level = g_ptr_array_index (r->order.levels, i);
    g_autoptr (GPtrArray) chain =
      descriptor_chain (descriptor, 0, level->guid, error);
    const struct descriptor_image *image;

    if (!chain)
      return false;
    image = g_ptr_array_index (chain, chain->len - 1);
    if (strcmp (image->file, level->file->name) == 0)
      continue;
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
                 "%s: cannot be described: in a descriptor it reads as %s",
                 level->file->name, image->file);
    return false;
  }
  return descriptor != NULL;
}

/* The old one, if any, gets one more name, which is on disk before that which it has is
 * another's.  Returns 0 or a negative errno.
 */
static int
keep_old (struct restoration *r)
{
  for (unsigned i = 0; r->relics.is_there && i < MAX_BACKUPS; i++) {
    g_autofree char *number = i > 0 ? g_strdup_printf ("%u", i) : g_strdup ("");
    g_autofree char *name =
      g_strconcat (DESCRIPTOR_FILE_NAME ".bak", number, NULL);

    if (linkat (r->directory_fd, DESCRIPTOR_FILE_NAME, r->directory_fd, name, 0)
        == 0) {
      const int status = replace_sync (r->directory_fd);

      r->result->backup = g_steal_pointer (&name);
      return status == -EINVAL ? 0 : status;
    }
    if (errno != EEXIST)
      return -errno;
  }
  return r->relics.is_there ? -EEXIST : 0;
}

/* How the new one is to look: as the old one, or as ploop makes it. */
static struct stat
look_of (const struct restoration *r)
{
  const struct order_level *base = g_ptr_array_index (r->order.levels, 0);
  struct stat look = base->file->st;

  look.st_mode = 0644;
  if (r->relics.is_there)
    fstatat (r->directory_fd, DESCRIPTOR_FILE_NAME, &look, 0);
  return look;
}

static bool
set_write_error (const struct restoration *r, int errnum, GError **error)
{
  error_set_system (error, errnum, "%s: cannot be written, and is what it was",
                    r->path);
  return false;
}

/* With the new one beside the old one, and good. */
static bool
put_in_place (struct restoration *r, struct replacement *replacement,
              GError **error)
{
  const struct stat look = look_of (r);
  struct stat new;
  int status = keep_old (r);

  status = replace_end (replacement, status, &look, &new);
  if (status < 0 && r->result->backup)
    unlinkat (r->directory_fd, r->result->backup, 0);
  if (status < 0)
    return set_write_error (r, status, error);
  status = replace_sync (r->directory_fd);
  if (status == 0 || status == -EINVAL)
    return true;
  error_set_system (error, status, "%s: was replaced, but the directory cannot be "
                    "synced: after a power cut the old one may be there", r->path);
  return false;
}

static bool
write_descriptor (struct restoration *r, GError **error)
{
  struct replacement replacement;
  struct stat nothing = { 0 };
  g_autofree char *beside = NULL;
  int status =
    replace_begin (&replacement, r->directory_fd, DESCRIPTOR_FILE_NAME);

  beside = replacement.beside;
  if (status < 0)
    return set_write_error (r, status, error);
  status = write_text (replacement.fd, r->result->xml);
  if (status == 0 && read_back (r, replacement.beside, error))
    return put_in_place (r, &replacement, error);
  replace_end (&replacement, status < 0 ? status : -EINVAL, &nothing, &nothing);
  return status < 0 ? set_write_error (r, status, error) : false;
}

/* ---- All of it --------------------------------------------------------- */

static void
free_image (gpointer opaque)
{
  struct ploop_restored_image *image = opaque;

  g_free (image->guid);
  g_free (image->parent);
  g_free (image->file);
  g_free (image);
}

void
ploop_restore_result_clear (struct ploop_restore_result *result)
{
  g_clear_pointer (&result->images, g_ptr_array_unref);
  g_clear_pointer (&result->xml, g_free);
  g_clear_pointer (&result->backup, g_free);
  g_clear_pointer (&result->refusal, g_free);
}

static void
fill_result (const struct restoration *r)
{
  const struct order *order = &r->order;
  struct ploop_restore_result *result = r->result;

  result->confidence = order->confidence;
  result->refusal = g_strdup (order->refusal);
  result->images = g_ptr_array_new_with_free_func (free_image);
  for (guint i = 0; i < order->levels->len; i++) {
    const struct order_level *level = g_ptr_array_index (order->levels, i);
    struct ploop_restored_image *image =
      g_new0 (struct ploop_restored_image, 1);

    image->guid = g_strdup (level->guid);
    image->parent = g_strdup (level->parent);
    image->file = g_strdup (level->file->name);
    image->is_raw = level->file->kind == EVIDENCE_RAW;
    image->is_top = level == order_top (order);
    g_ptr_array_add (result->images, image);
  }
  result->xml = build_text (order, r->relics.is_virtuozzo);
}

static bool
restore (struct restoration *r, const char *directory, GError **error)
{
  if (!open_directory (r, directory, error))
    return false;
  relics_read (&r->relics, r->directory_fd);
  if (!check_old (r, error) || !find_order (r, error) || !check_guess (r, error)
      || !check_names (r, error) || !lock_disk (r, error))
    return false;
  fill_result (r);
  return r->options->dry_run || write_descriptor (r, error);
}

static void
clear (struct restoration *r)
{
  order_clear (&r->order);
  g_clear_pointer (&r->files, g_ptr_array_unref);
  if (r->relics.images)
    relics_clear (&r->relics);
  for (guint i = 0; i < r->locks->len; i++)
    close (g_array_index (r->locks, int, i));
  g_array_unref (r->locks);
  if (r->directory_fd >= 0)
    close (r->directory_fd);
  g_free (r->path);
  g_free (r->directory);
}

int
ploop_restore_descriptor (const char *directory,
                          const struct ploop_restore_options *options,
                          struct ploop_restore_result *result,
                          GError **error)
{
  static const struct ploop_restore_options none;
  const struct ploop_restore_options *o = options ? options : &none;
  struct restoration r = {
    .options = o,
    .say = { o->reason, o->reason_opaque },
    .directory_fd = -1,
    .locks = g_array_new (FALSE, FALSE, sizeof (int)),
    .result = result,
  };
  bool ok;

  *result = (struct ploop_restore_result) { .images = NULL };
  ok = restore (&r, directory, error);
  clear (&r);
  if (!ok)
    ploop_restore_result_clear (result);
  return ok ? 0 : -1;
}
