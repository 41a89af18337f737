/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the server's clients can ask for by name.
 *
 * Of one disk: the disk itself, under the empty name, and its snapshots, under their
 * GUIDs.  Of a directory: every disk below it, under its relative name, and that
 * name, a slash and a GUID for its snapshots.
 *
 * Whatever is not open all the time is opened when the first client asks for it, and
 * closed when the last one has gone: at once, or when nobody has come back for some
 * time.  Names come from clients: they are looked up, never used for anything else.
 *
 * Every function may be called from any thread, but exports_init and exports_stop.
 */

#ifndef PLOOP_PLUGIN_EXPORTS_H
#define PLOOP_PLUGIN_EXPORTS_H

#include <stdbool.h>

#include <glib.h>

#include "ploop-core.h"

/* An image that clients use. */
struct export {
  ploop_image *image;
  const char *path;             /* of the disk: for messages */
  const char *guid;             /* it is this snapshot of it; NULL: what is served
                                   without a name of its own */
};

struct exports_options {
  const char *path;             /* the disk, or the directory */
  ploop_image *disk;            /* that is open all the time; NULL: a directory */
  const struct ploop_open_options *open;
  unsigned idle_seconds;        /* of a directory's */
  void (*opened) (const struct export *export);
  void (*closing) (const struct export *export);        /* stopped, not closed yet */
  void (*failed) (const GError *error);         /* nobody waits for the answer */
};

/* OPTIONS and all that they refer to must live as long as exports are used. */
void exports_init (const struct exports_options *options);

/* After the server has forked: start the thread that closes what is idle, if there
 * is to be one.  Returns false and sets ERROR when it cannot be started.
 */
bool exports_start (GError **error);

/* Calls FN for each export.  Returns 0, the first result that is not, or -1 with
 * ERROR set when they cannot be listed.
 */
int exports_list (int (*fn) (void *opaque, const char *name,
                             const struct ploop_snapshot *snapshot),
                  void *opaque, GError **error);

/* The export NAME, for one user more.  Blocks while it is opened.  Returns NULL and
 * sets ERROR when there is no such export or it cannot be opened.
 */
struct export *exports_get (const char *name, GError **error);

/* One user less.  Blocks while it is closed, if that is at once. */
void exports_put (struct export *export);

/* Call FN for each that is open, in no order.  None of them is closed meanwhile; FN
 * must not block, for clients that come and go wait for it.
 */
void exports_foreach (void (*fn) (void *opaque, const struct export *export),
                      void *opaque);

/* Stop what is open, and then, when nobody uses it any more, close it; but not the
 * disk that is open all the time.
 */
void exports_stop (void);
void exports_close (void);

#endif /* PLOOP_PLUGIN_EXPORTS_H */
