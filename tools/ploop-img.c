/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img: all that can be done to ploop disks that nobody uses.
 *
 * Finds the subcommand in the table below and runs it.  Each subcommand, or group
 * of them, is a file of its own and reads its own options; only --help and
 * --version are known here, before a subcommand.
 */

#include <config.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ploop-img.h"

static int help_run (const struct subcommand *self, int argc, char **argv);

static const struct subcommand subcommands[] = {
  { "create", "FILE [SIZE]", "Make a new image", create_run },
  { "info", "DISK", "Show what a disk or an image is", info_run },
  { "check", "DISK", "Look for damage, and repair it", check_run },
  { "compact", "FILE", "Make the file as small as its data", compact_run },
  { "map", "DISK", "Show which delta has what, and where", map_run },
  { "compare", "DISK OTHER", "Do two disks read the same?", compare_run },
  { "convert", "DISK TARGET", "Copy a disk into another form", convert_run },
  { "resize", "DISK SIZE", "Make a disk larger or smaller", resize_run },
  { "snapshot list", "DISK", "Show the tree of a disk's snapshots",
    snapshot_list_run },
  { "snapshot create", "DISK", "Keep what the disk contains now",
    snapshot_create_run },
  { "snapshot delete", "DISK GUID", "Delete a snapshot", snapshot_delete_run },
  { "snapshot switch", "DISK GUID", "Return to a snapshot",
    snapshot_switch_run },
  { "snapshot mark-temporary", "DISK GUID", "Mark a snapshot as to be deleted",
    snapshot_mark_run },
  { "merge", "DISK", "Make one delta of several", merge_run },
  { "bitmap list", "FILE", "Show the changed-block bitmaps", bitmap_list_run },
  { "bitmap add", "FILE", "Begin to track what changes", bitmap_add_run },
  { "bitmap remove", "FILE", "Remove bitmaps", bitmap_remove_run },
  { "bitmap dump", "FILE", "Show what a bitmap marks", bitmap_dump_run },
  { "bitmap merge", "FILE SOURCE_UUID", "Mark in a bitmap what another marks",
    bitmap_merge_run },
  { "rescue", "DISK TARGET", "Copy what can be read of a damaged disk",
    rescue_run },
  { "descriptor restore", "DIRECTORY", "Make a lost DiskDescriptor.xml anew",
    descriptor_restore_run },
  { "bench", "DISK", "Measure how quick a store is", bench_run },
  { "help", "[SUBCOMMAND]", "Show how to use a subcommand", help_run },
};

/* A file that is opened while standard output is closed would get its number,
 * and what is printed would end up in an image.  So fill the gaps, with what
 * cannot be written to: printing must fail then, not vanish.
 */
static bool
standard_files_are_open (void)
{
  int fd;

  do {
    fd = open ("/dev/null", O_RDONLY | O_CLOEXEC);
    if (fd == -1)
      return false;
  } while (fd <= 2);
  close (fd);
  return true;
}

static bool
has_name (const struct subcommand *s, const char *name)
{
  return strcmp (s->name, name) == 0;
}

/* Has S a name of two words, and is GROUP the first? */
static bool
is_of_group (const struct subcommand *s, const char *group)
{
  const size_t length = strlen (group);

  return strncmp (s->name, group, length) == 0 && s->name[length] == ' ';
}

static bool
is_group (const char *name)
{
  for (size_t i = 0; i < G_N_ELEMENTS (subcommands); i++)
    if (is_of_group (&subcommands[i], name))
      return true;
  return false;
}

/* The subcommand whose name the words at ARGV begin with, and how many of them it
 * takes; or NULL.
 */
static const struct subcommand *
find_subcommand (int argc, char *const *argv, int *nr_words)
{
  g_autofree char *two =
    argc > 1 ? g_strdup_printf ("%s %s", argv[0], argv[1]) : NULL;

  for (size_t i = 0; i < G_N_ELEMENTS (subcommands); i++) {
    const struct subcommand *s = &subcommands[i];

    *nr_words = has_name (s, argv[0]) ? 1 : two && has_name (s, two) ? 2 : 0;
    if (*nr_words > 0)
      return s;
  }
  return NULL;
}

/* What there is: all, or of one group. */
static char *
name_subcommands (const char *group)
{
  g_autoptr (GString) known = g_string_new (NULL);

  for (size_t i = 0; i < G_N_ELEMENTS (subcommands); i++)
    if (!group || is_of_group (&subcommands[i], group))
      g_string_append_printf (known, "%s%s", known->len == 0 ? "" : ", ",
                              subcommands[i].name);
  return g_string_free (g_steal_pointer (&known), FALSE);
}

static int
unknown_subcommand (int argc, char *const *argv)
{
  const char *group = is_group (argv[0]) ? argv[0] : NULL;
  g_autofree char *known = name_subcommands (group);

  if (group && argc < 2)
    return report_usage_error (NULL, "%s: is the first word of several: use one "
                               "of %s", group, known);
  return report_usage_error (NULL, "unknown subcommand '%s%s%s': use one of %s",
                             argv[0], group ? " " : "", group ? argv[1] : "",
                             known);
}

static void
print_summaries (const char *group)
{
  for (size_t i = 0; i < G_N_ELEMENTS (subcommands); i++) {
    const struct subcommand *s = &subcommands[i];
    g_autofree char *usage = g_strdup_printf ("%s %s", s->name, s->arguments);

    if (!group || is_of_group (s, group))
      printf ("  %-35s %s\n", usage, s->summary);
  }
}

static int
print_help (void)
{
  printf ("Usage:\n"
          "  ploop-img SUBCOMMAND [OPTION...] ARGUMENT...\n"
          "  ploop-img --help | --version\n"
          "\n"
          "All that can be done to ploop disks that nobody uses.\n"
          "\n"
          "Subcommands:\n");
  print_summaries (NULL);
  printf ("\n"
          "Options of a subcommand: ploop-img help SUBCOMMAND,\n"
          "everything else: man ploop-img\n");
  return EXIT_SUCCESS;
}

static int
print_group_help (const char *group)
{
  printf ("Usage:\n");
  print_summaries (group);
  return EXIT_SUCCESS;
}

/* help SUBCOMMAND is SUBCOMMAND --help. */
static int
help_run (const struct subcommand *self, int argc, char **argv)
{
  const struct subcommand *topic;
  char option[] = "--help";
  char *topic_argv[] = { argv[0], option, NULL };
  int nr_words;

  if (argc < 2)
    return print_help ();
  if (argc == 2 && is_group (argv[1]))
    return print_group_help (argv[1]);
  topic = find_subcommand (argc - 1, argv + 1, &nr_words);
  if (topic == self || strcmp (argv[1], "--help") == 0)
    return print_help ();
  if (topic == NULL)
    return unknown_subcommand (argc - 1, argv + 1);
  if (argc > 1 + nr_words)
    return report_usage_error (self, "unexpected argument '%s'",
                               argv[1 + nr_words]);
  return topic->run (topic, 2, topic_argv);
}

static int
run (int argc, char **argv)
{
  const struct subcommand *subcommand;
  const char *name = argv[1];
  int nr_words;

  if (argc < 2)
    return report_usage_error (NULL, "no subcommand given");
  if (strcmp (name, "--help") == 0 || strcmp (name, "-h") == 0)
    return print_help ();
  if (strcmp (name, "--version") == 0 || strcmp (name, "-V") == 0) {
    printf ("ploop-img %s\n", PACKAGE_VERSION);
    return EXIT_SUCCESS;
  }
  if (name[0] == '-')
    return report_usage_error (NULL, "unknown option '%s'", name);
  subcommand = find_subcommand (argc - 1, argv + 1, &nr_words);
  if (subcommand)
    return subcommand->run (subcommand, argc - nr_words, argv + nr_words);
  if (is_group (name) && argc > 2
      && (strcmp (argv[2], "--help") == 0 || strcmp (argv[2], "-h") == 0))
    return print_group_help (name);
  return unknown_subcommand (argc - 1, argv + 1);
}

/* No setlocale: what the tool prints is read by scripts too. */
int
main (int argc, char *argv[])
{
  if (!standard_files_are_open ())
    return EXIT_FAILURE;
  return report_finish (run (argc, argv));
}
