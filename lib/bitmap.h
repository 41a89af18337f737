/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The changed-block bitmaps of one delta, to be read; bitmap-update.h changes them. */

#ifndef PLOOP_LIB_BITMAP_H
#define PLOOP_LIB_BITMAP_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "delta.h"
#include "error.h"
#include "extension.h"

#define BITMAP_UUID_SIZE 16u
#define BITMAP_UUID_TEXT 37u    /* with the zero */

/* UUIDs are stored in the order in which they are written, as qemu and libploop do.
 * Braces and upper case are read, too.
 */
void bitmap_format_uuid (const uint8_t uuid[BITMAP_UUID_SIZE],
                         char text[BITMAP_UUID_TEXT]);
bool bitmap_parse_uuid (const char *text, uint8_t uuid[BITMAP_UUID_SIZE]);

/* ---- Reading ----------------------------------------------------------- */

/* May the bitmaps of a delta be believed?  Only the mark for "closed, extension
 * valid" says so: an image that is open or was not closed, or was closed by a program
 * that knows no bitmaps, may have been written to behind their back.
 */
enum bitmap_state {
  BITMAP_NONE,                  /* there is no extension */
  BITMAP_VALID,
  BITMAP_STALE,
};

enum bitmap_state bitmap_get_state (const struct format_header *header);

/* Where the extension is: bytes; 0 if there is none. */
uint64_t bitmap_extension_offset (const struct delta *delta);

/* The clusters that EXTENSION, DELTA's, names, and its own: offsets in the file, an
 * array of uint64_t, sorted.
 */
GArray *bitmap_list_clusters (const struct delta *delta,
                              const struct extension *extension);

/* By which such arrays are sorted. */
gint bitmap_compare_offsets (gconstpointer a, gconstpointer b);

/* Read the extension of DELTA, which has one.  Returns 0, with *WRONG set if it is
 * damaged (g_free), or else EXTENSION filled in (extension_clear); or a negative errno.
 */
int bitmap_read_extension (const struct delta *delta,
                           struct extension *extension, char **wrong);

/* Read the extension of DELTA, which has one, valid or stale.  Returns false and sets
 * ERROR (PLOOP_ERROR_CORRUPT if it is damaged) when it cannot be read; else EXTENSION
 * is filled in (extension_clear).
 */
bool bitmap_load (const struct delta *delta, struct extension *extension,
                  GError **error);

/* The bitmap of that UUID in EXTENSION, or -1 and ERROR when there is none, or two. */
int bitmap_find (const struct delta *delta, const struct extension *extension,
                 const uint8_t uuid[BITMAP_UUID_SIZE], GError **error);

/* The first bit from FROM up to END that is set, or is not; or END.  BITS is a multiple
 * of 8 bytes long.
 */
uint64_t bitmap_next_bit (const uint8_t *bits, uint64_t from, uint64_t end,
                          bool set);

/* Reads the runs of bits that are set, in ascending order. */
struct bitmap_reader {
  const struct delta *delta;
  const struct extension_bitmap *bitmap;
  uint64_t nr_bits, at;
  uint64_t piece_start, piece_end;      /* bits that are loaded */
  uint8_t *piece;
};

void bitmap_read_begin (struct bitmap_reader *reader,
                        const struct delta *delta,
                        const struct extension_bitmap *bitmap);

/* The next run, bits *FROM up to *TO.  Returns 1, 0 when there is none left, or -1
 * with ERROR set.
 */
int bitmap_read_run (struct bitmap_reader *reader, uint64_t *from,
                     uint64_t *to, GError **error);

/* The same in bits of OTHER, whatever its granularity: those that the run touches.
 * Runs may overlap then.
 */
int bitmap_read_run_as (struct bitmap_reader *reader,
                        const struct extension_bitmap *other, uint64_t *from,
                        uint64_t *to, GError **error);

void bitmap_read_end (struct bitmap_reader *reader);

#endif /* PLOOP_LIB_BITMAP_H */
