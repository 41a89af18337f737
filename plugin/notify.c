/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Telling the service manager when the server is ready, and when it ends: notify.h.
 *
 * A message is lines of NAME=VALUE.  The text for people has names of files in it, and
 * these must not become lines of their own.
 *
 * There is no watchdog: the one thing that can hang is a disk below, and a server that
 * is killed for that loses its clients and mends nothing.
 */

#include <config.h>

#include <stdarg.h>

#include "notify.h"

#ifdef HAVE_LIBSYSTEMD

#include <systemd/sd-daemon.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

/* How long closing may take.  Said once, as a thread that says it again and again
 * would only tell that this thread is alive.  Whoever is killed after that has lost
 * nothing that was answered.
 */
#define CLOSING_SECONDS 600

/* TEXT as one line of UTF-8, which the service manager insists on. */
static char *
one_line (const char *text)
{
  char *line = g_utf8_make_valid (text, -1);

  for (char *c = line; *c != '\0'; c++)
    if (g_ascii_iscntrl (*c))
      *c = '?';
  return line;
}

static void G_GNUC_PRINTF (2, 0)
notify (const char *state, const char *format, va_list args)
{
  g_autofree char *text = g_strdup_vprintf (format, args);
  g_autofree char *status = one_line (text);
  const int r = sd_notifyf (0, "%s\nSTATUS=%s", state, status);

  if (r < 0)
    nbdkit_debug ("the service manager cannot be told: %s", g_strerror (-r));
}

bool
notify_is_there (void)
{
  return true;
}

void
notify_ready (const char *format, ...)
{
  va_list args;

  va_start (args, format);
  notify ("READY=1", format, args);
  va_end (args);
}

void
notify_stopping (const char *format, ...)
{
  va_list args;

  va_start (args, format);
  notify ("STOPPING=1\nEXTEND_TIMEOUT_USEC=" G_STRINGIFY (CLOSING_SECONDS) "000000",
          format, args);
  va_end (args);
}

#else /* !HAVE_LIBSYSTEMD */

bool
notify_is_there (void)
{
  return false;
}

void
notify_ready (const char *format, ...)
{
  (void) format;
}

void
notify_stopping (const char *format, ...)
{
  (void) format;
}

#endif /* !HAVE_LIBSYSTEMD */
