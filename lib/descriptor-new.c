/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A new DiskDescriptor.xml: see descriptor-new.h.  Elements, their order and the GUIDs
 * are those of ploop init.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "descriptor.h"
#include "descriptor-new.h"
#include "format.h"
#include "replace.h"
#include "xml.h"

/* ---- Where it goes ----------------------------------------------------- */

/* A link to the image is followed: the descriptor knows files in its own directory
 * only.
 */
static char *
resolve (const char *image)
{
  char *real = realpath (image, NULL);
  char *path = g_strdup (real ? real : image);

  free (real);
  return path;
}

static char *
name_descriptor (const char *image)
{
  g_autofree char *directory = g_path_get_dirname (image);

  return g_build_filename (directory, DESCRIPTOR_FILE_NAME, NULL);
}

/* XML takes text, without most control characters, and those who read it leave white
 * space around it out.
 */
static bool
is_text (const char *name)
{
  g_autofree char *bare = g_strstrip (g_strdup (name));

  if (!g_utf8_validate (name, -1, NULL) || !g_str_equal (bare, name))
    return false;
  for (; *name; name = g_utf8_next_char (name))
    if (g_unichar_iscntrl (g_utf8_get_char (name)))
      return false;
  return true;
}

bool
descriptor_new_is_possible (const char *image, GError **error)
{
  g_autofree char *path = resolve (image);
  g_autofree char *name = g_path_get_basename (path);
  g_autofree char *descriptor = name_descriptor (path);
  struct stat st;

  if (!is_text (name) || g_str_equal (name, DESCRIPTOR_FILE_NAME)) {
    g_autofree char *quoted = g_strescape (name, NULL);

    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%s: an image of this name cannot be in a "
                 DESCRIPTOR_FILE_NAME ": choose another one, like root.hds",
                 quoted);
    return false;
  }
  if (lstat (descriptor, &st) == -1)
    return true;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_EXISTS,
               "%s: exists already: there is a disk in this directory: choose "
               "another one", descriptor);
  return false;
}

/* ---- What is in it ----------------------------------------------------- */

static xmlNode *
add (xmlNode *parent, const char *name, const char *text)
{
  return xmlNewTextChild (parent, NULL, (const xmlChar *) name,
                          (const xmlChar *) text);
}

static void
add_number (xmlNode *parent, const char *name, uint64_t number)
{
  char text[24];

  snprintf (text, sizeof text, "%" PRIu64, number);
  add (parent, name, text);
}

/* Cylinders, as ploop has them here, are those of all sectors. */
static void
add_parameters (xmlNode *root, const struct ploop_info *info)
{
  const uint64_t nr_sectors = info->size / FORMAT_SECTOR_SIZE;
  const uint64_t track = nr_sectors / MAX (info->heads, 1u)
                         / MAX (info->cylinders, 1u);
  xmlNode *parameters = add (root, "Disk_Parameters", NULL);

  add_number (parameters, "Disk_size", nr_sectors);
  add_number (parameters, "Cylinders", info->cylinders);
  add_number (parameters, "Heads", info->heads);
  add_number (parameters, "Sectors", track);
  add_number (parameters, "Padding", 0);
}

static void
add_storage (xmlNode *root, const struct ploop_info *info, const char *name,
             enum ploop_create_space space)
{
  xmlNode *storage = add (add (root, "StorageData", NULL), "Storage", NULL);
  xmlNode *image;

  add_number (storage, "Start", 0);
  add_number (storage, "End", info->size / FORMAT_SECTOR_SIZE);
  add_number (storage, "Blocksize", info->cluster_size / FORMAT_SECTOR_SIZE);
  if (space == PLOOP_CREATE_FALLOC || space == PLOOP_CREATE_FULL)
    add_number (storage, "Preallocated", 1);
  image = add (storage, "Image", NULL);
  add (image, "GUID", DESCRIPTOR_TOP_GUID);
  add (image, "Type", "Compressed");
  add (image, "File", name);
}

static void
add_snapshots (xmlNode *root)
{
  xmlNode *snapshots = add (root, "Snapshots", NULL);
  xmlNode *shot;

  add (snapshots, "TopGUID", DESCRIPTOR_TOP_GUID);
  shot = add (snapshots, "Shot", NULL);
  add (shot, "GUID", DESCRIPTOR_TOP_GUID);
  add (shot, "ParentGUID", DESCRIPTOR_NO_GUID);
}

static char *
print (const struct ploop_info *info, const char *name,
       enum ploop_create_space space)
{
  xmlDoc *doc = xmlNewDoc ((const xmlChar *) "1.0");
  xmlNode *root = xmlNewNode (NULL, (const xmlChar *) "Parallels_disk_image");
  xmlChar *text = NULL;
  char *printed;
  int size;

  xmlDocSetRootElement (doc, root);
  add_parameters (root, info);
  add_storage (root, info, name, space);
  add_snapshots (root);
  xmlDocDumpFormatMemory (doc, &text, &size, 1);
  printed = g_strdup ((const char *) text);
  xmlFree (text);
  xmlFreeDoc (doc);
  return printed;
}

/* ---- The file ---------------------------------------------------------- */

/* Everybody may read it, as far as the umask lets them.  Returns 0 or a negative
 * errno.
 */
static int
write_beside (int directory_fd, const char *name, const char *text)
{
  const int fd = openat (directory_fd, name, O_WRONLY | O_CREAT | O_EXCL
                         | O_NOFOLLOW | O_CLOEXEC, 0644);
  const size_t length = strlen (text);
  ssize_t n;
  int r = 0;

  if (fd == -1)
    return -errno;
  do
    n = write (fd, text, length);
  while (n == -1 && errno == EINTR);
  if (n != (ssize_t) length)
    r = n == -1 ? -errno : -ENOSPC;
  if (r == 0 && fsync (fd) == -1)
    r = -errno;
  close (fd);
  return r;
}

/* Two may be made at once: one of them is. */
static int
write_file (int directory_fd, const char *text)
{
  g_autofree char *beside =
    g_strdup_printf (".%s.%08x", DESCRIPTOR_FILE_NAME, g_random_int ());
  int r = write_beside (directory_fd, beside, text);

  if (r == 0
      && renameat2 (directory_fd, beside, directory_fd, DESCRIPTOR_FILE_NAME,
                    RENAME_NOREPLACE) == -1)
    r = -errno;
  if (r < 0) {
    unlinkat (directory_fd, beside, 0);
    return r;
  }
  r = replace_sync (directory_fd);
  if (r == 0 || r == -EINVAL)
    return 0;
  /* The caller may take the image back, which nothing is to name then. */
  unlinkat (directory_fd, DESCRIPTOR_FILE_NAME, 0);
  return r;
}

int
descriptor_new_write (const char *image, enum ploop_create_space space,
                      GError **error)
{
  g_autofree char *path = resolve (image);
  g_autofree char *directory = g_path_get_dirname (path);
  g_autofree char *name = g_path_get_basename (path);
  g_autofree char *text = NULL;
  struct ploop_info info;
  int fd, r;

  if (ploop_get_info (path, &info, error) == -1)
    return -1;
  text = print (&info, name, space);
  fd = open (directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
  r = fd == -1 ? -errno : write_file (fd, text);
  if (fd >= 0)
    close (fd);
  if (r == 0)
    return 0;
  error_set_system (error, r, "%s/%s: cannot be written", directory,
                    DESCRIPTOR_FILE_NAME);
  return -1;
}
