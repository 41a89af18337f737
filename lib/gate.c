/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The way in: see gate.h. */

#include <config.h>

#include "gate.h"

void
gate_init (struct gate *gate)
{
  *gate = (struct gate) { .state = GATE_OPEN };
  pthread_mutex_init (&gate->lock, NULL);
  pthread_cond_init (&gate->changed, NULL);
}

void
gate_destroy (struct gate *gate)
{
  pthread_mutex_destroy (&gate->lock);
  pthread_cond_destroy (&gate->changed);
}

int
gate_wait (struct gate *gate)
{
  int state;

  pthread_mutex_lock (&gate->lock);
  while ((state = atomic_load (&gate->state)) == GATE_HELD)
    pthread_cond_wait (&gate->changed, &gate->lock);
  pthread_mutex_unlock (&gate->lock);
  return state == GATE_CLOSED ? -ESHUTDOWN : 0;
}

void
gate_enter_late (struct gate *gate)
{
  for (;;) {
    rcu_read_lock ();
    if (atomic_load_explicit (&gate->state, memory_order_acquire) != GATE_HELD)
      return;
    rcu_read_unlock ();
    gate_wait (gate);
  }
}

void
gate_hold (struct gate *gate)
{
  pthread_mutex_lock (&gate->lock);
  if (gate->nr_holds++ == 0 && atomic_load (&gate->state) == GATE_OPEN)
    atomic_store (&gate->state, GATE_HELD);
  pthread_mutex_unlock (&gate->lock);
  synchronize_rcu ();
}

void
gate_release (struct gate *gate)
{
  pthread_mutex_lock (&gate->lock);
  if (--gate->nr_holds == 0 && atomic_load (&gate->state) == GATE_HELD)
    atomic_store (&gate->state, GATE_OPEN);
  pthread_cond_broadcast (&gate->changed);
  pthread_mutex_unlock (&gate->lock);
}

void
gate_close (struct gate *gate)
{
  pthread_mutex_lock (&gate->lock);
  atomic_store (&gate->state, GATE_CLOSED);
  pthread_cond_broadcast (&gate->changed);
  pthread_mutex_unlock (&gate->lock);
  synchronize_rcu ();
}
