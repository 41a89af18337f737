/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Telling the user what went wrong: on standard error, one line that begins
 * with the name of the tool, and an exit status to go with it.
 *
 * A result that did not reach standard output is an error like any other, but
 * stdio tells of it late or never unless asked: report_finish asks.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "ploop-img.h"

int
report_error (const GError *error)
{
  fflush (stdout);              /* what was found comes before what failed */
  fprintf (stderr, "ploop-img: %s\n", error->message);
  return EXIT_FAILURE;
}

int
report_usage_error (const struct subcommand *self, const char *format, ...)
{
  const char *space = self == NULL ? "" : " ";
  const char *name = self == NULL ? "" : self->name;
  va_list arguments;

  fprintf (stderr, "ploop-img%s%s: ", space, name);
  va_start (arguments, format);
  vfprintf (stderr, format, arguments);
  va_end (arguments);
  fprintf (stderr, "\ntry ploop-img%s%s --help\n", space, name);
  return EXIT_FAILURE;
}

void
report_log (void *opaque G_GNUC_UNUSED, enum ploop_log_level level,
            const char *message)
{
  if (level == PLOOP_LOG_WARNING)
    fprintf (stderr, "ploop-img: warning: %s\n", message);
}

int
report_finish (int status)
{
  const bool failed_before = ferror (stdout) != 0;

  if (fclose (stdout) != 0)
    fprintf (stderr, "ploop-img: standard output: %s\n", g_strerror (errno));
  else if (failed_before)
    fprintf (stderr, "ploop-img: standard output: writing failed\n");
  else
    return status;
  return EXIT_FAILURE;
}
