/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The format extension: one cluster of an image that carries changed-block
 * bitmaps.  Pure functions over its bytes.
 *
 *   offset  size  field
 *   0       8     magic
 *   8       16    MD5 of bytes 24 to the end of the cluster
 *   24            features: magic (8), flags (8), data size (4), padding (4),
 *                 data, then the next; magic 0 ends the list
 *
 * A dirty bitmap's data: disk size in sectors (8), UUID (16), granularity in
 * sectors (4), length of L1 (4), L1 entries (8 each): 0 all clear, 1 all set,
 * else the sector of a cluster of bits, least significant first.  An L1 of no
 * entries is a bitmap with nothing set (libploop begins one so).
 *
 * qemu rounds the data to 8 bytes, as the published description says; libploop
 * does not.  A bitmap's data is a multiple of 8 always, so this matters only for
 * features that neither of them writes.  Both ways are read: rounded if what it
 * takes to round is zeros and the list makes sense then, else not.  What is written
 * has the bitmaps first, where both look for them, and then the others with the
 * padding that they were found with.
 *
 * Flags say what a program does with a feature that it does not know: it must not
 * change the file (necessary), it keeps it (transit), or else it drops it.
 */

#ifndef PLOOP_LIB_EXTENSION_H
#define PLOOP_LIB_EXTENSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

#include "format.h"

#define EXTENSION_NECESSARY 1u
#define EXTENSION_TRANSIT 2u

struct extension_bitmap {
  uint64_t flags;
  uint64_t size_sectors;        /* of the disk that it is of */
  uint8_t uuid[16];
  uint32_t granularity;         /* sectors of the disk that a bit is for */
  uint32_t nr_l1;
  uint64_t nr_l1_needed;        /* for such a disk, unless the table is empty */
  uint64_t *l1;                 /* as stored; owned by extension.bitmaps */
};

/* A feature that is no bitmap. */
struct extension_feature {
  uint64_t magic, flags;
  uint32_t length;
  uint8_t *bytes;               /* all of it, header and padding too */
};

/* What is in the cluster: bitmaps; other features; and the host clusters of bits
 * that the bitmaps name, as offsets in the file.
 */
struct extension {
  unsigned nr_bitmaps;
  unsigned nr_unknown;
  GArray *bit_clusters;         /* of uint64_t, bytes */
  GArray *bitmaps;              /* of struct extension_bitmap */
  GArray *others;               /* of struct extension_feature */
};

/* Judge where the header says that the extension is; FILE_SIZE in bytes.
 * Returns NULL when it can be read there, else what is wrong (g_free).
 */
char *extension_check_place (const struct format_header *header,
                             const struct format_layout *layout,
                             uint64_t file_size);

/* Parse the cluster at BYTES, layout->cluster_size long, of a file of
 * FILE_SIZE bytes.  Returns NULL and fills in EXTENSION
 * (extension_clear), or returns what is wrong with it (g_free).
 */
char *extension_decode (const uint8_t *bytes,
                        const struct format_layout *layout,
                        uint64_t file_size, struct extension *extension);

/* The same; an unknown feature that is necessary is wrong, too. */
char *extension_parse (const uint8_t *bytes,
                       const struct format_layout *layout,
                       uint64_t file_size, struct extension *extension);

/* Why nothing may be changed (g_free): a feature is necessary and unknown.  NULL: there
 * is none.
 */
char *extension_check_necessary (const struct extension *extension);

/* An extension without a feature. */
void extension_init (struct extension *extension);

void extension_clear (struct extension *extension);

/* How many bits BITMAP has. */
uint64_t extension_nr_bits (const struct extension_bitmap *bitmap);

/* How many L1 entries a bitmap of NR_BITS takes. */
uint64_t extension_nr_l1 (const struct format_layout *layout,
                          uint64_t nr_bits);

/* Add BITMAP to EXTENSION, which takes its L1 over. */
void extension_add_bitmap (struct extension *extension,
                           const struct extension_bitmap *bitmap);

/* Take bitmap number I out. */
void extension_remove_bitmap (struct extension *extension, guint i);

/* After the L1 of a bitmap was changed: which clusters are named now. */
void extension_update_clusters (struct extension *extension);

/* Take out what is to be dropped by those who do not know it. */
void extension_remove_droppable (struct extension *extension);

/* Bytes of the cluster that EXTENSION takes. */
uint64_t extension_length (const struct extension *extension);

/* Encode EXTENSION, which takes no more than that, into the cluster at BYTES. */
void extension_encode (const struct extension *extension,
                       const struct format_layout *layout, uint8_t *bytes);

#endif /* PLOOP_LIB_EXTENSION_H */
