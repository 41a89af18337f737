/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A trace, sent to a server on several connections with many requests in flight, and
 * what it reads compared with the model.
 */

#ifndef PLOOP_TEST_REPLAY_H
#define PLOOP_TEST_REPLAY_H

#include <stddef.h>

#include "disk.h"
#include "trace.h"

#define REPLAY_MAX_CONNECTIONS 8u
#define REPLAY_MAX_DEPTH 64u

struct replay {
  const char *uri;
  unsigned nr_connections;      /* 1, unless the server allows several */
  unsigned depth;               /* requests in flight, of all connections */
  const struct trace *trace;
};

/* Send all of it.  Returns the model: what was touched reads as it says.  What is
 * beyond the disk fails.
 */
struct disk *replay_run (const struct replay *replay);

/* Compare all that REPLAY has touched with DISK, on a new connection. */
void replay_compare (const struct replay *replay, struct disk *disk);

#endif /* PLOOP_TEST_REPLAY_H */
