/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img create: an empty image of a given size.
 *
 * The library knows what can be created; here the options become its struct.
 */

#include <stdio.h>
#include <stdlib.h>

#include "ploop-core.h"
#include "ploop-img.h"

static void
print_created (const char *path, const struct ploop_create_options *options)
{
  g_autofree char *size = size_format_exact (options->size);
  g_autofree char *cluster_size = size_format (options->cluster_size);

  printf ("created %s: %s, version %u, clusters of %s\n",
          path, size, options->version, cluster_size);
}

int
create_run (const struct subcommand *self, int argc, char **argv)
{
  g_autofree char *version = NULL, *cluster_size = NULL;
  gboolean force = FALSE;
  const GOptionEntry entries[] = {
    { "version", 0, 0, G_OPTION_ARG_STRING, &version,
      "Version of the format (default: 2)", "1|2" },
    { "cluster-size", 0, 0, G_OPTION_ARG_STRING, &cluster_size,
      "A power of two from 32K to 64M (default: 1M)", "SIZE" },
    { "force", 0, 0, G_OPTION_ARG_NONE, &force,
      "Replace FILE if it exists", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_create_options options = { 0 };
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_QUIET, &common,
                                  argc, argv, &status);
  if (arguments == NULL)
    return status;
  options.overwrite = force;
  if (!format_parse_version (version, &options.version, &error) ||
      !format_parse_cluster_size (cluster_size, &options.cluster_size, &error) ||
      !size_parse (arguments[1], &options.size, &error))
    return report_usage_error (self, "%s", error->message);
  if (ploop_create (arguments[0], &options, &error) == -1)
    return report_error (error);
  if (!common.quiet)
    print_created (arguments[0], &options);
  return EXIT_SUCCESS;
}
