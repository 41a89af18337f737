/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A new file in the place of an old one: whoever looks, and whenever the power
 * is cut, finds one of the two, whole.
 *
 *   replace_begin   makes the new file, beside the old one
 *                   the caller writes to it
 *   replace_end     renames it over the old one
 *   replace_sync    makes that last
 */

#ifndef PLOOP_LIB_REPLACE_H
#define PLOOP_LIB_REPLACE_H

#include <sys/stat.h>

#include <glib.h>

struct replacement {
  int directory_fd;
  const char *name;             /* the old file's */
  char *beside;                 /* the new one's until it takes that place */
  int fd;                       /* what is written goes here */
};

/* Begin to put a file in the place of NAME in the directory open at
 * DIRECTORY_FD (O_PATH will do); both must last until replace_end, which is
 * needed only if this succeeds.
 *
 * Returns 0 or a negative errno; BESIDE is set in each case (g_free).
 */
int replace_begin (struct replacement *replacement, int directory_fd,
                   const char *name);

/* Let the new file take its place, with mode and owner of OLD, the owner as far
 * as the process may give files away.  If R, what came of writing it, is below
 * zero, it is thrown away instead.  *NEW becomes what fstat says of it.
 *
 * Returns 0; or a negative errno, R if that is one, and then the old file is
 * there and no other.
 */
int replace_end (struct replacement *replacement, int r,
                 const struct stat *old, struct stat *new);

/* Then it is there for good.  Returns 0 or a negative errno; -EINVAL: the file
 * system cannot sync a directory.
 */
int replace_sync (int directory_fd);

#endif /* PLOOP_LIB_REPLACE_H */
