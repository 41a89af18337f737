/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One write at a time by io_uring: see ring.h. */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include <glib.h>
#include <liburing.h>

#include "ring.h"
#include "thread.h"

static __thread struct io_uring *mine;
static _Atomic bool refused;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;       /* for what a thread leaves behind */

static void
give_back (void *opaque)
{
  struct io_uring *ring = opaque;

  HANDS_OVER (&key);
  io_uring_queue_exit (ring);
  g_free (ring);
  mine = NULL;
}

static void
refuse (void)
{
  atomic_store_explicit (&refused, true, memory_order_relaxed);
}

static void
make_key (void)
{
  if (pthread_key_create (&key, give_back) != 0)
    refuse ();
}

static struct io_uring *
new_ring (void)
{
  struct io_uring *ring = g_new0 (struct io_uring, 1);

  if (io_uring_queue_init (1, ring, 0) == 0) {
    /* It may be mapped where another thread's was. */
    TAKES_OVER (&key);
    if (pthread_setspecific (key, ring) == 0)
      return ring;
    io_uring_queue_exit (ring);
  }
  g_free (ring);
  refuse ();
  return NULL;
}

bool
ring_is_there (void)
{
  if (G_LIKELY (mine))
    return true;
  pthread_once (&once, make_key);
  if (!atomic_load_explicit (&refused, memory_order_relaxed))
    mine = new_ring ();
  return mine != NULL;
}

/* Hand what was prepared to the kernel, and wait for its end.  NULL: the kernel
 * does not take it, and has nothing of ours.
 */
static struct io_uring_cqe *
finish (struct io_uring *ring)
{
  struct io_uring_cqe *cqe;

  for (;;) {
    const int r = io_uring_submit_and_wait (ring, 1);

    if (io_uring_peek_cqe (ring, &cqe) == 0)
      return cqe;
    /* What it has taken it also ends, and may write until then. */
    if (r < 0 && r != -EINTR && io_uring_sq_ready (ring) > 0)
      return NULL;
  }
}

ssize_t
ring_pwrite (int fd, const void *buf, size_t length, off_t offset)
{
  struct io_uring_sqe *sqe = io_uring_get_sqe (mine);
  struct io_uring_cqe *cqe;
  int r;

  io_uring_prep_write (sqe, fd, buf, (unsigned) length, (uint64_t) offset);
  cqe = finish (mine);
  if (!cqe) {
    refuse ();
    pthread_setspecific (key, NULL);
    give_back (mine);
    errno = EINTR;
    return -1;
  }
  r = cqe->res;
  io_uring_cqe_seen (mine, cqe);
  if (r >= 0)
    return r;
  errno = -r;
  return -1;
}
