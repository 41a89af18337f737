/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A libev loop in a thread of its own, for all who want something done there: one
 * thread, however many images there are.
 *
 * Whoever has a client asks for it to be run; asked for twice before it is run, it
 * is run once.  A client's timers are for the loop's thread only: for its run, and
 * for what they call.  Clients run one after the other.
 *
 *   function      may be called from                  blocks
 *   loop_ask      any thread                          no
 *   loop_leave    any thread but the loop's           until the client has run
 *                                                     for the last time
 *   the others    one thread
 */

#ifndef PLOOP_LIB_LOOP_H
#define PLOOP_LIB_LOOP_H

#include <pthread.h>
#include <stdbool.h>

#include <ev.h>
#include <glib.h>

struct loop {
  struct ev_loop *ev;           /* NULL: there is none */
  pthread_t thread;
  ev_async wake;
  pthread_mutex_t lock;         /* for what follows, here and in clients */
  pthread_cond_t left;          /* a client has left */
  GQueue asked;                 /* of struct loop_client */
  bool ending, ended;
};

struct loop_client {
  /* Called on the loop's thread.  When LEAVING, for the last time: its timers have
   * to be stopped.
   */
  void (*run) (struct loop_client *client, bool leaving);
  GList link;                   /* the loop's, here and below */
  bool is_asked, leaving, has_left;
};

/* Start the thread, named NAME.  Returns 0 or a negative errno. */
int loop_start (struct loop *loop, const char *name);

/* End the thread.  Who asks for anything from now on is not heard. */
void loop_stop (struct loop *loop);

/* When nobody asks any more.  Of one that is all zeros, or could not be started,
 * this and loop_stop do nothing.
 */
void loop_destroy (struct loop *loop);

/* RUN is CLIENT's. */
void loop_client_init (struct loop_client *client,
                       void (*run) (struct loop_client *, bool));

/* Let CLIENT be run soon.  Nothing comes of it after loop_leave. */
void loop_ask (struct loop *loop, struct loop_client *client);

void loop_leave (struct loop *loop, struct loop_client *client);

#endif /* PLOOP_LIB_LOOP_H */
