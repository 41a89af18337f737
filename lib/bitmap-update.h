/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The changed-block bitmaps of one delta are changed, and carried over to another.
 *
 * A change is an update: begin it, change update->new, commit it; end it in any
 * case.  Until the commit the delta carries what it did, whatever happens, and from
 * then on what the update says; bitmap-update.c explains why.
 */

#ifndef PLOOP_LIB_BITMAP_UPDATE_H
#define PLOOP_LIB_BITMAP_UPDATE_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "bitmap.h"
#include "delta.h"
#include "error.h"
#include "extension.h"

struct bitmap_update {
  struct delta *delta;
  const struct log *log;
  bool dry_run;                 /* nothing is written */
  struct extension new;         /* what there will be */
  uint64_t file_size_after;     /* bytes; known after the commit */
  unsigned nr_dropped;          /* bitmaps, by bitmap_update_begin_drop */

  GArray *old_clusters;         /* of uint64_t, offsets, sorted: what is in use until
                                   the commit */
  bool has_unknown_owners;      /* a feature that nobody knows may have clusters */
  uint64_t data_end;            /* no guest's cluster lies behind it: bytes */
  uint64_t next_cell;           /* the next that may be written to */
  uint64_t end;                 /* of the file, with what was written so far */
  uint64_t first_written;       /* offset; 0: nothing was */
  bool marked;                  /* the header may say that it is in use */
  bool committed;
};

/* Begin to change the bitmaps of DELTA, open for writing unless it is a DRY_RUN, to
 * which nobody writes meanwhile.  LOG may be NULL.  Returns false and sets ERROR when
 * that must not be: the image was not closed, is damaged, or its extension is stale,
 * damaged, or has what must not be changed.
 *
 * bitmap_update_end is needed only if this succeeds.
 */
bool bitmap_update_begin (struct bitmap_update *update, struct delta *delta,
                          bool dry_run, const struct log *log,
                          GError **error);

/* The same, to drop all of an extension, even one that is stale or damaged: there is
 * nothing in update->new.  Refuses only what is valid and must not be changed.
 */
bool bitmap_update_begin_drop (struct bitmap_update *update,
                               struct delta *delta, bool dry_run,
                               const struct log *log, GError **error);

/* Is there room in the extension for MORE bytes than update->new takes?  If not, sets
 * ERROR.
 */
bool bitmap_update_check_length (const struct bitmap_update *update,
                                 uint64_t more, GError **error);

/* Mark in bitmap number I of update->new what is marked in SOURCE, of SOURCE_DELTA,
 * too.  Any granularity will do.  SOURCE may not be one of update->new.
 */
bool bitmap_update_merge (struct bitmap_update *update, guint i,
                          const struct delta *source_delta,
                          const struct extension_bitmap *source,
                          GError **error);

/* Let the delta carry update->new, durably; nothing at all if there is nothing in it.
 * Returns false and sets ERROR when that failed; then it carries what it did before,
 * unless ERROR says that it may be either.
 */
bool bitmap_update_commit (struct bitmap_update *update, GError **error);

void bitmap_update_end (struct bitmap_update *update);

/* ---- Between deltas ---------------------------------------------------- */

/* Let TO, an image without bitmaps, carry those of FROM as well; both are open for
 * writing, or FROM for reading.  Durable when it returns true.  What FROM has that is
 * stale is worth a warning, and is not copied.
 */
bool bitmap_copy (struct delta *from, struct delta *to,
                  const struct log *log, GError **error);

/* Let DELTA carry no bitmaps any more, if it has any that are valid. */
bool bitmap_remove_all (struct delta *delta, const struct log *log,
                        GError **error);

/* Both: tracking goes on in TO, a new and empty delta above FROM.
 *
 * At every instant one of the two has the bitmaps, as nothing is removed before the
 * copy is durable.  Who has a descriptor to change in between, so that TO becomes the
 * disk's top, calls bitmap_copy before it is stored and bitmap_remove_all after: then
 * it is always the top that has them.  A FROM that keeps its own, because the second
 * was never reached, lies about nothing: nobody writes to it any more.
 */
bool bitmap_move (struct delta *from, struct delta *to,
                  const struct log *log, GError **error);

#endif /* PLOOP_LIB_BITMAP_UPDATE_H */
