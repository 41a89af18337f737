/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/mounted.c: an image is found by its inode among what a kernel's ploop driver
 * tells in sysfs, which is made up here; what is not there, or is not understood, is
 * nothing.
 */

#include <config.h>

#include <fcntl.h>
#include <unistd.h>

#include "mounted.h"
#include "run.h"

static char *sysfs;

static void
tell (const char *device, const char *level, const char *file, const char *text)
{
  g_autofree char *directory = g_build_filename (sysfs, device, "pdelta", level,
                                                 NULL);
  g_autofree char *path = g_build_filename (directory, file, NULL);

  ck_assert_int_eq (g_mkdir_with_parents (directory, 0700), 0);
  ck_assert (g_file_set_contents (path, text, -1, NULL));
}

/* A device with one delta, IMAGE. */
static void
tell_delta (const char *device, const char *level, const char *image,
            const char *read_only)
{
  g_autofree char *line = g_strconcat (image, "\n", NULL);

  tell (device, level, "image", line);
  if (read_only)
    tell (device, level, "ro", read_only);
}

static int
new_image (char **path)
{
  int fd;

  *path = scratch_path ("image");
  fd = open (*path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  ck_assert_int_ge (fd, 0);
  return fd;
}

static void
remove_sysfs (void)
{
  const char *const argv[] = { "rm", "-rf", sysfs, NULL };

  ck_assert (g_spawn_sync (NULL, (char **) argv, NULL, G_SPAWN_SEARCH_PATH,
                           NULL, NULL, NULL, NULL, NULL, NULL));
  g_clear_pointer (&sysfs, g_free);
}

static void
make_sysfs (void)
{
  sysfs = scratch_path ("sysfs");
  ck_assert_int_eq (g_mkdir_with_parents (sysfs, 0700), 0);
}

START_TEST (a_kernel_without_the_driver_has_nothing)
{
  g_autofree char *path = NULL, *device = NULL;
  const int fd = new_image (&path);
  bool writes;

  ck_assert (!mounted_find (sysfs, fd, &device, &writes));
  tell ("sda", "0", "image", path);     /* not a device of the driver */
  ck_assert (!mounted_find (sysfs, fd, &device, &writes));
  ck_assert_ptr_null (device);
  close (fd);
}
END_TEST

START_TEST (an_image_is_found_by_any_of_its_names)
{
  g_autofree char *path = NULL, *link_name = NULL, *device = NULL;
  const int fd = new_image (&path);
  bool writes = false;

  link_name = g_strconcat (path, ".link", NULL);
  ck_assert_int_eq (link (path, link_name), 0);
  tell_delta ("ploop10001", "0", "/nowhere/at/all", "0\n");
  tell_delta ("ploop10002", "0", "/", "1\n");
  tell_delta ("ploop10002", "1", link_name, "0\n");
  ck_assert (mounted_find (sysfs, fd, &device, &writes));
  ck_assert_str_eq (device, "ploop10002");
  ck_assert (writes);
  close (fd);
}
END_TEST

START_TEST (only_a_1_says_that_it_is_not_written)
{
  static const struct {
    const char *read_only;
    bool writes;
  } cases[] = {
    { "1\n", false }, { "0\n", true }, { "", true }, { "11\n", true },
    { NULL, true },
  };
  g_autofree char *path = NULL;
  const int fd = new_image (&path);

  for (size_t i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_autofree char *name = g_strdup_printf ("ploop%zu", i);
    g_autofree char *device = NULL;
    bool writes;

    tell_delta (name, "7", path, cases[i].read_only);
    ck_assert (mounted_find (sysfs, fd, &device, &writes));
    ck_assert_str_eq (device, name);
    ck_assert_int_eq (writes, cases[i].writes);
    remove_sysfs ();
    make_sysfs ();
  }
  close (fd);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_checked_fixture (tcase, make_sysfs, remove_sysfs);
  tcase_add_test (tcase, a_kernel_without_the_driver_has_nothing);
  tcase_add_test (tcase, an_image_is_found_by_any_of_its_names);
  tcase_add_test (tcase, only_a_1_says_that_it_is_not_written);
}

int
main (void)
{
  return run_tests ("mounted", add_tests);
}
