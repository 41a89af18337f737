/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Ending a server whose clients stay.
 *
 * nbdkit 1.32 that is told to end waits for each client to send one more request or to
 * go; one that stays and is silent, such as a kernel with an idle file system, keeps
 * it from ending for ever, and the images from being closed.
 */

#ifndef PLOOP_PLUGIN_HANG_UP_H
#define PLOOP_PLUGIN_HANG_UP_H

#include <stdbool.h>

#include <glib.h>

/* After the server has forked and listens: from now on, a signal that ends the server
 * hangs up its clients, too.  Returns false and sets ERROR when that cannot be, for
 * example without /proc; the server can go on.
 */
bool hang_up_start (GError **error);

/* All clients have gone. */
void hang_up_stop (void);

#endif /* PLOOP_PLUGIN_HANG_UP_H */
