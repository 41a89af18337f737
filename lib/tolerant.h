/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A file that may not be readable everywhere: what a bad sector takes with it is that
 * sector, and nothing that lies beside it.
 */

#ifndef PLOOP_LIB_TOLERANT_H
#define PLOOP_LIB_TOLERANT_H

#include <stddef.h>
#include <stdint.h>

#include <glib.h>

#include "delta.h"
#include "error.h"

struct tolerant {
  struct delta *delta;          /* its header and layout are the owner's */
  int direct_fd;                /* past the page cache; -1: none */
};

/* Open PATH, or the file at PATH_FD if that is not -1, whatever is in it: a regular
 * file, a block device, or the URI of an NBD export.  It is locked as for reading; on
 * a file system without locks, that is only worth a warning.
 *
 * Returns NULL and sets ERROR when it cannot be opened, or is in use.
 */
struct tolerant *tolerant_open (const char *path, int path_fd,
                                const struct log *log, GError **error);

/* NULL is ignored. */
void tolerant_close (struct tolerant *file);

/* Told of what cannot be read, which is zeros in the buffer. */
typedef void (*tolerant_bad_fn) (void *opaque, uint64_t offset,
                                 uint64_t length);

/* Read LENGTH bytes at OFFSET; what is behind the end of the file is zeros.  What
 * cannot be read at once is tried again in smaller pieces, down to sectors.  From any
 * thread.
 */
void tolerant_read (const struct tolerant *file, void *buf, size_t length,
                    uint64_t offset, tolerant_bad_fn bad, void *opaque);

#endif /* PLOOP_LIB_TOLERANT_H */
