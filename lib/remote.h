/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A disk image that an NBD server exports, to read only: the base of thin disks
 * on one golden image.
 *
 * A read takes a connection of its own for as long as it lasts.  A connection
 * that is lost is made anew, and what it was to read is read again: a server
 * that is restarted costs time, not errors.  Whatever is read comes from an
 * export of the size that the first connection saw.
 *
 *   function            may be called from             blocks
 *   remote_open         any thread                     for one connection
 *   remote_pread        any thread, many at once       see below
 *   remote_next_data    one thread at a time           like remote_pread
 *   remote_stop         any thread                     no
 *   remote_close        when all others have returned  no
 *
 * How long a read may block: until the server has answered, which may take
 * reply_seconds; if it has not by then, or the connection is lost, another
 * retry_seconds.  When more threads read than connections are allowed, they
 * wait for each other too.  (Looking up a host's name is the C library's, with
 * its own limits; remote_stop does not cut that short.)
 *
 * No thread is started here, and what is open stays usable in the child of a
 * fork, if the parent does not use it any more.
 */

#ifndef PLOOP_LIB_REMOTE_H
#define PLOOP_LIB_REMOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <glib.h>

#include "error.h"

struct remote;

/* Zero stands for a default in each. */
struct remote_options {
  /* At most so many connections at once, and so many reads; fewer when the
   * server does not take more.  0: REMOTE_CONNECTIONS, or one when the server
   * does not say that it takes several (NBD_FLAG_CAN_MULTI_CONN).
   */
  unsigned connections;
  unsigned reply_seconds;       /* what one answer may take; 0: 30 */
  unsigned retry_seconds;       /* how long a read is tried again; 0: 30 */
  const struct log *log;        /* must outlive the remote; NULL: nowhere */
  /* Asked about once a second, by a read that waits: true ends this read with
   * -ESHUTDOWN.  NULL: never.
   */
  bool (*give_up) (void *opaque);
  void *give_up_opaque;
};

#define REMOTE_CONNECTIONS 8u

/* Connect to URI (nbd:, nbds:, nbd+unix:, nbds+unix:, with all that libnbd
 * allows in them, names of local files with keys too) and see that the export
 * can be read: once, without trying again.
 */
struct remote *remote_open (const char *uri,
                            const struct remote_options *options,
                            GError **error);

/* Close all connections and free.  NULL is ignored. */
void remote_close (struct remote *remote);

/* Let all reads end soon, those that come later too, with -ESHUTDOWN. */
void remote_stop (struct remote *remote);

/* Bytes, above zero; the same for as long as it is open. */
uint64_t remote_size (const struct remote *remote);

/* Read LENGTH bytes at OFFSET, of any alignment.  What lies past the end reads
 * as zeros.
 *
 * Returns 0; -EIO when the server says that it cannot read this (then at once),
 * when it cannot be reached, or has an export of another size now; -ENOMEM;
 * -ESHUTDOWN.  No other error, as one that the server sends may mean something
 * else to a caller here.  After an error the content of BUF is undefined; the
 * next read tries again from the start.
 */
int remote_pread (struct remote *remote, void *buf, size_t length,
                  uint64_t offset);

/* Find the next range at or after *START and below END that may hold data.
 * Returns false when there is none.
 *
 * Leaves out what the server says reads as zeros (base:allocation).  Where it
 * says nothing, or cannot be asked, all may be data.
 */
bool remote_next_data (struct remote *remote, uint64_t end, uint64_t *start,
                       uint64_t *stop);

/* Did the last attempt to reach the server fail?  Then the next one takes long, too.
 * From any thread.
 */
bool remote_is_lost (struct remote *remote);

#endif /* PLOOP_LIB_REMOTE_H */
