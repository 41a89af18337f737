/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img snapshot list: the snapshots of a disk and the delta that it is written
 * to, as a tree for people, as a flat array in JSON.
 */

#include <stdlib.h>

#include "ploop-core.h"
#include "ploop-img.h"

static void
print_json (const char *path, const GPtrArray *snapshots)
{
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", path);
  tree_add (builder, snapshots);
  json_builder_end_object (builder);
  output_json (builder);
}

int
snapshot_list_run (const struct subcommand *self, int argc, char **argv)
{
  gboolean allow_outside = FALSE;
  const GOptionEntry entries[] = {
    { "allow-outside", 0, 0, G_OPTION_ARG_NONE, &allow_outside,
      "The descriptor may name files outside its directory", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  g_autoptr (GPtrArray) snapshots = NULL;
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_OUTPUT, &common,
                                  argc, argv, &status);
  if (arguments == NULL)
    return status;
  snapshots = ploop_list_tree (arguments[0], allow_outside, &error);
  if (!snapshots)
    return report_error (error);
  if (common.output == OUTPUT_JSON)
    print_json (arguments[0], snapshots);
  else
    tree_print (snapshots);
  return EXIT_SUCCESS;
}
