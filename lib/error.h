/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The two things that every room says upwards: a GError, and a line for the
 * user's log.
 */

#ifndef PLOOP_LIB_ERROR_H
#define PLOOP_LIB_ERROR_H

#include <glib.h>

#include "ploop-core.h"

/* Set ERROR (PLOOP_ERROR_SYSTEM) to the formatted text, a colon, and what
 * errno value ERRNUM means.  Negative values are taken as -ERRNUM.
 */
void error_set_system (GError **error, int errnum, const char *format, ...)
  G_GNUC_PRINTF (3, 4);

/* Where messages go that are not errors. */
struct log {
  ploop_log_fn write;           /* NULL: nowhere */
  void *opaque;
};

void log_debug (const struct log *log, const char *format, ...)
  G_GNUC_PRINTF (2, 3);
void log_warning (const struct log *log, const char *format, ...)
  G_GNUC_PRINTF (2, 3);

#endif /* PLOOP_LIB_ERROR_H */
