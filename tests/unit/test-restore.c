/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/restore.c and what it stands on: when a system call fails, or the process ends
 * between any two of those that change the directory, the old descriptor is there, or
 * the new one; and no bytes in an old descriptor make it more than a doubt.  Of three
 * files and more that may be a tree, no order is guessed.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <glib/gstdio.h>

#include "descriptor.h"
#include "evidence.h"
#include "ploop-core.h"
#include "run.h"

#define CLUSTER_SECTORS 64u
#define NR_CLUSTERS 16u
#define NR_GARBLED 400u

#define UPPER "root.hds.{00000001-1111-2222-3333-444444444444}"
#define LEAF "root.hds.{00000002-1111-2222-3333-444444444444}"

static const char old_text[] = "<Parallels_disk_image>what is left";

static char *directory;

/* ---- System calls that fail -------------------------------------------- */

static int turn = -1;           /* of those below, counted down; -1: never */
static const char *failed;      /* the one whose turn it was */

static bool fails (const char *call);

int __real_fsync (int fd);
int __wrap_fsync (int fd);
int __real_linkat (int old_fd, const char *old, int new_fd, const char *new,
                   int flags);
int __wrap_linkat (int old_fd, const char *old, int new_fd, const char *new,
                   int flags);
int __real_renameat (int old_fd, const char *old, int new_fd, const char *new);
int __wrap_renameat (int old_fd, const char *old, int new_fd, const char *new);
ssize_t __real_write (int fd, const void *buf, size_t length);
ssize_t __wrap_write (int fd, const void *buf, size_t length);

int
__wrap_fsync (int fd)
{
  return fails ("fsync") ? -1 : __real_fsync (fd);
}

int
__wrap_linkat (int old_fd, const char *old, int new_fd, const char *new,
               int flags)
{
  return fails ("linkat") ? -1
                          : __real_linkat (old_fd, old, new_fd, new, flags);
}

int
__wrap_renameat (int old_fd, const char *old, int new_fd, const char *new)
{
  return fails ("renameat") ? -1
                            : __real_renameat (old_fd, old, new_fd, new);
}

/* Short, too. */
ssize_t
__wrap_write (int fd, const void *buf, size_t length)
{
  return fails ("write") ? -1 : __real_write (fd, buf, MIN (length, 100));
}

/* ---- The directory ----------------------------------------------------- */

static char *
in_directory (const char *name)
{
  return g_build_filename (directory, name, NULL);
}

static void
put_image (const char *name)
{
  const struct format_header header =
    scratch_header (2, CLUSTER_SECTORS, NR_CLUSTERS);
  g_autofree char *image =
    scratch_image ("image", &header, NULL, CLUSTER_SECTORS * 512u);
  g_autofree char *to = in_directory (name);

  ck_assert_int_eq (g_rename (image, to), 0);
}

static void
put_descriptor (const void *text, size_t length)
{
  g_autofree char *path = in_directory (DESCRIPTOR_FILE_NAME);

  ck_assert (g_file_set_contents (path, text, (gssize) length, NULL));
}

static void
make_directory (void)
{
  directory = scratch_path ("disk");
  ck_assert_int_eq (g_mkdir (directory, 0700), 0);
  put_image ("root.hds");
  put_image (UPPER);
  put_descriptor (old_text, strlen (old_text));
}

/* Empties it too, so that the next test's is alone in its place. */
static unsigned
count_files (bool remove)
{
  GDir *dir = g_dir_open (directory, 0, NULL);
  const char *name;
  unsigned nr = 0;

  for (; (name = g_dir_read_name (dir)); nr++) {
    g_autofree char *path = in_directory (name);

    if (remove)
      unlink (path);
  }
  g_dir_close (dir);
  return nr;
}

static void
remove_directory (void)
{
  count_files (true);
  rmdir (directory);
  g_free (directory);
}

static bool
has_text (const char *name, const char *text)
{
  g_autofree char *path = in_directory (name);
  g_autofree char *found = NULL;

  return g_file_get_contents (path, &found, NULL, NULL)
         && strcmp (found, text) == 0;
}

static bool
has_new_descriptor (void)
{
  g_autofree char *path = in_directory (DESCRIPTOR_FILE_NAME);
  g_autoptr (Descriptor) descriptor = descriptor_load (path, NULL);
  g_autoptr (GPtrArray) chain =
    descriptor ? descriptor_chain (descriptor, 0, NULL, NULL) : NULL;

  return chain && chain->len >= 2;
}

/* What holds before each system call: whoever cuts the power then finds it. */
static bool
fails (const char *call)
{
  ck_assert_msg (has_text (DESCRIPTOR_FILE_NAME, old_text)
                   || (has_new_descriptor ()
                       && has_text (DESCRIPTOR_FILE_NAME ".bak", old_text)),
                 "before %s there is neither descriptor", call);
  if (turn != 0 || failed) {
    turn--;
    return false;
  }
  failed = call;
  errno = EIO;
  return true;
}

static int
restore_it (bool dry_run, GError **error)
{
  const struct ploop_restore_options options = { .dry_run = dry_run };
  struct ploop_restore_result result;
  const int r =
    ploop_restore_descriptor (directory, &options, &result, error);

  ploop_restore_result_clear (&result);
  return r;
}

START_TEST (whatever_fails_leaves_the_old_one_or_the_new_one)
{
  unsigned nr_failed = 0;

  for (int first = 0;; first++) {
    g_autoptr (GError) error = NULL;
    int r;

    make_directory ();
    failed = NULL;
    turn = first;
    r = restore_it (false, &error);
    turn = -1;
    if (!failed) {
      ck_assert_int_eq (r, 0);
      ck_assert (has_new_descriptor ());
      ck_assert (has_text (DESCRIPTOR_FILE_NAME ".bak", old_text));
      /* With ploop's lock. */
      ck_assert_uint_eq (count_files (false), 5);
      remove_directory ();
      break;
    }
    nr_failed++;
    ck_assert_int_eq (r, -1);
    ck_assert_ptr_nonnull (strstr (error->message, DESCRIPTOR_FILE_NAME));
    if (has_new_descriptor ())
      ck_assert_ptr_nonnull (strstr (error->message, "was replaced"));
    else
      ck_assert_uint_eq (count_files (false), 4);
    remove_directory ();
  }
  /* Writes, two syncs, a link and a rename. */
  ck_assert_uint_ge (nr_failed, 6);
}
END_TEST

START_TEST (a_dry_run_changes_nothing)
{
  make_directory ();
  ck_assert_int_eq (restore_it (true, NULL), 0);
  ck_assert (has_text (DESCRIPTOR_FILE_NAME, old_text));
  ck_assert_uint_eq (count_files (false), 3);
  remove_directory ();
}
END_TEST

/* ---- Old descriptors --------------------------------------------------- */

static const char sound_text[] =
  "<Parallels_disk_image><Disk_Parameters><Disk_size>1024</Disk_size>"
  "</Disk_Parameters><StorageData><Storage><Start>0</Start><End>1024</End>"
  "<Blocksize>64</Blocksize>"
  "<Image><GUID>{00000007-1111-2222-3333-444444444444}</GUID>"
  "<Type>Compressed</Type><File>root.hds</File></Image>"
  "<Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>"
  "<Type>Compressed</Type><File>" UPPER "</File></Image>"
  "</Storage></StorageData><Snapshots>"
  "<TopGUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</TopGUID>"
  "<Shot><GUID>{00000007-1111-2222-3333-444444444444}</GUID>"
  "<ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot>"
  "<Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>"
  "<ParentGUID>{00000007-1111-2222-3333-444444444444}</ParentGUID>"
  "<TemporaryZero/></Shot></Snapshots></Parallels_disk_image>";

static void
read_relics (struct relics *relics)
{
  const int fd = open (directory, O_RDONLY | O_DIRECTORY);

  ck_assert_int_ne (fd, -1);
  relics_read (relics, fd);
  close (fd);
}

START_TEST (what_is_left_of_a_descriptor_is_read)
{
  static const char entities[] =
    "<GUID>{00000007-1111-2222-3333-444444444444}</GUID><File>\n"
    "../a &amp; &lt;b&gt; &amp;lt;.hds </File>";
  struct relics relics;
  const struct relic_shot *shot;

  make_directory ();
  put_descriptor (sound_text, strlen (sound_text));
  read_relics (&relics);
  ck_assert_uint_eq (relics.images->len, 2);
  ck_assert_uint_eq (relics.shots->len, 2);
  ck_assert_str_eq (relics.top_guid, DESCRIPTOR_TOP_GUID);
  ck_assert_str_eq (relics_find_guid (&relics, UPPER), DESCRIPTOR_TOP_GUID);
  shot = g_ptr_array_index (relics.shots, 0);
  ck_assert_ptr_null (shot->parent);
  ck_assert_ptr_null (shot->marker);
  shot = g_ptr_array_index (relics.shots, 1);
  ck_assert_str_eq (shot->parent, "{00000007-1111-2222-3333-444444444444}");
  ck_assert_str_eq (shot->marker, "TemporaryZero");
  relics_clear (&relics);

  put_descriptor (entities, strlen (entities));
  read_relics (&relics);
  ck_assert_str_eq (relics_find_guid (&relics, "a & <b> &lt;.hds"),
                    "{00000007-1111-2222-3333-444444444444}");
  relics_clear (&relics);
  remove_directory ();
}
END_TEST

/* Bytes are overwritten, taken out and doubled. */
static void
put_garbled (GRand *rand, const char *sound)
{
  g_autoptr (GString) text = g_string_new (sound);

  for (int n = g_rand_int_range (rand, 1, 8); n > 0; n--) {
    const gint at = g_rand_int_range (rand, 0, (gint) text->len - 1);
    const gint most = (gint) text->len - 1 - at;
    const gint length = g_rand_int_range (rand, 0, MIN (most, 60)) + 1;
    g_autofree char *piece = g_strndup (text->str + at, (gsize) length);

    switch (g_rand_int_range (rand, 0, 3)) {
    case 0:
      text->str[at] = (char) g_rand_int_range (rand, 0, 256);
      break;
    case 1:
      g_string_erase (text, at, length);
      break;
    default:
      g_string_insert (text, g_rand_int_range (rand, 0, (gint) text->len),
                       piece);
    }
  }
  put_descriptor (text->str, text->len);
}

/* Two files have one order, whatever the old descriptor says; what contradicts it is
 * refused.
 */
START_TEST (garbled_descriptors_make_no_other_order)
{
  const guint32 seed = g_random_int ();
  g_autoptr (GRand) rand = g_rand_new_with_seed (seed);
  unsigned nr_restored = 0;

  make_directory ();
  for (unsigned i = 0; i < NR_GARBLED; i++) {
    const struct ploop_restore_options options = { .dry_run = true };
    struct ploop_restore_result result;

    put_garbled (rand, sound_text);
    if (ploop_restore_descriptor (directory, &options, &result, NULL) == -1)
      continue;
    nr_restored++;
    ck_assert_msg (result.images->len == 2, "seed %u, number %u", seed, i);
    for (guint n = 0; n < 2; n++) {
      const struct ploop_restored_image *image =
        g_ptr_array_index (result.images, n);

      ck_assert_msg (strcmp (image->file, n == 0 ? "root.hds" : UPPER) == 0,
                     "seed %u, number %u", seed, i);
    }
    ploop_restore_result_clear (&result);
  }
  ck_assert_uint_ge (nr_restored, NR_GARBLED / 4);
  remove_directory ();
}
END_TEST

/* ---- Trees ------------------------------------------------------------- */

/* LEAF is the top, and UPPER a snapshot beside it; times are those of a chain. */
static const char tree_text[] =
  "<Parallels_disk_image><Disk_Parameters><Disk_size>1024</Disk_size>"
  "</Disk_Parameters><StorageData><Storage><Start>0</Start><End>1024</End>"
  "<Blocksize>64</Blocksize>"
  "<Image><GUID>{00000007-1111-2222-3333-444444444444}</GUID>"
  "<Type>Compressed</Type><File>root.hds</File></Image>"
  "<Image><GUID>{cafe0e5a-aaaa-bbbb-cccc-dddddddddddd}</GUID>"
  "<Type>Compressed</Type><File>" UPPER "</File></Image>"
  "<Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>"
  "<Type>Compressed</Type><File>" LEAF "</File></Image>"
  "</Storage></StorageData><Snapshots>"
  "<TopGUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</TopGUID>"
  "<Shot><GUID>{00000007-1111-2222-3333-444444444444}</GUID>"
  "<ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot>"
  "<Shot><GUID>{cafe0e5a-aaaa-bbbb-cccc-dddddddddddd}</GUID>"
  "<ParentGUID>{00000007-1111-2222-3333-444444444444}</ParentGUID></Shot>"
  "<Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>"
  "<ParentGUID>{00000007-1111-2222-3333-444444444444}</ParentGUID></Shot>"
  "</Snapshots></Parallels_disk_image>";

static void
set_minute (const char *name, int minute)
{
  g_autofree char *path = in_directory (name);
  const struct timespec times[2] = {
    { .tv_nsec = UTIME_OMIT }, { .tv_sec = INT64_C (1577836800) + 60 * minute },
  };

  ck_assert_int_eq (utimensat (AT_FDCWD, path, times, 0), 0);
}

static void
make_tree (void)
{
  make_directory ();
  put_image (LEAF);
  set_minute ("root.hds", 1);
  set_minute (UPPER, 2);
  set_minute (LEAF, 3);
}

START_TEST (an_order_of_three_files_is_not_guessed)
{
  g_autoptr (GError) error = NULL;

  make_tree ();
  ck_assert_int_eq (restore_it (false, &error), -1);
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT));
  ck_assert_ptr_nonnull (strstr (error->message, UPPER " and " LEAF));
  ck_assert_ptr_nonnull (strstr (error->message, "root.hds or branches"));
  ck_assert_ptr_nonnull (strstr (error->message, "--file"));
  ck_assert (has_text (DESCRIPTOR_FILE_NAME, old_text));
  ck_assert_uint_eq (count_files (false), 4);
  remove_directory ();
}
END_TEST

START_TEST (a_dry_run_shows_the_guess)
{
  const struct ploop_restore_options options = { .dry_run = true };
  static const char *const names[] = { "root.hds", UPPER, LEAF };
  struct ploop_restore_result result;

  make_tree ();
  ck_assert_int_eq (
    ploop_restore_descriptor (directory, &options, &result, NULL), 0);
  ck_assert_int_eq (result.confidence, PLOOP_CONFIDENCE_LIKELY);
  ck_assert_ptr_nonnull (result.refusal);
  ck_assert_uint_eq (result.images->len, 3);
  for (guint i = 0; i < 3; i++) {
    const struct ploop_restored_image *image =
      g_ptr_array_index (result.images, i);

    ck_assert_str_eq (image->file, names[i]);
  }
  ploop_restore_result_clear (&result);
  ck_assert_ptr_null (result.refusal);
  ck_assert_uint_eq (count_files (false), 4);
  remove_directory ();
}
END_TEST

START_TEST (an_order_that_is_given_is_taken)
{
  const char *const files[] = { "root.hds", LEAF, UPPER, NULL };
  const struct ploop_restore_options options = { .files = files };
  struct ploop_restore_result result;

  make_tree ();
  ck_assert_int_eq (
    ploop_restore_descriptor (directory, &options, &result, NULL), 0);
  ck_assert_int_eq (result.confidence, PLOOP_CONFIDENCE_GIVEN);
  ck_assert_ptr_null (result.refusal);
  ploop_restore_result_clear (&result);
  remove_directory ();
}
END_TEST

/* Both rest on the base; or nothing is written. */
static bool
is_tree (const struct ploop_restore_result *result)
{
  const struct ploop_restored_image *base, *upper, *leaf;

  if (result->images->len != 3
      || result->confidence != PLOOP_CONFIDENCE_CERTAIN)
    return false;
  base = g_ptr_array_index (result->images, 0);
  upper = g_ptr_array_index (result->images, 1);
  leaf = g_ptr_array_index (result->images, 2);
  return strcmp (upper->parent, base->guid) == 0
         && strcmp (leaf->parent, base->guid) == 0;
}

START_TEST (garbled_descriptors_make_no_chain_of_a_tree)
{
  const guint32 seed = g_random_int ();
  g_autoptr (GRand) rand = g_rand_new_with_seed (seed);
  unsigned nr_restored = 0, nr_guessed = 0;

  make_tree ();
  for (unsigned i = 0; i < NR_GARBLED; i++) {
    const struct ploop_restore_options options = { .dry_run = true };
    struct ploop_restore_result result;

    put_garbled (rand, tree_text);
    if (ploop_restore_descriptor (directory, &options, &result, NULL) == -1)
      continue;
    ck_assert_msg (result.refusal || is_tree (&result), "seed %u, number %u",
                   seed, i);
    if (result.refusal)
      nr_guessed++;
    else
      nr_restored++;
    ploop_restore_result_clear (&result);
  }
  ck_assert_uint_ge (nr_restored, 1);
  ck_assert_uint_ge (nr_guessed, 1);
  remove_directory ();
}
END_TEST

/* A descriptor in which snapshots rest on each other in a circle. */
START_TEST (a_circle_is_no_order)
{
  static const char text[] =
    "<GUID>{00000007-1111-2222-3333-444444444444}</GUID><File>root.hds</File>"
    "<GUID>{00000008-1111-2222-3333-444444444444}</GUID><File>" UPPER "</File>"
    "<GUID>{00000009-1111-2222-3333-444444444444}</GUID><File>" LEAF "</File>"
    "<GUID>{00000008-1111-2222-3333-444444444444}</GUID>"
    "<ParentGUID>{00000009-1111-2222-3333-444444444444}</ParentGUID>"
    "<GUID>{00000009-1111-2222-3333-444444444444}</GUID>"
    "<ParentGUID>{00000008-1111-2222-3333-444444444444}</ParentGUID>";
  const struct ploop_restore_options options = { .dry_run = true };
  struct ploop_restore_result result;
  g_autoptr (GError) error = NULL;

  make_tree ();
  put_descriptor (text, strlen (text));
  ck_assert_int_eq (
    ploop_restore_descriptor (directory, &options, &result, &error), -1);
  ck_assert (g_error_matches (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT));
  remove_directory ();
}
END_TEST

/* As many images and snapshots as there is room for, each on the one before: a second
 * of work at most, where any product of the two would take minutes.
 */
START_TEST (a_large_descriptor_is_read_soon)
{
  g_autoptr (GString) text = g_string_new (NULL);
  struct relics relics;

  make_tree ();
  for (unsigned i = 1; i <= 9000; i++)
    g_string_append_printf (
      text, "<GUID>{%08x-1111-2222-3333-444444444444}</GUID><File>root.hds."
      "{%08x-1111-2222-3333-444444444444}</File>\n", i, i);
  for (unsigned i = 9000; i > 1000; i--)
    g_string_append_printf (
      text, "<GUID>{%08x-1111-2222-3333-444444444444}</GUID><ParentGUID>"
      "{%08x-1111-2222-3333-444444444444}</ParentGUID>\n", i, i - 1);
  put_descriptor (text->str, text->len);
  read_relics (&relics);
  ck_assert_uint_eq (relics.images->len, 9000);
  ck_assert_uint_eq (relics.shots->len, 8000);
  relics_clear (&relics);
  ck_assert_int_eq (restore_it (false, NULL), -1);
  remove_directory ();
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_test (tcase, whatever_fails_leaves_the_old_one_or_the_new_one);
  tcase_add_test (tcase, a_dry_run_changes_nothing);
  tcase_add_test (tcase, what_is_left_of_a_descriptor_is_read);
  tcase_add_test (tcase, garbled_descriptors_make_no_other_order);
  tcase_add_test (tcase, an_order_of_three_files_is_not_guessed);
  tcase_add_test (tcase, a_dry_run_shows_the_guess);
  tcase_add_test (tcase, an_order_that_is_given_is_taken);
  tcase_add_test (tcase, garbled_descriptors_make_no_chain_of_a_tree);
  tcase_add_test (tcase, a_circle_is_no_order);
  tcase_add_test (tcase, a_large_descriptor_is_read_soon);
}

int
main (void)
{
  return run_tests ("restore", add_tests);
}
