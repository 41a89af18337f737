/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A new file in the place of an old one: whoever looks, and whenever the power
 * is cut, finds one of the two, whole.
 */

#ifndef PLOOP_LIB_REPLACE_H
#define PLOOP_LIB_REPLACE_H

#include <sys/stat.h>

#include <glib.h>

/* Put a file with TEXT in the place of NAME in the directory open at
 * DIRECTORY_FD (O_PATH will do), with mode and owner of OLD, the owner as far
 * as the process may give files away.  *NEW becomes what fstat says of it.
 *
 * Returns 0; or a negative errno, and then the old file is there and no other.
 */
int replace_file (int directory_fd, const char *name, GBytes *text,
                  const struct stat *old, struct stat *new);

/* Then it is there for good.  Returns 0 or a negative errno. */
int replace_sync (int directory_fd);

#endif /* PLOOP_LIB_REPLACE_H */
