/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The header of an image that may be damaged: what of it can be believed is, what
 * cannot has to be given, and nothing is guessed.
 *
 * Reading needs the version, the cluster size, the disk's size and the number of BAT
 * entries.  Of the others a wrong one only has to be mentioned.
 */

#ifndef PLOOP_LIB_HEADER_H
#define PLOOP_LIB_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#include "error.h"
#include "format.h"
#include "tolerant.h"

/* What the user knows; 0: nothing. */
struct header_given {
  unsigned version;
  uint32_t cluster_size;        /* bytes */
  uint64_t size;                /* of the disk, bytes */
};

/* Judge the header BYTES of FILE, named NAME, with what is GIVEN in the place of what
 * it says, and fill in HEADER and LAYOUT.  The file may end before the BAT does.
 *
 * Returns false and sets ERROR (PLOOP_ERROR_CORRUPT), which says what has to be given
 * and what the file itself makes plausible.
 */
bool header_judge (const struct tolerant *file, const char *name,
                   const uint8_t bytes[FORMAT_HEADER_SIZE],
                   const struct header_given *given, const struct log *log,
                   struct format_header *header,
                   struct format_layout *layout, GError **error);

/* Can all of the header BYTES be believed, in a file of FILE_SIZE bytes? */
bool header_is_sound (const uint8_t bytes[FORMAT_HEADER_SIZE],
                      uint64_t file_size);

#endif /* PLOOP_LIB_HEADER_H */
