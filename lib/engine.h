/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The threads that images work with: runners, and one for what goes on in the
 * background.  Of an image alone, or of many.
 */

#ifndef PLOOP_LIB_ENGINE_H
#define PLOOP_LIB_ENGINE_H

#include <stdbool.h>

#include "loop.h"
#include "ploop-core.h"
#include "runner.h"

struct ploop_engine {
  struct runners runners;
  struct loop loop;
};

/* How many runners there are if nobody says. */
unsigned engine_default_runners (void);

/* Start NR_RUNNERS runners and, for who writes, the loop.  Returns 0 or a negative
 * errno, with nothing running.
 */
int engine_start (ploop_engine *engine, unsigned nr_runners, bool writes);

/* End them.  Of one that was not started, does nothing. */
void engine_stop (ploop_engine *engine);

/* When no flusher that worked there is left.  Likewise. */
void engine_destroy (ploop_engine *engine);

#endif /* PLOOP_LIB_ENGINE_H */
