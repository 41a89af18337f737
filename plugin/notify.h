/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the service manager is told: sd_notify(3).
 *
 * Nothing happens in a server that no service manager started (NOTIFY_SOCKET is not
 * set), or in a plugin that was built without libsystemd.
 */

#ifndef PLOOP_PLUGIN_NOTIFY_H
#define PLOOP_PLUGIN_NOTIFY_H

#include <stdbool.h>

#include <glib.h>

/* Was this plugin built with libsystemd? */
bool notify_is_there (void);

/* Clients can connect.  The text is for people, who see it in systemctl status. */
void notify_ready (const char *format, ...) G_GNUC_PRINTF (1, 2);

/* All clients have gone, and closing the images begins, which may take longer than
 * the service manager usually waits: gigabytes can be left to sync.
 */
void notify_stopping (const char *format, ...) G_GNUC_PRINTF (1, 2);

#endif /* PLOOP_PLUGIN_NOTIFY_H */
