/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/descriptor.c, with xml.c and beneath.c under it: what ploop and Parallels
 * Desktop write, what a stranger may write, the files that it names, and that
 * storing loses nothing.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "descriptor.h"
#include "run.h"

#define G1 "{00000001-1111-2222-3333-444444444444}"
#define G2 "{00000002-1111-2222-3333-444444444444}"
#define G3 "{00000003-1111-2222-3333-444444444444}"
#define TOP DESCRIPTOR_TOP_GUID
#define NONE "{00000000-0000-0000-0000-000000000000}"

#define IMAGE(guid, file)                                                     \
  "      <Image>\n"                                                           \
  "        <GUID>" guid "</GUID>\n"                                           \
  "        <Type>Compressed</Type>\n"                                         \
  "        <File>" file "</File>\n"                                           \
  "      </Image>\n"
#define SHOT(guid, parent)                                                    \
  "    <Shot>\n"                                                              \
  "      <GUID>" guid "</GUID>\n"                                             \
  "      <ParentGUID>" parent "</ParentGUID>\n"                               \
  "    </Shot>\n"
#define STORAGE(start, end, images)                                           \
  "    <Storage>\n"                                                           \
  "      <Start>" start "</Start>\n"                                          \
  "      <End>" end "</End>\n"                                                \
  "      <Blocksize>64</Blocksize>\n"                                         \
  images                                                                      \
  "    </Storage>\n"
#define TOP_GUID(guid) "    <TopGUID>" guid "</TopGUID>\n"
#define DOC(storages, snapshots)                                              \
  "<?xml version=\"1.0\"?>\n"                                                 \
  "<Parallels_disk_image>\n"                                                  \
  "  <Disk_Parameters>\n"                                                     \
  "    <Disk_size>16384</Disk_size>\n"                                        \
  "    <Heads>16</Heads>\n"                                                   \
  "  </Disk_Parameters>\n"                                                    \
  "  <StorageData>\n"                                                         \
  storages                                                                    \
  "  </StorageData>\n"                                                        \
  "  <Snapshots>\n"                                                           \
  snapshots                                                                   \
  "  </Snapshots>\n"                                                          \
  "</Parallels_disk_image>\n"

/* One image; and a tree: G1 with the leaves G2 and TOP. */
static const char one[] =
  DOC (STORAGE ("0", "16384", IMAGE (TOP, "root.hds")),
       TOP_GUID (TOP) SHOT (TOP, NONE));
static const char tree[] =
  DOC (STORAGE ("0", "16384", IMAGE (G1, "root.hds") IMAGE (G2, "g2.hds")
                IMAGE (TOP, "top.hds")),
       TOP_GUID (TOP) SHOT (G1, NONE) SHOT (G2, G1) SHOT (TOP, G1));

/* ---- System calls that fail -------------------------------------------- */

static bool no_openat2;
static const char *failing;     /* the name of a call; NULL: none */

long __real_syscall (long number, ...);
long __wrap_syscall (long number, ...);
ssize_t __real_write (int fd, const void *buf, size_t length);
ssize_t __wrap_write (int fd, const void *buf, size_t length);
int __real_fsync (int fd);
int __wrap_fsync (int fd);
int __real_renameat (int old_fd, const char *old, int new_fd, const char *new);
int __wrap_renameat (int old_fd, const char *old, int new_fd, const char *new);

long
__wrap_syscall (long number, ...)
{
  long args[6];
  va_list list;

  va_start (list, number);
  for (int i = 0; i < 6; i++)
    args[i] = va_arg (list, long);
  va_end (list);
#ifdef SYS_openat2
  if (number == SYS_openat2 && no_openat2) {
    errno = ENOSYS;
    return -1;
  }
#endif
  return __real_syscall (number, args[0], args[1], args[2], args[3], args[4],
                         args[5]);
}

static bool
fails (const char *call)
{
  errno = ENOSPC;
  return failing && strcmp (call, failing) == 0;
}

/* Short writes, else. */
ssize_t
__wrap_write (int fd, const void *buf, size_t length)
{
  return fails ("write") ? -1 : __real_write (fd, buf, MIN (length, 100));
}

int
__wrap_fsync (int fd)
{
  struct stat st;

  if (fstat (fd, &st) == 0
      && fails (S_ISDIR (st.st_mode) ? "fsync directory" : "fsync"))
    return -1;
  return __real_fsync (fd);
}

int
__wrap_renameat (int old_fd, const char *old, int new_fd, const char *new)
{
  return fails ("renameat") ? -1
                            : __real_renameat (old_fd, old, new_fd, new);
}

/* ---- A directory for each test ----------------------------------------- */

static char *outer, *directory, *xml;

static char *
put (const char *name, const char *text)
{
  char *path = g_build_filename (directory, name, NULL);

  ck_assert (g_file_set_contents (path, text, -1, NULL));
  return path;
}

static void
make_directory (void)
{
  g_autofree char *tmp = g_dir_make_tmp ("ploop-descriptor-XXXXXX", NULL);
  char *real = realpath (tmp, NULL);

  outer = g_strdup (real);
  free (real);
  directory = g_build_filename (outer, "disk", NULL);
  xml = g_build_filename (directory, "DiskDescriptor.xml", NULL);
  ck_assert_int_eq (mkdir (directory, 0700), 0);
  no_openat2 = false;
  failing = NULL;
}

static int
remove_one (const char *path, const struct stat *st, int type,
            struct FTW *where)
{
  (void) st;
  (void) type;
  (void) where;
  return remove (path);
}

static void
remove_directory (void)
{
  nftw (outer, remove_one, 10, FTW_DEPTH | FTW_PHYS);
  g_free (outer);
  g_free (directory);
  g_free (xml);
}

/* ---- Loading ----------------------------------------------------------- */

/* TEXT with OLD, which must be there, replaced by NEW (g_free). */
static char *
with (const char *text, const char *old, const char *new)
{
  GString *string = g_string_new (text);

  ck_assert_uint_gt (g_string_replace (string, old, new, 0), 0);
  return g_string_free (string, FALSE);
}

static struct descriptor *
load (const char *text)
{
  g_autofree char *path = put ("DiskDescriptor.xml", text);
  g_autoptr (GError) error = NULL;
  struct descriptor *descriptor = descriptor_load (path, &error);

  ck_assert_msg (descriptor != NULL, "%s", error ? error->message : "");
  return descriptor;
}

static struct descriptor *
load_with (const char *text, const char *old, const char *new)
{
  g_autofree char *changed = with (text, old, new);

  return load (changed);
}

static void
expect_error (const GError *error, enum ploop_error code, const char *words)
{
  ck_assert_ptr_nonnull (error);
  ck_assert_msg (strstr (error->message, words) != NULL, "%s",
                 error->message);
  ck_assert_msg (g_error_matches (error, PLOOP_ERROR, (int) code), "%s",
                 error->message);
  ck_assert (g_str_has_prefix (error->message, outer));
}

static void
refuse_bytes (const char *text, gssize length, enum ploop_error code,
              const char *words)
{
  g_autoptr (GError) error = NULL;

  ck_assert (g_file_set_contents (xml, text, length, NULL));
  ck_assert_ptr_null (descriptor_load (xml, &error));
  expect_error (error, code, words);
}

static void
refuse (const char *text, const char *words)
{
  refuse_bytes (text, -1, PLOOP_ERROR_CORRUPT, words);
}

static void
refuse_with (const char *old, const char *new, const char *words)
{
  g_autofree char *changed = with (one, old, new);

  refuse (changed, words);
}

/* Not a descriptor at all. */
static void
refuse_file (const char *text, const char *words)
{
  refuse_bytes (text, -1, PLOOP_ERROR_FORMAT, words);
}

static const struct descriptor_storage *
storage_of (const struct descriptor *descriptor, guint i)
{
  ck_assert_uint_lt (i, descriptor->storages->len);
  return g_ptr_array_index (descriptor->storages, i);
}

static const struct descriptor_image *
image_of (const struct descriptor *descriptor, guint i)
{
  return g_ptr_array_index (storage_of (descriptor, 0)->images, i);
}

static const struct descriptor_shot *
shot_of (const struct descriptor *descriptor, guint i)
{
  ck_assert_uint_lt (i, descriptor->shots->len);
  return g_ptr_array_index (descriptor->shots, i);
}

START_TEST (one_image_is_read)
{
  g_autoptr (Descriptor) d = load (one);

  ck_assert_str_eq (d->path, xml);
  ck_assert_str_eq (d->directory, directory);
  ck_assert_uint_eq (d->size_sectors, 16384);
  ck_assert_uint_eq (d->storages->len, 1);
  ck_assert_uint_eq (storage_of (d, 0)->start_sectors, 0);
  ck_assert_uint_eq (storage_of (d, 0)->end_sectors, 16384);
  ck_assert_uint_eq (storage_of (d, 0)->cluster_sectors, 64);
  ck_assert_uint_eq (storage_of (d, 0)->images->len, 1);
  ck_assert_str_eq (image_of (d, 0)->guid, TOP);
  ck_assert_str_eq (image_of (d, 0)->file, "root.hds");
  ck_assert (!image_of (d, 0)->is_plain);
  ck_assert_uint_eq (d->shots->len, 1);
  ck_assert_str_eq (shot_of (d, 0)->guid, TOP);
  ck_assert_ptr_null (shot_of (d, 0)->parent_guid);
  ck_assert_str_eq (d->top_guid, TOP);
}
END_TEST

START_TEST (links_lead_to_the_directory_of_the_file)
{
  g_autoptr (Descriptor) first = load (one), second = NULL;
  g_autofree char *link = g_build_filename (outer, "link.xml", NULL);

  ck_assert_int_eq (symlink ("disk/DiskDescriptor.xml", link), 0);
  second = descriptor_load (link, NULL);
  ck_assert_ptr_nonnull (second);
  ck_assert_str_eq (second->path, xml);
  ck_assert_str_eq (second->directory, directory);
}
END_TEST

START_TEST (both_root_elements_are_known_and_no_other)
{
  g_autofree char *virtuozzo =
    with (one, "Parallels_disk_image", "Virtuozzo_disk_image");
  g_autofree char *other = with (one, "Parallels_disk_image", "html");

  descriptor_free (load (virtuozzo));
  refuse_file (other, "root element is 'html'");
}
END_TEST

START_TEST (type_is_a_hint)
{
  g_autoptr (Descriptor) plain =
    load_with (one, "<Type>Compressed</Type>", "<Type>Plain</Type>");
  g_autoptr (Descriptor) none =
    load_with (one, "<Type>Compressed</Type>", "");

  ck_assert (image_of (plain, 0)->is_plain);
  ck_assert (!image_of (none, 0)->is_plain);
  refuse_with ("Compressed", "Zipped", "line 14: <Type> is 'Zipped'");
}
END_TEST

START_TEST (numbers_are_decimal_or_hexadecimal)
{
  static const struct { const char *text; uint64_t value; } good[] = {
    { "16384", 16384 }, { "0x4000", 0x4000 }, { "0XfF", 255 },
    { "\n\t 77 ", 77 }, { "00012", 12 },
    { "<![CDATA[12]]>", 12 }, { "1<!-- one -->2", 12 }, { "&#49;2", 12 },
  };
  static const char *const bad[] = {
    "", " ", "0", "-1", "+1", "1 2", "12a", "a", "0x", "0x0x1", "0xg", "1.5",
    "1e3", "18014398509481984", "18446744073709551616",
    "0xffffffffffffffffffff",
  };

  for (size_t i = 0; i < G_N_ELEMENTS (good); i++) {
    g_autofree char *size =
      g_strdup_printf ("<Disk_size>%s</Disk_size>", good[i].text);
    g_autoptr (Descriptor) d =
      load_with (one, "<Disk_size>16384</Disk_size>", size);

    ck_assert_uint_eq (d->size_sectors, good[i].value);
  }
  for (size_t i = 0; i < G_N_ELEMENTS (bad); i++) {
    g_autofree char *size =
      g_strdup_printf ("<Disk_size>%s</Disk_size>", bad[i]);
    g_autofree char *trimmed = g_strstrip (g_strdup (bad[i]));
    g_autofree char *words =
      g_strdup_printf ("line 4: <Disk_size> is '%s', must be a number",
                       trimmed);

    refuse_with ("<Disk_size>16384</Disk_size>", size, words);
  }
}
END_TEST

START_TEST (every_number_is_judged)
{
  refuse_with ("<Start>0<", "<Start>x<", "line 9: <Start> is 'x'");
  refuse_with ("<End>16384<", "<End>0<", "line 10: <End> is '0'");
  refuse_with ("<End>16384<", "<End>0x7fffffffffffffff<",
               "<End> is '0x7fffffffffffffff'");
  refuse_with ("<Blocksize>64<", "<Blocksize>0<",
               "line 11: <Blocksize> is '0'");
  refuse_with ("<Blocksize>64<", "<Blocksize>4294967360<",
               "<Blocksize> is '4294967360'");
  descriptor_free (load_with (one, "<Blocksize>64<", "<Blocksize>63<"));
}
END_TEST

START_TEST (missing_and_doubled_elements_are_named)
{
  static const char *const needed[] = {
    "Disk_Parameters", "Disk_size", "StorageData", "Storage", "Start", "End",
    "Blocksize", "Image", "File", "ParentGUID",
  };

  for (size_t i = 0; i < G_N_ELEMENTS (needed); i++) {
    g_autofree char *open = g_strdup_printf ("<%s>", needed[i]);
    g_autofree char *close = g_strdup_printf ("</%s>", needed[i]);
    g_autofree char *words = g_strdup_printf ("has no <%s>", needed[i]);
    g_autofree char *half = with (one, open, "<Unknown>");
    g_autofree char *whole = with (half, close, "</Unknown>");

    refuse (whole, words);
  }
  refuse_with ("<GUID>" TOP "</GUID>\n        <Type>", "<Type>",
               "line 12: <Image> has no <GUID>");
  refuse_with ("<File>", "<File>x</File><File>", "<File> is there for the "
               "second time in <Image>, after line 15");
  refuse_with ("<TopGUID>", "<TopGUID>x</TopGUID><TopGUID>",
               "<TopGUID> is there for the second time");
  refuse_with ("</Parallels", "<Snapshots/></Parallels",
               "<Snapshots> is there for the second time");
  refuse_with ("root.hds", "<b>root.hds</b>", "<File> contains <b>");
  refuse_with ("root.hds", " ", "<File> is ''");
}
END_TEST

START_TEST (elements_are_found_in_any_namespace)
{
  g_autofree char *plain =
    with (one, "<Parallels_disk_image>", "<Parallels_disk_image xmlns='u:x'>");
  g_autofree char *open = with (one, "<", "<p:");
  g_autofree char *close = with (open, "<p:/", "</p:");
  g_autofree char *first = with (close, "<p:?xml", "<?xml");
  g_autofree char *prefixed =
    with (first, "<p:Parallels_disk_image>",
          "<p:Parallels_disk_image xmlns:p='u:x'>");

  descriptor_free (load (plain));
  descriptor_free (load (prefixed));
}
END_TEST

/* ---- GUIDs ------------------------------------------------------------- */

START_TEST (guids_are_normalised)
{
  static const char *const good[] = {
    TOP, "{5FBAABE3-6958-40FF-92A7-860E329AAB41}",
    "5fbaabe3-6958-40ff-92a7-860e329aab41",
    "5FBAABE3-6958-40ff-92a7-860e329aab41",
  };
  static const char *const bad[] = {
    "", "{", "{}", "{xyz}", "{5fbaabe3-6958-40ff-92a7-860e329aab4}",
    "{5fbaabe3-6958-40ff-92a7-860e329aab411}",
    "{5fbaabe3-6958-40ff-92a7-860e329aab41",
    "5fbaabe3-6958-40ff-92a7-860e329aab41}",
    "(5fbaabe3-6958-40ff-92a7-860e329aab41)",
    "{5fbaabe3 6958-40ff-92a7-860e329aab41}",
    "{5fbaabe3-6958-40ff-92a7-860e329aab4g}",
    "{5fbaabe36958-40ff-92a7--860e329aab41}",
    " {5fbaabe3-6958-40ff-92a7-860e329aab41",
  };

  for (size_t i = 0; i < G_N_ELEMENTS (good); i++) {
    g_autofree char *guid = descriptor_normalise_guid (good[i]);

    ck_assert_str_eq (guid, TOP);
  }
  for (size_t i = 0; i < G_N_ELEMENTS (bad); i++)
    ck_assert_ptr_null (descriptor_normalise_guid (bad[i]));
}
END_TEST

START_TEST (bad_guids_are_named)
{
  refuse_with ("<GUID>" TOP, "<GUID>{xyz}", "line 13: <GUID> is '{xyz}'");
  refuse_with ("<TopGUID>" TOP, "<TopGUID>", "line 20: <TopGUID> is ''");
  refuse_with ("<ParentGUID>" NONE, "<ParentGUID>",
               "line 23: <ParentGUID> is ''");
  refuse_with ("<GUID>" TOP, "<GUID>" NONE, "which means none");
}
END_TEST

static void
expect_chain (const struct descriptor *descriptor, const char *guid,
              const char *files)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (GPtrArray) chain = descriptor_chain (descriptor, 0, guid, &error);
  g_autoptr (GString) found = g_string_new (NULL);

  ck_assert_msg (chain != NULL, "%s", error ? error->message : "");
  for (guint i = 0; i < chain->len; i++) {
    const struct descriptor_image *image = g_ptr_array_index (chain, i);

    g_string_append_printf (found, "%s%s", i ? " " : "", image->file);
  }
  ck_assert_str_eq (found->str, files);
}

static void
refuse_chain (const struct descriptor *descriptor, const char *guid,
              enum ploop_error code, const char *words)
{
  g_autoptr (GError) error = NULL;

  ck_assert_ptr_null (descriptor_chain (descriptor, 0, guid, &error));
  expect_error (error, code, words);
}

START_TEST (case_of_guids_does_not_matter)
{
  g_autoptr (Descriptor) d =
    load_with (tree, "<ParentGUID>" G1, "<ParentGUID>{00000001-1111-2222-"
               "3333-444444444444}");
  g_autoptr (Descriptor) upper =
    load_with (one, "<GUID>" TOP "</GUID>\n        <Type>",
               "<GUID>{5FBAABE3-6958-40FF-92A7-860E329AAB41}</GUID>"
               "\n        <Type>");

  expect_chain (upper, NULL, "root.hds");
  ck_assert (descriptor_is_top (d, "5FBAABE3-6958-40FF-92A7-860E329AAB41"));
  ck_assert (!descriptor_is_top (d, G1));
  ck_assert (!descriptor_is_top (d, "nothing"));
}
END_TEST

/* ---- Snapshots --------------------------------------------------------- */

START_TEST (tree_has_a_chain_for_each_snapshot)
{
  g_autoptr (Descriptor) d = load (tree);
  const struct descriptor_shot *shot = descriptor_find_shot (d, G2);

  expect_chain (d, NULL, "root.hds top.hds");
  expect_chain (d, TOP, "root.hds top.hds");
  expect_chain (d, G2, "root.hds g2.hds");
  expect_chain (d, "00000001-1111-2222-3333-444444444444", "root.hds");
  ck_assert_str_eq (shot->guid, G2);
  shot = descriptor_find_parent (d, shot);
  ck_assert_str_eq (shot->guid, G1);
  ck_assert_ptr_null (descriptor_find_parent (d, shot));
  ck_assert_ptr_null (descriptor_find_shot (d, G3));
}
END_TEST

START_TEST (missing_shots_are_the_only_image)
{
  g_autofree char *no_shots =
    with (one, SHOT (TOP, NONE), "");
  g_autofree char *nothing = with (no_shots, TOP_GUID (TOP), "");
  g_autofree char *no_snapshots =
    with (nothing, "  <Snapshots>\n  </Snapshots>\n", "");
  g_autofree char *other = with (no_snapshots, TOP, G1);
  const char *const texts[] = { no_shots, nothing, no_snapshots };
  g_autoptr (Descriptor) d = load (other);

  ck_assert_str_eq (d->top_guid, G1);
  expect_chain (d, NULL, "root.hds");
  for (size_t i = 0; i < G_N_ELEMENTS (texts); i++) {
    g_autoptr (Descriptor) same = load (texts[i]);

    ck_assert_uint_eq (same->shots->len, 1);
    ck_assert_str_eq (same->top_guid, TOP);
    expect_chain (same, NULL, "root.hds");
  }
  refuse (DOC (STORAGE ("0", "16384", IMAGE (G1, "a") IMAGE (TOP, "b")), ""),
          "has no <Shot>");
  refuse (DOC (STORAGE ("0", "64", IMAGE (G1, "a"))
               STORAGE ("64", "128", IMAGE (TOP, "b")), ""), "has no <Shot>");
}
END_TEST

START_TEST (missing_top_is_the_default_or_the_only_leaf)
{
  g_autofree char *no_top = with (tree, TOP_GUID (TOP), "");
  g_autofree char *no_default = with (no_top, TOP, G3);
  g_autoptr (Descriptor) d = load (no_top);
  g_autoptr (Descriptor) line =
    load (DOC (STORAGE ("0", "64", IMAGE (G1, "a") IMAGE (G2, "b")),
               SHOT (G2, G1) SHOT (G1, NONE)));

  ck_assert_str_eq (d->top_guid, TOP);
  ck_assert_str_eq (line->top_guid, G2);
  expect_chain (line, NULL, "a b");
  refuse (no_default, "has no <TopGUID> in <Snapshots>, which must be one of "
          G2 ", " G3);
  refuse (DOC (STORAGE ("0", "64", IMAGE (G1, "a") IMAGE (G2, "b")),
               SHOT (G1, G2) SHOT (G2, G1)), "must be one of " G1 ", " G2);
}
END_TEST

START_TEST (old_style_top_is_taken_as_written)
{
  g_autofree char *old = with (tree, TOP, G3);
  g_autoptr (Descriptor) d = load (old);
  g_autoptr (Descriptor) switched =
    load_with (tree, TOP_GUID (TOP), TOP_GUID (G2));

  ck_assert_str_eq (d->top_guid, G3);
  expect_chain (d, NULL, "root.hds top.hds");
  expect_chain (switched, NULL, "root.hds g2.hds");
}
END_TEST

START_TEST (markers_of_temporary_snapshots_are_kept)
{
  static const char *const markers[] = {
    "Heads", "Temporary", "TemporaryZero", "TemporaryZeroSwap",
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (markers); i++) {
    g_autofree char *shot =
      g_strdup_printf ("</ParentGUID><%s/></Shot>", markers[i]);
    g_autoptr (Descriptor) d =
      load_with (one, "</ParentGUID>\n    </Shot>", shot);
    g_autofree char *text = NULL;

    ck_assert_uint_eq (shot_of (d, 0)->temporary, i);
    ck_assert (descriptor_store (d, NULL));
    ck_assert (g_file_get_contents (xml, &text, NULL, NULL));
    ck_assert_ptr_nonnull (strstr (text, shot));
  }
}
END_TEST

START_TEST (unknown_guids_are_told_the_known_ones)
{
  g_autoptr (Descriptor) d = load (tree);
  g_autoptr (Descriptor) no_top =
    load_with (tree, TOP_GUID (TOP), TOP_GUID (G3));

  refuse_chain (d, G3, PLOOP_ERROR_ARGUMENT, "no snapshot has the GUID '" G3
                "': give one of " G1 ", " G2 ", " TOP);
  refuse_chain (d, "x\n", PLOOP_ERROR_ARGUMENT,
                "no snapshot has the GUID 'x\\n'");
  refuse_chain (no_top, NULL, PLOOP_ERROR_CORRUPT, "<TopGUID> is '" G3
                "', which no <Shot> has: must be one of " G1);
  expect_chain (no_top, G2, "root.hds g2.hds");
}
END_TEST

START_TEST (cycles_are_refused)
{
  g_autoptr (Descriptor) itself =
    load_with (one, "<ParentGUID>" NONE, "<ParentGUID>" TOP);
  g_autoptr (Descriptor) round =
    load_with (tree, "<ParentGUID>" NONE, "<ParentGUID>" G2);

  refuse_chain (itself, NULL, PLOOP_ERROR_CORRUPT,
                "line 21: <Shot> of the GUID " TOP " is its own ancestor");
  refuse_chain (round, NULL, PLOOP_ERROR_CORRUPT, "is its own ancestor");
  refuse_chain (round, G2, PLOOP_ERROR_CORRUPT, "is its own ancestor");
}
END_TEST

START_TEST (missing_parents_and_images_are_named)
{
  g_autoptr (Descriptor) parent =
    load_with (tree, "<ParentGUID>" NONE, "<ParentGUID>" G3);
  g_autoptr (Descriptor) image = load_with (tree, IMAGE (G1, "root.hds"), "");

  refuse_chain (parent, NULL, PLOOP_ERROR_CORRUPT,
                "<Shot> of the GUID " G1 " has the <ParentGUID> " G3
                ", which no <Shot> has");
  refuse_chain (image, NULL, PLOOP_ERROR_CORRUPT,
                "no <Image> has the GUID " G1);
}
END_TEST

START_TEST (doubled_guids_are_refused)
{
  g_autoptr (Descriptor) image =
    load_with (tree, IMAGE (G2, "g2.hds"), IMAGE (G1, "g2.hds"));
  g_autoptr (Descriptor) shot = load_with (tree, SHOT (G2, G1), SHOT (G1, G2));

  refuse_chain (image, NULL, PLOOP_ERROR_CORRUPT,
                "line 17: <Image> has the GUID " G1 ", as one before it");
  refuse_chain (shot, NULL, PLOOP_ERROR_CORRUPT,
                "<Shot> has the GUID " G1 ", as one before it");
}
END_TEST

/* A chain of NR, the base first; the file of the last is top.hds (g_free). */
static char *
make_long (unsigned nr)
{
  g_autoptr (GString) images = g_string_new (NULL);
  g_autoptr (GString) shots = g_string_new (NULL);
  g_autofree char *half = NULL;

  for (unsigned i = 1; i <= nr; i++) {
    g_string_append_printf (
      images, IMAGE ("{%08x-1111-2222-3333-444444444444}", "%s"), i,
      i == nr ? "top.hds" : "lower.hds");
    g_string_append_printf (
      shots, SHOT ("{%08x-1111-2222-3333-444444444444}",
                   "{%08x-%s}"), i, i - 1,
      i == 1 ? "0000-0000-0000-000000000000" : "1111-2222-3333-444444444444");
  }
  half = with (one, IMAGE (TOP, "root.hds"), images->str);
  return with (half, TOP_GUID (TOP) SHOT (TOP, NONE), shots->str);
}

START_TEST (as_many_levels_as_the_kernel_has)
{
  g_autofree char *most = make_long (DESCRIPTOR_MAX_LEVELS);
  g_autofree char *more = make_long (DESCRIPTOR_MAX_LEVELS + 1);
  g_autoptr (Descriptor) d = load (most), too_long = load (more);
  g_autoptr (GPtrArray) chain = descriptor_chain (d, 0, NULL, NULL);
  const struct descriptor_image *top;

  ck_assert_uint_eq (chain->len, DESCRIPTOR_MAX_LEVELS);
  top = g_ptr_array_index (chain, DESCRIPTOR_MAX_LEVELS - 1);
  ck_assert_str_eq (top->file, "top.hds");
  refuse_chain (too_long, NULL, PLOOP_ERROR_CORRUPT,
                "has more than 253 levels over it: merge snapshots");
}
END_TEST

START_TEST (numbers_of_elements_are_limited)
{
  g_autofree char *most = make_long (4096);
  g_autofree char *more = make_long (4097);
  g_autoptr (GString) shots = g_string_new (NULL);
  g_autoptr (Descriptor) d = load (most);
  g_autofree char *doc = NULL;

  ck_assert_uint_eq (d->shots->len, 4096);
  refuse_chain (d, "{00001000-1111-2222-3333-444444444444}",
                PLOOP_ERROR_CORRUPT, "more than 253 levels");
  refuse (more, "<Image> is one more than the 4096");
  for (int i = 0; i < 4097; i++)
    g_string_append (shots, SHOT (G1, NONE));
  doc = with (one, SHOT (TOP, NONE), shots->str);
  refuse (doc, "<Shot> is one more than the 4096");
}
END_TEST

START_TEST (split_disk_has_several_storages)
{
  g_autoptr (Descriptor) d =
    load (DOC (STORAGE ("64", "16384", IMAGE (TOP, "s1.hds"))
               STORAGE ("0", "64", IMAGE (TOP, "s0.hds")),
               TOP_GUID (TOP) SHOT (TOP, NONE)));
  g_autoptr (GPtrArray) chain = descriptor_chain (d, 1, NULL, NULL);
  const struct descriptor_image *image = g_ptr_array_index (chain, 0);

  ck_assert_uint_eq (d->storages->len, 2);
  ck_assert_uint_eq (storage_of (d, 0)->end_sectors, 64);
  ck_assert_uint_eq (storage_of (d, 1)->start_sectors, 64);
  expect_chain (d, NULL, "s0.hds");
  ck_assert_str_eq (image->file, "s1.hds");

  refuse_with ("<Start>0<", "<Start>64<",
               "<Storage> has the <Start> 64, must be 0");
  refuse (DOC (STORAGE ("0", "64", IMAGE (TOP, "a"))
               STORAGE ("65", "128", IMAGE (TOP, "b")), ""),
          "has the <Start> 65, must be 64");
  refuse (DOC (STORAGE ("0", "64", IMAGE (TOP, "a"))
               STORAGE ("63", "128", IMAGE (TOP, "b")), ""),
          "has the <Start> 63, must be 64");
}
END_TEST

/* ---- Hostile bytes ----------------------------------------------------- */

START_TEST (dtd_and_entities_are_refused)
{
  g_autofree char *entity =
    with (one, "<Parallels_disk_image>",
          "<!DOCTYPE a [<!ENTITY f 'root.hds'>]><Parallels_disk_image>");
  g_autofree char *external =
    with (one, "<Parallels_disk_image>",
          "<!DOCTYPE a SYSTEM 'http://127.0.0.1:1/a'>"
          "<Parallels_disk_image>");
  g_autofree char *file =
    with (one, "<Parallels_disk_image>",
          "<!DOCTYPE a [<!ENTITY % f SYSTEM 'file:///etc/passwd'> %f;]>"
          "<Parallels_disk_image>");
  g_autofree char *used = with (entity, ">root.hds<", ">&f;<");
  g_autofree char *undefined = with (one, "root.hds", "&f;");
  const char *const texts[] = { entity, external, file, used };

  for (size_t i = 0; i < G_N_ELEMENTS (texts); i++)
    refuse_file (texts[i], "line 2: <!DOCTYPE> is not allowed");
  refuse_file (undefined, "line 15: not well-formed XML: Entity 'f' not");
}
END_TEST

START_TEST (a_billion_laughs_are_not_laughed)
{
  g_autoptr (GString) dtd = g_string_new ("<!DOCTYPE a [<!ENTITY l0 'lol'>");
  g_autofree char *start = NULL, *text = NULL;

  for (int i = 1; i < 20; i++) {
    g_string_append_printf (dtd, "<!ENTITY l%d '", i);
    for (int n = 0; n < 10; n++)
      g_string_append_printf (dtd, "&l%d;", i - 1);
    g_string_append (dtd, "'>");
  }
  g_string_append (dtd, "]>\n<Parallels_disk_image a='&l19;'>");
  start = with (one, "<Parallels_disk_image>", dtd->str);
  text = with (start, ">root.hds<", ">&l19;<");
  refuse_file (text, "<!DOCTYPE> is not allowed");
}
END_TEST

START_TEST (the_five_entities_are_characters)
{
  g_autoptr (Descriptor) d =
    load_with (one, "root.hds", "&lt;&amp;&gt;&quot;&apos;&#x20ac;.hds");

  ck_assert_str_eq (image_of (d, 0)->file, "<&>\"'\xe2\x82\xac.hds");
}
END_TEST

START_TEST (only_utf8_is_read)
{
  g_autofree char *declared =
    with (one, "version=\"1.0\"", "version=\"1.0\" encoding='utf-8'");
  g_autofree char *latin =
    with (one, "version=\"1.0\"", "version=\"1.0\" encoding = \"ISO-8859-1\"");
  g_autofree char *bom = g_strconcat ("\xef\xbb\xbf", one, NULL);
  g_autofree char *foreign_bom = g_strconcat ("\xef\xbb\xbf", latin, NULL);
  g_autofree char *bad = with (one, "root.hds", "r\xff.hds");
  g_autofree char *control = with (one, "root.hds", "r\x01.hds");

  descriptor_free (load (declared));
  descriptor_free (load (bom));
  refuse_file (latin, "declares encoding 'ISO-8859-1'");
  refuse_file (foreign_bom, "declares encoding 'ISO-8859-1'");
  refuse_file (bad, "is 0xff, which is not text in UTF-8");
  refuse_file (control, "line 15: not well-formed XML");
  refuse_bytes ("<\0P\0", 4, PLOOP_ERROR_FORMAT, "byte 1 is 0x00");
  refuse_bytes (one, sizeof one, PLOOP_ERROR_FORMAT, "is 0x00");
}
END_TEST

START_TEST (what_is_no_xml_is_told_with_its_line)
{
  g_autofree char *open = with (one, "  </Snapshots>\n", "");
  g_autofree char *cut = g_strndup (one, 400);
  g_autofree char *two = g_strconcat (one, "<a/>", NULL);

  refuse_file (open, "line 25: not well-formed XML: Opening and ending tag");
  refuse_file (cut, "not well-formed XML");
  refuse_file (two, "not well-formed XML");
  refuse_file ("", "not well-formed XML");
  refuse_file ("<?xml version='1.0'?>", "not well-formed XML");
  refuse_file ("WithoutFreeSpace", "not well-formed XML");
}
END_TEST

START_TEST (costly_documents_are_refused_soon)
{
  g_autoptr (GString) attributes = g_string_new ("<Parallels_disk_image");
  g_autoptr (GString) namespaces = g_string_new ("<Parallels_disk_image");
  g_autoptr (GString) deep = g_string_new ("");
  g_autoptr (GString) large = g_string_new (one);

  for (int i = 0; i < 100000; i++) {
    g_string_append_printf (attributes, " a%d=''", i);
    g_string_append_printf (namespaces, " xmlns:a%d='u'", i);
    g_string_append (deep, "<a>");
  }
  g_string_append (attributes, "/>");
  g_string_append (namespaces, "/>");
  refuse_file (attributes->str, "more than 100 attributes");
  refuse_file (namespaces->str, "64 namespaces");
  refuse_file (deep->str, "not well-formed XML: Excessive depth");

  descriptor_free (load_with (one, "</Start>",
                              "</Start><!-- decoration: '"
                              "===================================="
                              "===================================="
                              "====================================' -->"));
  while (large->len < DESCRIPTOR_MAX_SIZE)
    g_string_append_c (large, '\n');
  descriptor_free (load (large->str));
  g_string_append_c (large, '\n');
  refuse_file (large->str, "has 2097153 bytes, more than the 2097152");
}
END_TEST

START_TEST (long_and_strange_values_make_short_messages)
{
  g_autofree char *many = g_strnfill (100000, 'x');
  g_autofree char *size = g_strdup_printf ("<Disk_size>%s<", many);
  g_autofree char *text = with (one, "<Disk_size>16384<", size);
  g_autoptr (GError) error = NULL;
  g_autofree char *path = put ("DiskDescriptor.xml", text);

  ck_assert_ptr_null (descriptor_load (path, &error));
  expect_error (error, PLOOP_ERROR_CORRUPT, "xxx...'");
  ck_assert_uint_lt (strlen (error->message), 1000);
  refuse_with ("16384</Disk_size>", "1&#10;2</Disk_size>", "is '1\\n2'");
  refuse_with ("16384</Disk_size>", "\xc3\xa4</Disk_size>", "is '\xc3\xa4'");
}
END_TEST

START_TEST (only_regular_files_are_read)
{
  g_autofree char *fifo = g_build_filename (directory, "fifo", NULL);
  g_autofree char *none = g_build_filename (directory, "none", NULL);
  g_autoptr (GError) a = NULL, b = NULL, c = NULL;

  ck_assert_int_eq (mkfifo (fifo, 0600), 0);
  ck_assert_ptr_null (descriptor_load (fifo, &a));
  expect_error (a, PLOOP_ERROR_FORMAT, "is not a regular file");
  ck_assert_ptr_null (descriptor_load (directory, &b));
  expect_error (b, PLOOP_ERROR_FORMAT, "is a directory");
  ck_assert_ptr_null (descriptor_load (none, &c));
  expect_error (c, PLOOP_ERROR_SYSTEM, "cannot be found");
}
END_TEST

/* ---- Image files ------------------------------------------------------- */

/* Open what <File> with FILE names; NULL and ERROR, or where it is (g_free). */
static char *
open_file (const char *file, bool allow_outside, GError **error)
{
  g_autoptr (Descriptor) d = load_with (one, "root.hds", file);
  char *path = NULL;
  int fd = descriptor_open_file (d, image_of (d, 0), allow_outside, &path,
                                 error);
  struct stat st, same;

  if (fd == -1) {
    ck_assert_ptr_null (path);
    return NULL;
  }
  ck_assert_int_eq (fcntl (fd, F_GETFD), FD_CLOEXEC);
  ck_assert_int_eq (fcntl (fd, F_GETFL) & O_PATH, O_PATH);
  ck_assert_int_eq (fstat (fd, &st), 0);
  ck_assert_int_eq (lstat (path, &same), 0);
  ck_assert_uint_eq (st.st_ino, same.st_ino);
  close (fd);
  return path;
}

static void
expect_opened (const char *file, bool allow_outside, const char *expected)
{
  g_autoptr (GError) error = NULL;
  g_autofree char *path = open_file (file, allow_outside, &error);
  g_autofree char *whole = g_build_filename (outer, expected, NULL);

  ck_assert_msg (path != NULL, "%s", error ? error->message : "");
  ck_assert_str_eq (path, whole);
}

static void
expect_not_opened (const char *file, enum ploop_error code, const char *words)
{
  g_autoptr (GError) error = NULL;

  ck_assert_ptr_null (open_file (file, false, &error));
  expect_error (error, code, words);
  ck_assert_ptr_nonnull (strstr (error->message, "<File> is '"));
}

static void
link_in_directory (const char *target, const char *name)
{
  g_autofree char *path = g_build_filename (directory, name, NULL);

  ck_assert_int_eq (symlink (target, path), 0);
}

static void
make_files (void)
{
  g_autofree char *below = g_build_filename (directory, "below", NULL);
  g_autofree char *other = g_strconcat (directory, "-2", NULL);

  ck_assert_int_eq (mkdir (below, 0700), 0);
  ck_assert_int_eq (mkdir (other, 0700), 0);
  g_free (put ("in.hds", "in"));
  g_free (put ("below/in.hds", "in"));
  g_free (put ("../out.hds", "out"));
  g_free (put ("../disk-2/out.hds", "out"));
  link_in_directory ("in.hds", "to-in");
  link_in_directory ("below/../below/in.hds", "to-below");
  link_in_directory ("../out.hds", "to-out");
  link_in_directory ("to-out", "to-to-out");
  link_in_directory ("..", "up");
  link_in_directory ("round", "round");
  link_in_directory (outer, "absolute");
}

/* Once with the kernel's help, once without. */
START_TEST (image_files_are_confined)
{
  g_autofree char *inside = g_build_filename (directory, "in.hds", NULL);
  g_autofree char *outside = g_build_filename (outer, "out.hds", NULL);
  g_autofree char *beside = g_build_filename (outer, "disk-2/out.hds", NULL);
  const char *const outs[] = {
    "../out.hds", "below/../../out.hds", "to-out", "to-to-out", "up/out.hds",
"absolute/out.hds", "../disk-2/out.hds", outside, beside,
    "/etc/passwd", "/dev/null", "/proc/self/cwd", "..", "/",
    "/proc/self/exe", "below/../..",
  };

  no_openat2 = _i == 1;
  make_files ();
  expect_opened ("in.hds", false, "disk/in.hds");
  expect_opened (" in.hds\n", false, "disk/in.hds");
  expect_opened ("below/in.hds", false, "disk/below/in.hds");
  expect_opened ("below/../in.hds", false, "disk/in.hds");
  expect_opened ("to-in", false, "disk/in.hds");
  expect_opened ("to-below", false, "disk/below/in.hds");
  expect_opened (inside, false, "disk/in.hds");
  expect_opened ("../disk/in.hds", false, "disk/in.hds");
  expect_opened ("absolute/disk/below/in.hds", false, "disk/below/in.hds");
  expect_opened ("absolute/disk/to-in", false, "disk/in.hds");

  for (size_t i = 0; i < G_N_ELEMENTS (outs); i++)
    expect_not_opened (outs[i], PLOOP_ERROR_ARGUMENT,
                       "outside the directory of the descriptor: give "
                       "allow-outside=true if you trust it");
  expect_not_opened ("to-out", PLOOP_ERROR_ARGUMENT, outside);
}
END_TEST

START_TEST (allow_outside_opens_all)
{
  g_autofree char *outside = g_build_filename (outer, "out.hds", NULL);

  make_files ();
  expect_opened ("../out.hds", true, "out.hds");
  expect_opened ("to-to-out", true, "out.hds");
  expect_opened (outside, true, "out.hds");
  expect_opened ("in.hds", true, "disk/in.hds");
}
END_TEST

START_TEST (only_regular_files_are_opened)
{
  g_autofree char *fifo = g_build_filename (directory, "fifo", NULL);
  g_autofree char *long_name = g_strnfill (5000, 'x');

  no_openat2 = _i == 1;
  make_files ();
  ck_assert_int_eq (mkfifo (fifo, 0600), 0);
  expect_not_opened ("fifo", PLOOP_ERROR_FORMAT, "which is not a regular");
  expect_not_opened ("below", PLOOP_ERROR_FORMAT, "which is a directory");
  expect_not_opened ("none", PLOOP_ERROR_SYSTEM, "No such file");
  expect_not_opened ("in.hds/", PLOOP_ERROR_SYSTEM, "Not a directory");
  expect_not_opened ("round", PLOOP_ERROR_SYSTEM, "symbolic links");
  expect_not_opened (long_name, PLOOP_ERROR_SYSTEM, "too long");
}
END_TEST

/* ---- Storing ----------------------------------------------------------- */

static const char odd[] =
  "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n"
  "<?before yes?><!-- before -->\n"
  "<Parallels_disk_image xmlns:x=\"urn:x\" Version=\"1.0\" x:a=\"1 &lt; 2\">\n"
  "  <Disk_Parameters x:b='2'>\n"
  "    <Disk_size>32<!-- inside -->768</Disk_size>\n"
  "    <Padding>0</Padding><UID>{4cd6aa6e}</UID>"
  "<Name>r\xc3\xb6\xc3\xb6t</Name>\n"
  "    <x:Own deep=\"\"><Nothing/><![CDATA[<raw> & kept]]></x:Own>\n"
  "    <Encryption><Engine/><Data></Data></Encryption>\n"
  "  </Disk_Parameters>\n"
  "  <StorageData>\n"
  "    <Storage><Start>0</Start><End unit='sector'>32768</End>\n"
  "      <Blocksize>64</Blocksize>\n"
  "      <Image><GUID>" TOP "</GUID><File a='b'>a&amp;b.hds</File></Image>\n"
  "    </Storage>\n"
  "  </StorageData>\n"
  "  <Snapshots>\n"
  "    <Shot><GUID>" TOP "</GUID><ParentGUID>" NONE "</ParentGUID>\n"
  "      <Name>x &#13; y</Name></Shot>\n"
  "  </Snapshots>\n"
  "</Parallels_disk_image>\n"
  "<!-- after --><?after yes?>\n";

static char *
read_xml (void)
{
  char *text = NULL;

  ck_assert (g_file_get_contents (xml, &text, NULL, NULL));
  return text;
}

/* No other file is left in the directory. */
static void
expect_alone (void)
{
  g_autoptr (GDir) dir = g_dir_open (directory, 0, NULL);

  ck_assert_str_eq (g_dir_read_name (dir), "DiskDescriptor.xml");
  ck_assert_ptr_null (g_dir_read_name (dir));
}

START_TEST (unknown_elements_survive_storing)
{
  static const char *const kept[] = {
    "standalone=\"yes\"", "<?before yes?>", "<!-- before -->",
    "xmlns:x=\"urn:x\" Version=\"1.0\" x:a=\"1 &lt; 2\"", "x:b=\"2\"",
    "<UID>{4cd6aa6e}</UID><Name>r\xc3\xb6\xc3\xb6t</Name>",
    "<x:Own deep=\"\"><Nothing/><![CDATA[<raw> & kept]]></x:Own>",
    "<Data/>", "32<!-- inside -->768", "<End unit=\"sector\">32768</End>",
    "<File a=\"b\">a&amp;b.hds</File>", "x &#13; y", "<!-- after -->",
    "<?after yes?>",
  };
  g_autoptr (Descriptor) d = load (odd), again = NULL;
  g_autofree char *first = NULL, *second = NULL;

  ck_assert (descriptor_store (d, NULL));
  first = read_xml ();
  for (size_t i = 0; i < G_N_ELEMENTS (kept); i++)
    ck_assert_msg (strstr (first, kept[i]) != NULL, "%s: %s", kept[i], first);

  again = descriptor_load (xml, NULL);
  ck_assert_ptr_nonnull (again);
  ck_assert_str_eq (image_of (again, 0)->file, "a&b.hds");
  ck_assert (descriptor_store (again, NULL));
  second = read_xml ();
  ck_assert_str_eq (first, second);
}
END_TEST

START_TEST (what_ploop_wrote_is_stored_byte_for_byte)
{
  g_autoptr (Descriptor) d = load (tree);
  g_autofree char *text = NULL;
  g_autofree char *expected =
    with (tree, "\"1.0\"?>", "\"1.0\" encoding=\"UTF-8\"?>");

  ck_assert (descriptor_store (d, NULL));
  text = read_xml ();
  ck_assert_str_eq (text, expected);
}
END_TEST

START_TEST (size_is_changed_and_nothing_else)
{
  g_autoptr (Descriptor) d = load (tree), again = NULL;
  g_autofree char *text = NULL;
  g_autofree char *a =
    with (tree, "\"1.0\"?>", "\"1.0\" encoding=\"UTF-8\"?>");
  g_autofree char *expected = with (a, ">16384<", ">20480<");

  ck_assert (descriptor_set_size_sectors (d, 20480, NULL));
  ck_assert_uint_eq (d->size_sectors, 20480);
  ck_assert_uint_eq (storage_of (d, 0)->end_sectors, 20480);
  ck_assert (descriptor_store (d, NULL));
  text = read_xml ();
  ck_assert_str_eq (text, expected);
  again = descriptor_load (xml, NULL);
  ck_assert_uint_eq (again->size_sectors, 20480);
  ck_assert_uint_eq (storage_of (again, 0)->end_sectors, 20480);
}
END_TEST

START_TEST (size_in_an_element_with_more_than_text_is_changed)
{
  g_autoptr (Descriptor) d = load (odd), again = NULL;
  g_autofree char *text = NULL;

  ck_assert (descriptor_set_size_sectors (d, 99, NULL));
  ck_assert (descriptor_store (d, NULL));
  text = read_xml ();
  ck_assert_ptr_nonnull (strstr (text, "<End unit=\"sector\">99</End>"));
  ck_assert_ptr_nonnull (strstr (text, "<!-- inside -->"));
  again = descriptor_load (xml, NULL);
  ck_assert_uint_eq (again->size_sectors, 99);
}
END_TEST

START_TEST (size_of_a_split_disk_is_its_last_storage)
{
  g_autoptr (Descriptor) d =
    load (DOC (STORAGE ("64", "16384", IMAGE (TOP, "s1.hds"))
               STORAGE ("0", "64", IMAGE (TOP, "s0.hds")),
               TOP_GUID (TOP) SHOT (TOP, NONE)));
  g_autoptr (Descriptor) again = NULL;
  g_autoptr (GError) small = NULL, large = NULL;

  ck_assert (!descriptor_set_size_sectors (d, 64, &small));
  expect_error (small, PLOOP_ERROR_ARGUMENT,
                "<Disk_size> cannot become 64, must be from 65");
  ck_assert (!descriptor_set_size_sectors (d, UINT64_MAX, &large));
  expect_error (large, PLOOP_ERROR_ARGUMENT, "18446744073709551615");
  ck_assert_uint_eq (d->size_sectors, 16384);
  ck_assert (descriptor_set_size_sectors (d, 65, NULL));
  ck_assert (descriptor_store (d, NULL));
  again = descriptor_load (xml, NULL);
  ck_assert_uint_eq (storage_of (again, 0)->end_sectors, 64);
  ck_assert_uint_eq (storage_of (again, 1)->end_sectors, 65);
}
END_TEST

START_TEST (top_is_changed)
{
  g_autoptr (Descriptor) d = load (tree), again = NULL;
  g_autoptr (GError) error = NULL;
  g_autofree char *text = NULL;
  g_autofree char *a =
    with (tree, "\"1.0\"?>", "\"1.0\" encoding=\"UTF-8\"?>");
  g_autofree char *expected = with (a, "<TopGUID>" TOP, "<TopGUID>" G2);

  ck_assert (!descriptor_set_top (d, G3, &error));
  expect_error (error, PLOOP_ERROR_ARGUMENT, "no snapshot has the GUID");
  ck_assert (descriptor_set_top (d, "00000002-1111-2222-3333-444444444444",
                                 NULL));
  ck_assert_str_eq (d->top_guid, G2);
  ck_assert (descriptor_store (d, NULL));
  text = read_xml ();
  ck_assert_str_eq (text, expected);
  again = descriptor_load (xml, NULL);
  ck_assert_str_eq (again->top_guid, G2);
  expect_chain (again, NULL, "root.hds g2.hds");
}
END_TEST

START_TEST (top_that_was_missing_is_added)
{
  g_autofree char *no_top = with (tree, TOP_GUID (TOP), "");
  g_autofree char *expected =
    with (tree, "\"1.0\"?>", "\"1.0\" encoding=\"UTF-8\"?>");
  g_autofree char *no_shots = with (one, TOP_GUID (TOP) SHOT (TOP, NONE), "");
  g_autofree char *no_snapshots =
    with (no_shots, "  <Snapshots>\n  </Snapshots>\n", "");
  g_autofree char *in_namespace =
    with (no_snapshots, "<Parallels_disk_image>",
          "<Parallels_disk_image xmlns='urn:x'>");
  g_autoptr (Descriptor) d = load (no_top), other = NULL, again = NULL;
  g_autofree char *text = NULL, *other_text = NULL;

  ck_assert (descriptor_set_top (d, TOP, NULL));
  ck_assert (descriptor_store (d, NULL));
  text = read_xml ();
  ck_assert_str_eq (text, expected);

  other = load (in_namespace);
  ck_assert (descriptor_set_top (other, TOP, NULL));
  ck_assert (descriptor_store (other, NULL));
  other_text = read_xml ();
  ck_assert_ptr_nonnull (
    strstr (other_text, "<Snapshots><TopGUID>" TOP "</TopGUID></Snapshots>"));
  again = descriptor_load (xml, NULL);
  expect_chain (again, NULL, "root.hds");
}
END_TEST

/* What is stored must be EXPECTED, with the encoding that is added. */
static void
expect_stored (struct descriptor *d, const char *doc)
{
  g_autofree char *text = NULL;
  g_autofree char *expected =
    with (doc, "\"1.0\"?>", "\"1.0\" encoding=\"UTF-8\"?>");

  ck_assert (descriptor_store (d, NULL));
  text = read_xml ();
  ck_assert_str_eq (text, expected);
}

/* As ploop does it: what was the top gets a name of its own. */
START_TEST (deltas_are_added_as_ploop_writes_them)
{
  g_autoptr (Descriptor) d = load (one);

  ck_assert (descriptor_rename (d, d->top_guid, G1, NULL));
  ck_assert (descriptor_add_image (d, 0, TOP, "a & b", NULL));
  ck_assert (descriptor_add_shot (d, TOP, G1, NULL));
  ck_assert_str_eq (image_of (d, 1)->file, "a & b");
  expect_stored (d, DOC (STORAGE ("0", "16384", IMAGE (G1, "root.hds")
                                  IMAGE (TOP, "a &amp; b")),
                         TOP_GUID (TOP) SHOT (G1, NONE) SHOT (TOP, G1)));
}
END_TEST

START_TEST (removed_delta_leaves_its_children_to_its_parent)
{
  g_autoptr (Descriptor) d = load (tree);
  g_autoptr (GPtrArray) children = NULL;

  ck_assert (descriptor_remove (d, G1, NULL));
  children = descriptor_list_children (d, G1);
  ck_assert_uint_eq (children->len, 0);
  ck_assert_ptr_null (descriptor_find_image (d, 0, G1));
  expect_stored (d, DOC (STORAGE ("0", "16384", IMAGE (G2, "g2.hds")
                                  IMAGE (TOP, "top.hds")),
                         TOP_GUID (TOP) SHOT (G2, NONE) SHOT (TOP, NONE)));
}
END_TEST

START_TEST (delta_moves_to_the_file_of_another)
{
  g_autoptr (Descriptor) d = load (tree);
  g_autoptr (GPtrArray) children = descriptor_list_children (d, G1);

  ck_assert_uint_eq (children->len, 2);
  ck_assert (descriptor_set_file (d, 0, TOP, descriptor_find_image (d, 0, G1),
                                  NULL));
  ck_assert_str_eq (descriptor_find_image (d, 0, TOP)->file, "root.hds");
}
END_TEST

START_TEST (temporary_mark_is_set_and_taken_away)
{
  g_autoptr (Descriptor) d = load (tree);

  ck_assert (descriptor_set_temporary (d, G2, true, NULL));
  ck_assert_int_eq (descriptor_find_shot (d, G2)->temporary,
                    DESCRIPTOR_TEMPORARY);
  ck_assert (descriptor_set_temporary (d, G2, false, NULL));
  expect_stored (d, tree);
}
END_TEST

/* Without shots, on one line, in a namespace. */
START_TEST (shots_are_written_where_there_were_none)
{
  g_autoptr (Descriptor) d =
    load ("<Parallels_disk_image xmlns='urn:x'><Disk_Parameters>"
          "<Disk_size>64</Disk_size></Disk_Parameters><StorageData><Storage>"
          "<Start>0</Start><End>64</End><Blocksize>64</Blocksize><Image><GUID>"
          TOP "</GUID><File>f</File></Image></Storage></StorageData>"
          "</Parallels_disk_image>");
  g_autoptr (Descriptor) again = NULL;

  ck_assert (descriptor_rename (d, TOP, G1, NULL));
  ck_assert (descriptor_add_shot (d, TOP, G1, NULL));
  ck_assert (descriptor_add_image (d, 0, TOP, "new", NULL));
  ck_assert (descriptor_store (d, NULL));
  again = descriptor_load (xml, NULL);
  ck_assert_ptr_nonnull (again);
  expect_chain (again, NULL, "f new");
  expect_chain (again, G1, "f");
}
END_TEST

/* libxml2 does not escape them. */
START_TEST (odd_namespaces_survive_storing)
{
  g_autoptr (Descriptor) d =
    load ("<x:Parallels_disk_image xmlns:x='urn:&lt;&amp;&#34;'><Disk_Parameters>"
          "<Disk_size>64</Disk_size></Disk_Parameters><StorageData><Storage>"
          "<Start>0</Start><End>64</End><Blocksize>64</Blocksize><Image><GUID>"
          TOP "</GUID><File>f</File></Image></Storage></StorageData>"
          "</x:Parallels_disk_image>");
  g_autofree char *first = NULL, *second = NULL;

  for (int i = 0; i < 2; i++) {
    g_autoptr (GError) error = NULL;
    g_autoptr (Descriptor) again = NULL;

    ck_assert (descriptor_store (d, NULL));
    again = descriptor_load (xml, &error);
    ck_assert_msg (again != NULL, "%s", error ? error->message : "");
    g_free (first);
    first = second;
    second = read_xml ();
  }
  ck_assert_str_eq (first, second);
  ck_assert_ptr_nonnull (strstr (second, "urn:&lt;&amp;"));
}
END_TEST

/* What nobody could read is not stored. */
START_TEST (no_more_deltas_than_can_be_read)
{
  static const char image[] = IMAGE (G1, "f");
  g_autoptr (GString) images = g_string_new (NULL);
  g_autofree char *doc = NULL;
  g_autoptr (Descriptor) d = NULL;
  g_autoptr (GError) error = NULL;

  for (unsigned i = 0; i + 1 < DESCRIPTOR_MAX_IMAGES; i++)
    g_string_append (images, image);
  g_string_append (images, "</Storage>");
  doc = with (one, "</Storage>", images->str);
  d = load (doc);
  ck_assert (!descriptor_add_image (d, 0, G1, "f", &error));
  expect_error (error, PLOOP_ERROR_CORRUPT, "one more than");
}
END_TEST

START_TEST (store_is_atomic)
{
  static const char *const calls[] = { "write", "fsync", "renameat" };
  g_autoptr (Descriptor) d = load (one);
  g_autoptr (GError) directory_error = NULL;
  g_autofree char *after = NULL;

  ck_assert (descriptor_set_size_sectors (d, 99, NULL));
  for (size_t i = 0; i < G_N_ELEMENTS (calls); i++) {
    g_autoptr (GError) error = NULL;
    g_autofree char *text = NULL;

    failing = calls[i];
    ck_assert (!descriptor_store (d, &error));
    expect_error (error, PLOOP_ERROR_SYSTEM, "is what it was: No space");
    text = read_xml ();
    ck_assert_str_eq (text, one);
    expect_alone ();
  }
  failing = "fsync directory";
  ck_assert (!descriptor_store (d, &directory_error));
  expect_error (directory_error, PLOOP_ERROR_SYSTEM, "was replaced, but");
  failing = NULL;
  ck_assert (descriptor_store (d, NULL));
  after = read_xml ();
  ck_assert_ptr_nonnull (strstr (after, "<Disk_size>99</Disk_size>"));
  expect_alone ();
}
END_TEST

START_TEST (mode_and_owner_stay)
{
  g_autoptr (Descriptor) d = load (one);
  struct stat before, after;

  ck_assert_int_eq (chmod (xml, 0604), 0);
  if (geteuid () == 0)
    ck_assert_int_eq (chown (xml, 1234, 5678), 0);
  ck_assert_int_eq (stat (xml, &before), 0);
  ck_assert (descriptor_store (d, NULL));
  ck_assert_int_eq (stat (xml, &after), 0);
  ck_assert_uint_ne (before.st_ino, after.st_ino);
  ck_assert_uint_eq (before.st_mode, after.st_mode);
  ck_assert_uint_eq (before.st_uid, after.st_uid);
  ck_assert_uint_eq (before.st_gid, after.st_gid);
}
END_TEST

START_TEST (file_that_others_changed_is_not_replaced)
{
  g_autoptr (Descriptor) d = load (one);
  g_autoptr (GError) error = NULL, gone = NULL;
  g_autofree char *path = put ("DiskDescriptor.xml", tree), *text = NULL;

  ck_assert (!descriptor_store (d, &error));
  expect_error (error, PLOOP_ERROR_IN_USE, "another program has changed it");
  text = read_xml ();
  ck_assert_str_eq (text, tree);
  ck_assert_int_eq (unlink (path), 0);
  ck_assert (!descriptor_store (d, &gone));
  expect_error (gone, PLOOP_ERROR_SYSTEM, "No such file");
}
END_TEST

static void
add_load_tests (TCase *tcase)
{
  tcase_add_test (tcase, one_image_is_read);
  tcase_add_test (tcase, links_lead_to_the_directory_of_the_file);
  tcase_add_test (tcase, both_root_elements_are_known_and_no_other);
  tcase_add_test (tcase, type_is_a_hint);
  tcase_add_test (tcase, numbers_are_decimal_or_hexadecimal);
  tcase_add_test (tcase, every_number_is_judged);
  tcase_add_test (tcase, missing_and_doubled_elements_are_named);
  tcase_add_test (tcase, elements_are_found_in_any_namespace);
  tcase_add_test (tcase, guids_are_normalised);
  tcase_add_test (tcase, bad_guids_are_named);
  tcase_add_test (tcase, case_of_guids_does_not_matter);
}

static void
add_snapshot_tests (TCase *tcase)
{
  tcase_add_test (tcase, tree_has_a_chain_for_each_snapshot);
  tcase_add_test (tcase, missing_shots_are_the_only_image);
  tcase_add_test (tcase, missing_top_is_the_default_or_the_only_leaf);
  tcase_add_test (tcase, old_style_top_is_taken_as_written);
  tcase_add_test (tcase, markers_of_temporary_snapshots_are_kept);
  tcase_add_test (tcase, unknown_guids_are_told_the_known_ones);
  tcase_add_test (tcase, cycles_are_refused);
  tcase_add_test (tcase, missing_parents_and_images_are_named);
  tcase_add_test (tcase, doubled_guids_are_refused);
  tcase_add_test (tcase, as_many_levels_as_the_kernel_has);
  tcase_add_test (tcase, numbers_of_elements_are_limited);
  tcase_add_test (tcase, split_disk_has_several_storages);
}

static void
add_hostile_tests (TCase *tcase)
{
  tcase_add_test (tcase, dtd_and_entities_are_refused);
  tcase_add_test (tcase, a_billion_laughs_are_not_laughed);
  tcase_add_test (tcase, the_five_entities_are_characters);
  tcase_add_test (tcase, only_utf8_is_read);
  tcase_add_test (tcase, what_is_no_xml_is_told_with_its_line);
  tcase_add_test (tcase, costly_documents_are_refused_soon);
  tcase_add_test (tcase, long_and_strange_values_make_short_messages);
  tcase_add_test (tcase, only_regular_files_are_read);
  tcase_add_loop_test (tcase, image_files_are_confined, 0, 2);
  tcase_add_test (tcase, allow_outside_opens_all);
  tcase_add_loop_test (tcase, only_regular_files_are_opened, 0, 2);
}

static void
add_store_tests (TCase *tcase)
{
  tcase_add_test (tcase, unknown_elements_survive_storing);
  tcase_add_test (tcase, what_ploop_wrote_is_stored_byte_for_byte);
  tcase_add_test (tcase, size_is_changed_and_nothing_else);
  tcase_add_test (tcase, size_in_an_element_with_more_than_text_is_changed);
  tcase_add_test (tcase, size_of_a_split_disk_is_its_last_storage);
  tcase_add_test (tcase, top_is_changed);
  tcase_add_test (tcase, top_that_was_missing_is_added);
  tcase_add_test (tcase, deltas_are_added_as_ploop_writes_them);
  tcase_add_test (tcase, removed_delta_leaves_its_children_to_its_parent);
  tcase_add_test (tcase, delta_moves_to_the_file_of_another);
  tcase_add_test (tcase, temporary_mark_is_set_and_taken_away);
  tcase_add_test (tcase, shots_are_written_where_there_were_none);
  tcase_add_test (tcase, odd_namespaces_survive_storing);
  tcase_add_test (tcase, no_more_deltas_than_can_be_read);
  tcase_add_test (tcase, store_is_atomic);
  tcase_add_test (tcase, mode_and_owner_stay);
  tcase_add_test (tcase, file_that_others_changed_is_not_replaced);
}

static void
add_tests (TCase *tcase)
{
  tcase_add_checked_fixture (tcase, make_directory, remove_directory);
  add_load_tests (tcase);
  add_snapshot_tests (tcase);
  add_hostile_tests (tcase);
  add_store_tests (tcase);
}

int
main (void)
{
  return run_tests ("descriptor", add_tests);
}
