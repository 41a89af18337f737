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
 * else the sector of a cluster of bits.  qemu rounds the data to 8 bytes,
 * libploop does not.
 */

#ifndef PLOOP_LIB_EXTENSION_H
#define PLOOP_LIB_EXTENSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

#include "format.h"

/* What extension_parse found: the host clusters of bits that it names, as
 * offsets in the file, and how many bitmaps.
 */
struct extension {
  unsigned nr_bitmaps;
  GArray *bit_clusters;         /* of uint64_t, bytes */
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
char *extension_parse (const uint8_t *bytes,
                       const struct format_layout *layout,
                       uint64_t file_size, struct extension *extension);

void extension_clear (struct extension *extension);

#endif /* PLOOP_LIB_EXTENSION_H */
