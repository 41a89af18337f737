/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A request's way: in the caller's thread, or through the runners.
 *
 * Through the runners a request is split by who owns its clusters, and the parts
 * run at the same time; a part that finds no space waits with the flusher and
 * is queued again; the last one to end completes the request, or hands it on to
 * the commit that it needs.  All this lives in the request's own memory.
 */

#ifndef PLOOP_LIB_SUBMIT_H
#define PLOOP_LIB_SUBMIT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ploop-core.h"
#include "request.h"

struct submit {
  struct disk *disk;
  bool fast_path;
  bool force;                   /* every write is durable when answered */
  uint64_t stripe;              /* bytes of the disk that one runner owns */
  _Atomic uint64_t nr_accepted; /* queued requests that are not complete */
  _Atomic bool draining;
  pthread_mutex_t drain_lock;
  pthread_cond_t drained;
};

void submit_init (struct submit *submit, struct disk *disk, bool fast_path,
                  bool force);
void submit_destroy (struct submit *submit);

/* Do REQUEST, whose range and flags are right, and return its result.  Blocks;
 * complete is not called.
 */
int submit_and_wait (struct submit *submit, ploop_request *request);

/* Queue it.  Returns 0 or -ESHUTDOWN. */
int submit_queue (struct submit *submit, ploop_request *request);

/* When the gate is closed: wait until no queued request is left. */
void submit_drain (struct submit *submit);

#endif /* PLOOP_LIB_SUBMIT_H */
