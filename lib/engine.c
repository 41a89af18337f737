/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Threads: see engine.h. */

#include <config.h>

#include "engine.h"
#include "error.h"

unsigned
engine_default_runners (void)
{
  return MIN (g_get_num_processors (), PLOOP_MAX_RUNNERS);
}

int
engine_start (ploop_engine *engine, unsigned nr_runners, bool writes)
{
  int r = runners_start (&engine->runners, nr_runners);

  if (r == 0 && writes)
    r = loop_start (&engine->loop, "ploop-flush");
  if (r < 0)
    runners_stop (&engine->runners);
  return r;
}

void
engine_stop (ploop_engine *engine)
{
  loop_stop (&engine->loop);
  runners_stop (&engine->runners);
}

void
engine_destroy (ploop_engine *engine)
{
  engine_stop (engine);
  loop_destroy (&engine->loop);
}

/* ---- The public face --------------------------------------------------- */

ploop_engine *
ploop_engine_new (unsigned nr_runners, GError **error)
{
  ploop_engine *engine;
  int r;

  if (nr_runners > PLOOP_MAX_RUNNERS) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
                 "%u runners: there may be %u at most", nr_runners,
                 PLOOP_MAX_RUNNERS);
    return NULL;
  }
  engine = g_new0 (ploop_engine, 1);
  r = engine_start (engine, nr_runners > 0 ? nr_runners
                                            : engine_default_runners (),
                    true);
  if (r == 0)
    return engine;
  error_set_system (error, r, "threads cannot be started");
  g_free (engine);
  return NULL;
}

void
ploop_engine_free (ploop_engine *engine)
{
  if (!engine)
    return;
  engine_destroy (engine);
  g_free (engine);
}
