/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The part of reading a command line that all subcommands have in common: one
 * GOptionContext for each, --help, and the right number of arguments.
 *
 * GLib's own --help prints and exits in the middle of parsing, so that a full
 * disk behind standard output would go unnoticed; hence the entry of our own.
 */

#include <stdio.h>
#include <stdlib.h>

#include "ploop-img.h"

static void
print_help (const struct subcommand *self, GOptionContext *context)
{
  g_autofree char *program = g_strdup_printf ("ploop-img %s", self->name);
  g_autofree char *help = NULL;
  g_autoptr (GString) ascii = NULL;

  g_set_prgname (program);
  help = g_option_context_get_help (context, TRUE, NULL);
  ascii = g_string_new (help);
  g_string_replace (ascii, "…", "...", 0);
  fputs (ascii->str, stdout);
}

/* Are there as many ARGUMENTS as SELF names, of which those in brackets may be left
 * out?  If not, report it.
 */
static bool
arguments_are_complete (const struct subcommand *self, char **arguments)
{
  g_auto (GStrv) names = g_strsplit (self->arguments, " ", -1);
  guint expected = g_strv_length (names);
  guint given = arguments == NULL ? 0 : g_strv_length (arguments);

  if (given < expected && names[given][0] != '[') {
    report_usage_error (self, "%s is missing", names[given]);
    return false;
  }
  if (given > expected) {
    report_usage_error (self, "unexpected argument '%s'", arguments[expected]);
    return false;
  }
  return true;
}

/* Where GLib puts the common options. */
static char *output;
static gboolean show_progress, is_quiet;

static void
add_common_entries (GOptionContext *context, unsigned mask)
{
  static const GOptionEntry entries[] = {
    { "output", 0, 0, G_OPTION_ARG_STRING, &output,
      "Form of the output (default: human)", "human|json" },
    { "progress", 'p', 0, G_OPTION_ARG_NONE, &show_progress,
      "Show progress even if standard error is no terminal", NULL },
    { "quiet", 'q', 0, G_OPTION_ARG_NONE, &is_quiet,
      "Print nothing but errors", NULL },
  };

  for (size_t i = 0; i < G_N_ELEMENTS (entries); i++)
    if (mask & (1u << i)) {
      const GOptionEntry one[] = { entries[i], G_OPTION_ENTRY_NULL };

      g_option_context_add_main_entries (context, one, NULL);
    }
}

static bool
take_common (const struct subcommand *self, struct common_options *common)
{
  g_autoptr (GError) error = NULL;

  *common = (struct common_options) { OUTPUT_HUMAN, show_progress, is_quiet };
  if (output_parse_format (output, &common->output, &error))
    return true;
  report_usage_error (self, "%s", error->message);
  return false;
}

char **
command_line_parse (const struct subcommand *self, const GOptionEntry *entries,
                    unsigned common_mask, struct common_options *common,
                    int argc, char **argv, int *status)
{
  gboolean help = FALSE;
  g_auto (GStrv) arguments = NULL;
  const GOptionEntry all[] = {
    { "help", 'h', 0, G_OPTION_ARG_NONE, &help, "Show this help", NULL },
    { G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &arguments, NULL,
      self->arguments },
    G_OPTION_ENTRY_NULL
  };
  g_autoptr (GOptionContext) context = g_option_context_new (NULL);
  g_autoptr (GError) error = NULL;

  g_option_context_set_help_enabled (context, FALSE);
  g_option_context_set_summary (context, self->summary);
  g_option_context_add_main_entries (context, entries, NULL);
  add_common_entries (context, common_mask);
  g_option_context_add_main_entries (context, all, NULL);
  *status = EXIT_FAILURE;
  if (!g_option_context_parse (context, &argc, &argv, &error)) {
    report_usage_error (self, "%s", error->message);
    return NULL;
  }
  if (help) {
    print_help (self, context);
    *status = EXIT_SUCCESS;
    return NULL;
  }
  if (!arguments_are_complete (self, arguments) || !take_common (self, common))
    return NULL;
  return g_steal_pointer (&arguments);
}
