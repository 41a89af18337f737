/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A copy of parts of a file, each at its place in a sparse file: to put them back, copy
 * what is data in it over the file.
 */

#ifndef PLOOP_LIB_BACKUP_H
#define PLOOP_LIB_BACKUP_H

#include <stdint.h>

#include <glib.h>

#include "delta.h"

struct backup;

/* Begin one of DELTA's file, called PATH, or, if that is NULL, by a name beside it that
 * is free.  Returns NULL and sets ERROR when it cannot be made, or PATH is there.
 */
struct backup *backup_begin (const struct delta *delta, const char *path,
                             GError **error);

/* Copy what is data of LENGTH bytes at OFFSET.  Returns 0; or -1 with ERROR set. */
int backup_add (struct backup *backup, uint64_t length, uint64_t offset,
                GError **error);

/* Let it be there for good.  Returns its name (g_free); or NULL with ERROR set.  BACKUP
 * is gone in each case, with its file if it failed.
 */
char *backup_finish (struct backup *backup, GError **error);

/* Leave nothing of it.  NULL is ignored. */
void backup_abandon (struct backup *backup);

#endif /* PLOOP_LIB_BACKUP_H */
