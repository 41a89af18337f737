/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Telling and counting what a check has found: see findings.h. */

#include <config.h>

#include <stdarg.h>
#include <string.h>

#include "check-delta.h"
#include "findings.h"

void
findings_pass_on (void *opaque, enum ploop_finding finding,
                  const char *message)
{
  const struct findings *findings = opaque;

  if (findings->report)
    findings->report (findings->opaque, findings->file, finding, message);
}

void
findings_add (struct findings *findings, const char *file,
              enum ploop_finding finding, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);
  check_count (&findings->result, finding);
  findings->file = file;
  findings_pass_on (findings, finding, text);
}

void
findings_add_error (struct findings *findings, const char *file,
                    const GError *error, const char *hint)
{
  const char *text = error->message;

  if (g_str_has_prefix (text, file) && strncmp (text + strlen (file), ": ", 2) == 0)
    text += strlen (file) + 2;
  findings_add (findings, file, PLOOP_FINDING_ERROR, "%s%s", text, hint);
}
