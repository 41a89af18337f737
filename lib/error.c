/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Errors and log lines: see error.h. */

#include <config.h>

#include <stdarg.h>
#include <stdlib.h>

#include "error.h"

GQuark
ploop_error_quark (void)
{
  return g_quark_from_static_string ("ploop-error");
}

void
error_set_system (GError **error, int errnum, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);

  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM, "%s: %s", text,
               g_strerror (abs (errnum)));
}

static void
G_GNUC_PRINTF (3, 0)
log_line (const struct log *log, enum ploop_log_level level,
          const char *format, va_list args)
{
  g_autofree char *text = NULL;

  if (!log->write)
    return;
  text = g_strdup_vprintf (format, args);
  log->write (log->opaque, level, text);
}

void
log_debug (const struct log *log, const char *format, ...)
{
  va_list args;

  va_start (args, format);
  log_line (log, PLOOP_LOG_DEBUG, format, args);
  va_end (args);
}

void
log_warning (const struct log *log, const char *format, ...)
{
  va_list args;

  va_start (args, format);
  log_line (log, PLOOP_LOG_WARNING, format, args);
  va_end (args);
}
