/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What nbdkit knows and does not tell its plugins in time. */

#ifndef PLOOP_PLUGIN_COMMAND_LINE_H
#define PLOOP_PLUGIN_COMMAND_LINE_H

#include <stdbool.h>
#include <stddef.h>

/* Was nbdkit started with -r?
 *
 * A plugin learns it with the first connection only; but the image is opened
 * and locked before the server says that it is up, and who serves an image
 * read-only must not lock out others who read it.  So this looks at the
 * command line of the process.
 *
 * If it were to err: true by mistake serves the image read-only, false by
 * mistake takes the lock of a writer; nbdkit itself refuses the writes under
 * -r in any case.
 */
bool command_line_is_read_only (void);

/* The same of a given command line, of ARGUMENTS ended by NULL. */
bool arguments_are_read_only (char *const *arguments);

#endif /* PLOOP_PLUGIN_COMMAND_LINE_H */
