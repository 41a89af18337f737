/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the server's clients can ask for by name: the disk itself, under the
 * empty name, and its snapshots, under their GUIDs.
 *
 * A snapshot is opened when the first client asks for it and closed when the last
 * one has gone.  Names come from clients: they are looked up, never used for
 * anything else.
 */

#ifndef PLOOP_PLUGIN_EXPORTS_H
#define PLOOP_PLUGIN_EXPORTS_H

#include <stdbool.h>

#include <glib.h>

#include "ploop-core.h"

/* An image that clients use. */
struct export {
  ploop_image *image;
  char *guid;                   /* NULL: the disk itself */
  unsigned nr_users;
};

/* DISK is open; it and its snapshots are what clients get.  PATH, OPTIONS and all
 * that they refer to must live as long as exports are used.
 */
void exports_init (ploop_image *disk, const char *path,
                   const struct ploop_open_options *options);

/* The export NAME, for one user more.  Returns NULL and sets ERROR when there is
 * no such export or it cannot be opened.  From any thread.
 */
struct export *exports_get (const char *name, GError **error);

/* One user less. */
void exports_put (struct export *export);

/* Stop and close all snapshots that are open.  Nobody uses them any more. */
void exports_stop (void);
void exports_close (void);

#endif /* PLOOP_PLUGIN_EXPORTS_H */
