/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One thread for many: see loop.h. */

#include <config.h>

#include <errno.h>

#include "loop.h"
#include "thread.h"

/* The next client to be run; NULL when there is none. */
static struct loop_client *
take (struct loop *loop)
{
  struct loop_client *client = NULL;
  GList *link;

  pthread_mutex_lock (&loop->lock);
  link = g_queue_pop_head_link (&loop->asked);
  if (link) {
    client = link->data;
    client->is_asked = false;
  }
  pthread_mutex_unlock (&loop->lock);
  return client;
}

static bool
is_leaving (struct loop *loop, const struct loop_client *client)
{
  bool leaving;

  pthread_mutex_lock (&loop->lock);
  leaving = client->leaving;
  pthread_mutex_unlock (&loop->lock);
  return leaving;
}

static void
run_client (struct loop *loop, struct loop_client *client)
{
  const bool leaving = is_leaving (loop, client);

  client->run (client, leaving);
  if (!leaving)
    return;
  pthread_mutex_lock (&loop->lock);
  if (client->is_asked)         /* meanwhile: too late */
    g_queue_unlink (&loop->asked, &client->link);
  client->is_asked = false;
  client->has_left = true;
  pthread_cond_broadcast (&loop->left);
  pthread_mutex_unlock (&loop->lock);
}

static void
on_wake (struct ev_loop *ev, ev_async *watcher, int events)
{
  struct loop *loop = watcher->data;
  struct loop_client *client;
  bool ending;

  (void) events;
  while ((client = take (loop)))
    run_client (loop, client);
  pthread_mutex_lock (&loop->lock);
  ending = loop->ending;
  pthread_mutex_unlock (&loop->lock);
  if (ending)
    ev_break (ev, EVBREAK_ALL);
}

static void *
run (void *opaque)
{
  struct loop *loop = opaque;

  ev_run (loop->ev, 0);
  return NULL;
}

int
loop_start (struct loop *loop, const char *name)
{
  int r;

  *loop = (struct loop) { .asked = G_QUEUE_INIT };
  loop->ev = ev_loop_new (EVFLAG_AUTO | EVFLAG_NOENV);
  if (!loop->ev)
    return -ENOMEM;
  pthread_mutex_init (&loop->lock, NULL);
  pthread_cond_init (&loop->left, NULL);
  ev_async_init (&loop->wake, on_wake);
  loop->wake.data = loop;
  ev_async_start (loop->ev, &loop->wake);
  r = thread_start (&loop->thread, name, run, loop);
  if (r < 0) {
    loop->ended = true;
    loop_destroy (loop);
  }
  return r;
}

void
loop_stop (struct loop *loop)
{
  if (!loop->ev || loop->ended)
    return;
  pthread_mutex_lock (&loop->lock);
  loop->ending = true;
  pthread_mutex_unlock (&loop->lock);
  ev_async_send (loop->ev, &loop->wake);
  pthread_join (loop->thread, NULL);
  loop->ended = true;
}

void
loop_destroy (struct loop *loop)
{
  if (!loop->ev)
    return;
  loop_stop (loop);
  ev_loop_destroy (loop->ev);
  loop->ev = NULL;
  pthread_mutex_destroy (&loop->lock);
  pthread_cond_destroy (&loop->left);
}

void
loop_client_init (struct loop_client *client,
                  void (*run_it) (struct loop_client *, bool))
{
  *client = (struct loop_client) { .run = run_it };
  client->link.data = client;
}

/* With the lock held. */
static bool
put (struct loop *loop, struct loop_client *client)
{
  const bool news = !client->is_asked && !client->has_left;

  if (news) {
    client->is_asked = true;
    g_queue_push_tail_link (&loop->asked, &client->link);
  }
  return news;
}

void
loop_ask (struct loop *loop, struct loop_client *client)
{
  bool news;

  pthread_mutex_lock (&loop->lock);
  news = put (loop, client);
  pthread_mutex_unlock (&loop->lock);
  if (news)
    ev_async_send (loop->ev, &loop->wake);
}

void
loop_leave (struct loop *loop, struct loop_client *client)
{
  pthread_mutex_lock (&loop->lock);
  client->leaving = true;
  put (loop, client);
  ev_async_send (loop->ev, &loop->wake);
  while (!client->has_left)
    pthread_cond_wait (&loop->left, &loop->lock);
  pthread_mutex_unlock (&loop->lock);
}
