/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the server tells of its disks while it runs: to a file for Prometheus, every
 * few seconds, and on SIGUSR1 to the log.  A thread of its own does both, so that no
 * request waits for it.
 *
 * Counts go on when a disk is closed and opened again, as long as it is among those
 * that were closed last.
 */

#ifndef PLOOP_PLUGIN_STATS_H
#define PLOOP_PLUGIN_STATS_H

#include <stdbool.h>

#include <glib.h>

#include "exports.h"

struct stats_options {
  const char *file;             /* absolute; NULL: none is written */
  unsigned seconds;             /* from one time to the next, not 0 */
  const char *served;           /* path of the disk or directory */
};

/* Before the server forks: take SIGUSR1 over, which would end the process, and see
 * that the file can be written; leaves nothing behind.  Strings must live as long as
 * the plugin is used.  Returns false and sets ERROR when it cannot be.
 */
bool stats_get_ready (const struct stats_options *options, GError **error);

/* After it: write the file for the first time, by now as the user that the server
 * runs as, and start the thread.  Returns false and sets ERROR when that fails.
 */
bool stats_start (GError **error);

/* EXPORT has been stopped, and will be closed: its last numbers count.  From any
 * thread, but not under a lock that exports_foreach takes.
 */
void stats_closing (const struct export *export);

/* End the thread, and, with all disks stopped, write the file for the last time.
 * Nothing happens when stats_start was not reached.  SIGUSR1 does nothing from now
 * on.
 */
void stats_stop (void);
void stats_finish (void);

#endif /* PLOOP_PLUGIN_STATS_H */
