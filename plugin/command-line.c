/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Looking for -r on nbdkit's command line: see command-line.h. */

#include <config.h>

#include <string.h>

#include <glib.h>

#include "command-line.h"

/* Short options of nbdkit that take an argument: the rest of their word or the
 * next word.  The others can be run together, as in -fr.
 */
static const char with_argument[] = "DegiPptuU";

/* The long ones that do, when it is not given with "=". */
static const char *const long_with_argument[] = {
  "--debug", "--exit-with-parent-fd", "--export", "--export-name",
  "--exportname", "--filter", "--group", "--ip-addr", "--ipaddr", "--log",
  "--mask-handshake", "--pid-file", "--pidfile", "--port", "--run",
  "--selinux-label", "--threads", "--timeout", "--tls", "--tls-certificates",
  "--tls-psk", "--unix", "--user", "--vsock-port", NULL,
};

/* One word of short options.  *TAKES_NEXT: the next word is an argument. */
static bool
short_options_have_r (const char *word, bool *takes_next)
{
  for (const char *p = word + 1; *p != '\0'; p++) {
    if (*p == 'r')
      return true;
    if (strchr (with_argument, *p)) {
      *takes_next = p[1] == '\0';
      return false;
    }
  }
  return false;
}

/* Long options may be cut short as long as no other begins so. */
static bool
is_long_readonly (const char *word)
{
  return strlen (word) >= strlen ("--re")
         && (g_str_has_prefix ("--readonly", word)
             || g_str_has_prefix ("--read-only", word));
}

bool
arguments_are_read_only (char *const *arguments)
{
  bool takes_next = false;

  if (!*arguments)
    return false;
  for (char *const *word = arguments + 1; *word; word++) {
    if (takes_next) {
      takes_next = false;
      continue;
    }
    if (strcmp (*word, "--") == 0)
      return false;
    if (is_long_readonly (*word))
      return true;
    if (g_str_has_prefix (*word, "--"))
      takes_next = g_strv_contains (long_with_argument, *word);
    else if ((*word)[0] == '-' && short_options_have_r (*word, &takes_next))
      return true;
  }
  return false;
}

bool
command_line_is_read_only (void)
{
  g_autofree char *content = NULL;
  g_autoptr (GPtrArray) arguments = g_ptr_array_new ();
  gsize length = 0;

  if (!g_file_get_contents ("/proc/self/cmdline", &content, &length, NULL))
    return false;
  /* Each word ends with a NUL. */
  for (gsize i = 0; i < length; i += strlen (content + i) + 1)
    g_ptr_array_add (arguments, content + i);
  g_ptr_array_add (arguments, NULL);
  return arguments_are_read_only ((char *const *) arguments->pdata);
}
