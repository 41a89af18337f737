/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img: creates, describes, checks, compacts, compares and converts ploop
 * images.
 *
 * Finds the subcommand in the table below and runs it.  Each subcommand is a
 * file of its own and reads its own options; only --help and --version are
 * known here, before a subcommand.
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
  { "create", "FILE SIZE", "Make an empty image", create_run },
  { "info", "FILE", "Show what an image is", info_run },
  { "check", "FILE", "Look for damage, changing nothing", check_run },
  { "compact", "FILE", "Make the file as small as its data", compact_run },
  { "compare", "DISK OTHER", "Do two disks read the same?", compare_run },
  { "convert", "DISK TARGET", "Copy a disk into another form", convert_run },
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

static const struct subcommand *
find_subcommand (const char *name)
{
  for (size_t i = 0; i < G_N_ELEMENTS (subcommands); i++)
    if (strcmp (subcommands[i].name, name) == 0)
      return &subcommands[i];
  return NULL;
}

static int
unknown_subcommand (const char *name)
{
  g_autoptr (GString) known = g_string_new (NULL);

  for (size_t i = 0; i < G_N_ELEMENTS (subcommands); i++)
    g_string_append_printf (known, "%s%s", i == 0 ? "" : ", ",
                            subcommands[i].name);
  return report_usage_error (NULL, "unknown subcommand '%s': use one of %s",
                             name, known->str);
}

static int
print_help (void)
{
  printf ("Usage:\n"
          "  ploop-img SUBCOMMAND [OPTION...] ARGUMENT...\n"
          "  ploop-img --help | --version\n"
          "\n"
          "Create, describe, check, compact, compare and convert ploop disk "
          "images.\n"
          "\n"
          "Subcommands:\n");
  for (size_t i = 0; i < G_N_ELEMENTS (subcommands); i++) {
    const struct subcommand *s = &subcommands[i];

    printf ("  %-7s %-13s %s\n", s->name, s->arguments, s->summary);
  }
  printf ("\n"
          "Options of a subcommand: ploop-img help SUBCOMMAND,\n"
          "everything else: man ploop-img\n");
  return EXIT_SUCCESS;
}

/* help SUBCOMMAND is SUBCOMMAND --help. */
static int
help_run (const struct subcommand *self, int argc, char **argv)
{
  const struct subcommand *topic;
  char option[] = "--help";
  char *topic_argv[] = { argv[0], option, NULL };

  if (argc > 2)
    return report_usage_error (self, "unexpected argument '%s'", argv[2]);
  if (argc < 2)
    return print_help ();
  topic = find_subcommand (argv[1]);
  if (topic == self || strcmp (argv[1], "--help") == 0)
    return print_help ();
  if (topic == NULL)
    return unknown_subcommand (argv[1]);
  return topic->run (topic, 2, topic_argv);
}

static int
run (int argc, char **argv)
{
  const struct subcommand *subcommand;
  const char *name = argv[1];

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
  subcommand = find_subcommand (name);
  if (subcommand == NULL)
    return unknown_subcommand (name);
  return subcommand->run (subcommand, argc - 1, argv + 1);
}

/* No setlocale: what the tool prints is read by scripts too. */
int
main (int argc, char *argv[])
{
  if (!standard_files_are_open ())
    return EXIT_FAILURE;
  return report_finish (run (argc, argv));
}
