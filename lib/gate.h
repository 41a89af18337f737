/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What every request passes on its way in.
 *
 * Inside, a request is in an RCU read-side section: no cluster that it finds in
 * the map is given to anybody else before it is out.  The gate is held to let
 * maintenance work on a file that does not change, and closed at the end.
 * Passing it is a read lock and a load.
 */

#ifndef PLOOP_LIB_GATE_H
#define PLOOP_LIB_GATE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <glib.h>

#include "rcu.h"

enum gate_state {
  GATE_OPEN,
  GATE_HELD,                    /* wait */
  GATE_CLOSED,                  /* go away */
};

struct gate {
  _Atomic int state;            /* enum gate_state */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  unsigned nr_holds;            /* under the lock */
};

void gate_init (struct gate *gate);
void gate_destroy (struct gate *gate);

/* Wait until the gate is no longer held.  Returns 0, or -ESHUTDOWN when it is
 * closed.
 */
int gate_wait (struct gate *gate);

/* Enter.  Returns 0, to be followed by gate_leave on the same thread; or
 * -ESHUTDOWN.  Blocks while the gate is held.
 */
static inline int
gate_enter (struct gate *gate)
{
  for (;;) {
    int r;

    rcu_read_lock ();
    /* Who changes the state waits for a grace period after it: whoever is
     * inside by the old state is out then.
     */
    if (G_LIKELY (atomic_load_explicit (&gate->state, memory_order_acquire)
                  == GATE_OPEN))
      return 0;
    rcu_read_unlock ();
    r = gate_wait (gate);
    if (r < 0)
      return r;
  }
}

/* The same for a request that was admitted before: a closed gate lets it in. */
void gate_enter_late (struct gate *gate);

/* Enter only to be queued: does not block.  The file may not be used then. */
static inline int
gate_admit (struct gate *gate)
{
  rcu_read_lock ();
  if (atomic_load_explicit (&gate->state, memory_order_acquire)
      != GATE_CLOSED)
    return 0;
  rcu_read_unlock ();
  return -ESHUTDOWN;
}

static inline void
gate_leave (struct gate *gate)
{
  (void) gate;
  rcu_read_unlock ();
}

/* Hold the gate, and wait until all that are inside are out.  Not from inside.
 * Calls nest.
 */
void gate_hold (struct gate *gate);
void gate_release (struct gate *gate);

/* Close it for ever, and wait likewise.  Those who are held back come in or go
 * away.
 */
void gate_close (struct gate *gate);

#endif /* PLOOP_LIB_GATE_H */
