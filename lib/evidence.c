/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Looking at files: see evidence.h.
 *
 * An old descriptor may be cut off, or overwritten in part: no parser takes it.  Its
 * elements are found by their text, each pair of GUID and file, and of GUID and parent,
 * by itself.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "bat.h"
#include "delta.h"
#include "evidence.h"

#define NO_GUID "{00000000-0000-0000-0000-000000000000}"

/* How much of a raw disk is looked at. */
#define LOOK_BYTES (68u << 10)

void
evidence_free (struct evidence *evidence)
{
  if (!evidence)
    return;
  g_free (evidence->name);
  g_free (evidence->sign);
  g_free (evidence);
}

static void
free_evidence (gpointer opaque)
{
  evidence_free (opaque);
}

/* ---- Names ------------------------------------------------------------- */

char *
evidence_name_guid (const char *name)
{
  const size_t length = strlen (name);

  return length > 38 && name[length - 38] == '{'
           ? descriptor_normalise_guid (name + length - 38) : NULL;
}

bool
evidence_is_named_after (const char *name, const char *base)
{
  const size_t length = strlen (base);
  g_autofree char *guid = evidence_name_guid (name);

  return guid && strlen (name) == length + 39 && name[length] == '.'
         && strncmp (name, base, length) == 0;
}

/* Lock files, copies that were not finished, indices of conversions, descriptors. */
static bool
is_left_behind (const char *name)
{
  static const char *const endings[] = {
    ".lck", ".part", ".idx", ".xml", ".bak", ".map",
  };

  for (size_t i = 0; i < G_N_ELEMENTS (endings); i++)
    if (g_str_has_suffix (name, endings[i]))
      return true;
  return name[0] == '.';
}

/* ---- Raw disks --------------------------------------------------------- */

/* What a disk begins with. */
static const struct {
  uint32_t offset;
  const char *bytes;
  uint32_t length;
  const char *text;
} signs[] = {
  { 512, "EFI PART", 8, "a GUID partition table" },
  { 1080, "\x53\xef", 2, "an ext2, ext3 or ext4 file system" },
  { 0, "XFSB", 4, "an XFS file system" },
  { 65600, "_BHRfS_M", 8, "a btrfs file system" },
  { 3, "NTFS    ", 8, "an NTFS file system" },
  { 512, "LABELONE", 8, "an LVM volume" },
  { 0, "LUKS\xba\xbe", 6, "a LUKS volume" },
  { 4086, "SWAPSPACE2", 10, "swap space" },
  { 510, "\x55\xaa", 2, "a partition table or boot sector" },
};

static void
look_at_raw (struct evidence *evidence, int fd)
{
  g_autofree uint8_t *bytes = g_malloc0 (LOOK_BYTES);
  const uint64_t size = (uint64_t) evidence->st.st_size;

  if (size == 0 || size % FORMAT_SECTOR_SIZE != 0
      || pread (fd, bytes, LOOK_BYTES, 0) == -1)
    return;
  evidence->kind = EVIDENCE_RAW;
  evidence->size_sectors = size / FORMAT_SECTOR_SIZE;
  for (size_t i = 0; i < G_N_ELEMENTS (signs) && !evidence->sign; i++)
    if (memcmp (bytes + signs[i].offset, signs[i].bytes, signs[i].length) == 0)
      evidence->sign = g_strdup (signs[i].text);
}

/* ---- Images ------------------------------------------------------------ */

static void
look_at_image (struct evidence *evidence, const char *path)
{
  const struct bat_visitor count_only = { .opaque = NULL };
  g_autoptr (GError) error = NULL;
  struct delta *delta = delta_open (path, DELTA_LOCK_NONE, &error);
  struct bat_summary summary = { 0 };

  if (!delta || bat_scan (delta, &count_only, &summary, &error) == -1) {
    evidence->kind = EVIDENCE_DAMAGED;
    evidence->sign = g_strdup (error->message);
  }
  else {
    evidence->kind = EVIDENCE_IMAGE;
    evidence->size_sectors = delta->header.size_sectors;
    evidence->cluster_sectors = delta->header.cluster_sectors;
    evidence->version = delta->header.version;
    evidence->nr_allocated = summary.nr_allocated;
    evidence->is_in_use = format_is_dirty (delta->header.in_use);
  }
  delta_close (delta);
}

static void
look_at_times (struct evidence *evidence, int fd)
{
  struct statx stx;

  evidence->changed_ns =
    evidence->st.st_mtim.tv_sec * INT64_C (1000000000)
    + evidence->st.st_mtim.tv_nsec;
  if (statx (fd, "", AT_EMPTY_PATH, STATX_BTIME, &stx) == 0
      && (stx.stx_mask & STATX_BTIME))
    evidence->born_ns =
      stx.stx_btime.tv_sec * INT64_C (1000000000) + stx.stx_btime.tv_nsec;
}

/* Does the file open at FD begin as an image does? */
static bool
has_signature (int fd)
{
  uint8_t bytes[FORMAT_HEADER_SIZE];
  struct format_header header;

  return pread (fd, bytes, sizeof bytes, 0) == (ssize_t) sizeof bytes
         && format_decode_header (bytes, &header);
}

struct evidence *
evidence_look (int directory_fd, const char *directory, const char *name)
{
  struct evidence *evidence = g_new0 (struct evidence, 1);
  g_autofree char *path = g_build_filename (directory, name, NULL);
  const int fd = openat (directory_fd, name,
                         O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY
                           | O_CLOEXEC);

  evidence->name = g_strdup (name);
  if (fd == -1 || fstat (fd, &evidence->st) == -1) {
    evidence->kind = EVIDENCE_DAMAGED;
    evidence->sign = g_strdup_printf ("%s: %s", path, g_strerror (errno));
  }
  else if (S_ISREG (evidence->st.st_mode)) {
    look_at_times (evidence, fd);
    if (has_signature (fd))
      look_at_image (evidence, path);
    else
      look_at_raw (evidence, fd);
  }
  if (fd != -1)
    close (fd);
  return evidence;
}

static gint
compare_names (gconstpointer a, gconstpointer b)
{
  const struct evidence *const *left = a, *const *right = b;

  return strcmp ((*left)->name, (*right)->name);
}

/* Directories, links and the like are no part of a disk. */
static bool
is_regular (int directory_fd, const char *name)
{
  struct stat st;

  return fstatat (directory_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0
         && S_ISREG (st.st_mode);
}

GPtrArray *
evidence_collect (int directory_fd, const char *directory, GError **error)
{
  GPtrArray *list;
  const struct dirent *entry;
  const int fd = openat (directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *stream = fd == -1 ? NULL : fdopendir (fd);

  if (!stream) {
    error_set_system (error, errno, "%s: cannot be read", directory);
    if (fd != -1)
      close (fd);
    return NULL;
  }
  list = g_ptr_array_new_with_free_func (free_evidence);
  while ((entry = readdir (stream)))
    if (!is_left_behind (entry->d_name)
        && is_regular (directory_fd, entry->d_name))
      g_ptr_array_add (list,
                       evidence_look (directory_fd, directory, entry->d_name));
  closedir (stream);
  g_ptr_array_sort (list, compare_names);
  return list;
}

/* ---- What is left of a descriptor -------------------------------------- */

#define GUID_PATTERN "\\s*(\\{?[0-9A-Fa-f-]{36}\\}?)\\s*"

static void
free_relic_image (gpointer opaque)
{
  struct relic_image *image = opaque;

  g_free (image->guid);
  g_free (image->file);
  g_free (image);
}

static void
free_relic_shot (gpointer opaque)
{
  struct relic_shot *shot = opaque;

  g_free (shot->guid);
  g_free (shot->parent);
  g_free (shot->marker);
  g_free (shot);
}

/* The text of match number I as a GUID, normalised; or NULL. */
static char *
fetch_guid (const GMatchInfo *match, int i)
{
  g_autofree char *text = g_match_info_fetch (match, i);

  return descriptor_normalise_guid (text);
}

/* As XML has it (g_free); &amp; last, so that nothing is decoded twice. */
static char *
decode_text (const char *text)
{
  static const char *const entities[][2] = {
    { "&lt;", "<" }, { "&gt;", ">" }, { "&quot;", "\"" }, { "&apos;", "'" },
    { "&amp;", "&" },
  };
  GString *decoded = g_string_new (text);

  for (size_t i = 0; i < G_N_ELEMENTS (entities); i++)
    g_string_replace (decoded, entities[i][0], entities[i][1], 0);
  return g_string_free (decoded, FALSE);
}

static void
take_image (struct relics *relics, const GMatchInfo *match)
{
  struct relic_image *image = g_new0 (struct relic_image, 1);
  g_autofree char *text = g_match_info_fetch (match, 2);
  g_autofree char *file = decode_text (g_strstrip (text));

  image->guid = fetch_guid (match, 1);
  image->file = g_path_get_basename (file);
  if (!image->guid) {
    free_relic_image (image);
    return;
  }
  g_ptr_array_add (relics->images, image);
  if (!g_hash_table_contains (relics->file_of, image->guid))
    g_hash_table_insert (relics->file_of, image->guid, image->file);
  if (!g_hash_table_contains (relics->guid_of, image->file))
    g_hash_table_insert (relics->guid_of, image->file, image->guid);
}

static void
take_shot (struct relics *relics, const GMatchInfo *match)
{
  struct relic_shot *shot = g_new0 (struct relic_shot, 1);

  shot->guid = fetch_guid (match, 1);
  shot->parent = fetch_guid (match, 2);
  shot->marker = g_match_info_fetch (match, 3);
  if (!shot->guid || !shot->parent) {
    free_relic_shot (shot);
    return;
  }
  if (strcmp (shot->parent, NO_GUID) == 0)
    g_clear_pointer (&shot->parent, g_free);
  if (shot->marker && !*shot->marker)
    g_clear_pointer (&shot->marker, g_free);
  g_ptr_array_add (relics->shots, shot);
}

static void
take_top (struct relics *relics, const GMatchInfo *match)
{
  g_free (relics->top_guid);
  relics->top_guid = fetch_guid (match, 1);
}

static void
find_all (struct relics *relics, const char *pattern, const char *text,
          void (*take) (struct relics *, const GMatchInfo *))
{
  /* RAW: else all of the text is looked at for UTF-8 again with each match. */
  g_autoptr (GRegex) regex =
    g_regex_new (pattern, G_REGEX_DOTALL | G_REGEX_RAW, 0, NULL);
  g_autoptr (GMatchInfo) match = NULL;

  for (g_regex_match (regex, text, 0, &match); g_match_info_matches (match);
       g_match_info_next (match, NULL))
    take (relics, match);
}

static void
read_text (struct relics *relics, const char *text)
{
  relics->is_virtuozzo = strstr (text, "<Virtuozzo_disk_image") != NULL;
  find_all (relics,
            "<GUID>" GUID_PATTERN "</GUID>(?:\\s*<Type>[^<]*</Type>)?"
            "\\s*<File>([^<]+)</File>", text, take_image);
  find_all (relics,
            "<GUID>" GUID_PATTERN "</GUID>\\s*<ParentGUID>" GUID_PATTERN
            "</ParentGUID>(?:\\s*<(Temporary(?:ZeroSwap|Zero)?)\\s*/>)?",
            text, take_shot);
  find_all (relics, "<TopGUID>" GUID_PATTERN "</TopGUID>", text, take_top);
}

void
relics_read (struct relics *relics, int directory_fd)
{
  const int fd = openat (directory_fd, DESCRIPTOR_FILE_NAME,
                         O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  struct stat st;
  g_autofree char *bytes = NULL, *text = NULL;
  ssize_t n;

  *relics = (struct relics) {
    .is_there = faccessat (directory_fd, DESCRIPTOR_FILE_NAME, F_OK,
                           AT_SYMLINK_NOFOLLOW) == 0,
    .images = g_ptr_array_new_with_free_func (free_relic_image),
    .shots = g_ptr_array_new_with_free_func (free_relic_shot),
    .file_of = g_hash_table_new (g_str_hash, g_str_equal),
    .guid_of = g_hash_table_new (g_str_hash, g_str_equal),
  };
  if (fd == -1)
    return;
  if (fstat (fd, &st) == 0 && S_ISREG (st.st_mode)) {
    bytes = g_malloc0 (DESCRIPTOR_MAX_SIZE + 1);
    n = pread (fd, bytes, DESCRIPTOR_MAX_SIZE, 0);
    /* A NUL in the middle ends no text here. */
    text = g_utf8_make_valid (bytes, MAX (n, 0));
    read_text (relics, text);
  }
  close (fd);
}

void
relics_clear (struct relics *relics)
{
  g_free (relics->top_guid);
  g_hash_table_unref (relics->file_of);
  g_hash_table_unref (relics->guid_of);
  g_ptr_array_unref (relics->images);
  g_ptr_array_unref (relics->shots);
}

const char *
relics_find_guid (const struct relics *relics, const char *name)
{
  return g_hash_table_lookup (relics->guid_of, name);
}

const char *
relics_find_file (const struct relics *relics, const char *guid)
{
  return g_hash_table_lookup (relics->file_of, guid);
}
