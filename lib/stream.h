/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A raw disk that can be read only once, and from one end to the other: standard input,
 * or a fifo (a shell's <(...) is one).  How large it is, its end tells.
 */

#ifndef PLOOP_LIB_STREAM_H
#define PLOOP_LIB_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include <sys/types.h>

#include <glib.h>

#include "error.h"

/* Is NAME one ("-" is standard input), and not a disk that store_open opens? */
bool stream_is (const char *name);

/* What to call it in a message. */
const char *stream_title (const char *name);

/* Returns a file descriptor, to be closed; or -1 with ERROR set.  Does not wait for
 * those who write to a fifo.
 */
int stream_open (const char *name, GError **error);

/* Called about five times a second while nothing comes; returns false to wait no more. */
typedef bool (*stream_wait_fn) (void *opaque);

/* Read LENGTH bytes, or up to the end.  Returns how many, a negative errno, or
 * -ECANCELED when GO_ON has returned false.
 */
ssize_t stream_read (int fd, void *buf, size_t length, stream_wait_fn go_on,
                     void *opaque);

#endif /* PLOOP_LIB_STREAM_H */
