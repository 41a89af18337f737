/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Work in the background: see flusher.h.
 *
 * Others set a bit that says what they want, and ask the loop's thread to look;
 * there are five timers, which only that thread touches.  What is asked for twice
 * before it is done is done once.
 *
 * The hard part is space.  Whoever waits for it has found neither a fresh
 * cluster nor room to extend the file.  Freed clusters are the nearest hope, but
 * they come back with commits, and nobody may be about to ask for one: so as
 * long as somebody waits, this commits, and whenever a batch has come to its end
 * all who wait look again.
 */

#include <config.h>

#include <errno.h>

#include "flusher.h"
#include "rcu.h"

/* How often to look for space, and to try again what failed. */
#define RETRY_SECONDS 1.

/* Parts of clusters wait that long for their neighbours: file systems discard
 * what they have freed piece by piece.
 */
#define TRIM_SECONDS .1

/* Who writes to one part of a cluster is likely to write to the next. */
#define FILL_SECONDS .02

/* ---- Asking ------------------------------------------------------------ */

void
flusher_ask (struct flusher *flusher, enum flusher_work work)
{
  if (!flusher->loop)
    return;
  /* Release: pairs with the acquire in work. */
  if (!(atomic_fetch_or_explicit (&flusher->work, work, memory_order_acq_rel)
        & work))
    loop_ask (flusher->loop, &flusher->client);
}

bool
flusher_may_wait (const struct flusher *flusher)
{
  return flusher->loop
         && (flusher->wait_for_space
             || (alloc_nr_pending (flusher->alloc) > 0
                 && !commit_has_failed (flusher->commit)));
}

void
flusher_wait (struct flusher *flusher, struct flusher_waiter *waiter)
{
  bool hopeless;

  stats_add (flusher->stats, STATS_ENOSPC_WAITS, 1);
  pthread_mutex_lock (&flusher->lock);
  hopeless = flusher->hopeless;
  if (!hopeless) {
    waiter->next = flusher->waiters;
    flusher->waiters = waiter;
  }
  pthread_mutex_unlock (&flusher->lock);
  if (hopeless)
    waiter->resume (waiter, -ENOSPC);
  else
    flusher_ask (flusher, FLUSHER_SPACE);
}

/* ---- Space ------------------------------------------------------------- */

static bool
has_waiters (struct flusher *flusher)
{
  bool has;

  pthread_mutex_lock (&flusher->lock);
  has = flusher->waiters != NULL;
  pthread_mutex_unlock (&flusher->lock);
  return has;
}

/* Take out all who wait, or only those who need a cluster. */
static struct flusher_waiter *
take_waiters (struct flusher *flusher, bool all)
{
  struct flusher_waiter **link = &flusher->waiters, *taken = NULL;

  pthread_mutex_lock (&flusher->lock);
  while (*link) {
    struct flusher_waiter *waiter = *link;

    if (!all && !waiter->needs_cluster) {
      link = &waiter->next;
      continue;
    }
    *link = waiter->next;
    waiter->next = taken;
    taken = waiter;
  }
  pthread_mutex_unlock (&flusher->lock);
  return taken;
}

static void
resume (struct flusher *flusher, bool all, int result)
{
  struct flusher_waiter *waiters = take_waiters (flusher, all);

  while (waiters) {
    struct flusher_waiter *waiter = waiters;

    /* It is gone when it has been told. */
    waiters = waiter->next;
    waiter->resume (waiter, result);
  }
}

static void
start_timer (struct flusher *flusher, ev_timer *timer, double seconds)
{
  if (ev_is_active (timer))
    return;
  /* The loop's idea of now is from before it slept. */
  ev_now_update (flusher->loop->ev);
  ev_timer_set (timer, seconds, 0.);
  ev_timer_start (flusher->loop->ev, timer);
}

/* Bring back what was freed without waiting for anybody's commit: it takes one
 * for the removal of the entries and one for the punch.  Grace periods end by
 * themselves, and ask for a scrub.
 */
static int
hurry (struct flusher *flusher)
{
  int r = 0;

  for (int i = 0; i < 2; i++) {
    alloc_scrub (flusher->alloc);
    /* A copy that cannot be made whole keeps nobody's space: go on. */
    r = commit_flush (flusher->commit);
    if (r < 0 && commit_has_failed (flusher->commit))
      return r;
  }
  alloc_scrub (flusher->alloc);
  return r;
}

/* Have clusters come back since the last time? */
static bool
have_returned (struct flusher *flusher)
{
  const uint64_t before = flusher->nr_returned;

  flusher->nr_returned = alloc_nr_returned (flusher->alloc);
  return flusher->nr_returned != before;
}

/* With enospc=wait, until a second has passed in which nobody had to wait. */
static void
keep_waiting (struct flusher *flusher)
{
  if (flusher->waiting_since == 0) {
    flusher->waiting_since = g_get_monotonic_time ();
    log_warning (flusher->log, "%s: there is no space: requests wait until there "
                 "is some", flusher->alloc->delta->path);
  }
  start_timer (flusher, &flusher->retry_timer, RETRY_SECONDS);
}

static void
end_waiting (struct flusher *flusher)
{
  const gint64 since = flusher->waiting_since;

  if (since == 0)
    return;
  flusher->waiting_since = 0;
  log_warning (flusher->log, "%s: no request waits for space any more, after %"
               G_GINT64_FORMAT " seconds", flusher->alloc->delta->path,
               (g_get_monotonic_time () - since) / G_USEC_PER_SEC);
}

/* Whoever is told to look again may find nothing, and waits again: so there must
 * be a reason each time, or time must pass.
 */
static void
find_space (struct flusher *flusher)
{
  int r = 0;

  if (!has_waiters (flusher))
    return;
  while (trims_work (flusher->trims))
    continue;
  if (alloc_nr_pending (flusher->alloc) > 0)
    r = hurry (flusher);
  if (have_returned (flusher))
    resume (flusher, !flusher->wait_for_space, 0);
  if (flusher->wait_for_space) {
    if (has_waiters (flusher))
      keep_waiting (flusher);
  }
  else if (alloc_nr_pending (flusher->alloc) == 0)
    resume (flusher, true, 0);
  /* Where commits fail, nothing comes back but what a grace period still holds. */
  else if (r < 0
           && (commit_has_failed (flusher->commit)
               || !alloc_expects_news (flusher->alloc)))
    resume (flusher, true, -ENOSPC);
}

void
flusher_give_up (struct flusher *flusher)
{
  pthread_mutex_lock (&flusher->lock);
  flusher->hopeless = true;
  pthread_mutex_unlock (&flusher->lock);
  resume (flusher, true, -ENOSPC);
}

/* ---- Work -------------------------------------------------------------- */

static void
extend (struct flusher *flusher)
{
  int r = alloc_extend (flusher->alloc);

  /* Whoever needs a cluster will see the error, if it is still one then. */
  if (r < 0)
    log_debug (flusher->log, "the file cannot be extended ahead of need: %s",
               g_strerror (-r));
}

static void
write_back (struct flusher *flusher)
{
  int r = commit_write_back_due (flusher->commit);

  if (r < 0) {
    stats_add (flusher->stats, STATS_WRITEBACK_RETRIES, 1);
    log_debug (flusher->log, "BAT entries cannot be written: %s: trying again",
               g_strerror (-r));
    start_timer (flusher, &flusher->write_back_timer, RETRY_SECONDS);
  }
  else if (r > 0)
    start_timer (flusher, &flusher->write_back_timer, r / 1000.);
}

/* A failed sync is the next flush's to report; anything else may work later. */
static void
commit_copies (struct flusher *flusher)
{
  int r = commit_flush (flusher->commit);

  if (r < 0 && !commit_has_failed (flusher->commit)) {
    stats_add (flusher->stats, STATS_WRITEBACK_RETRIES, 1);
    start_timer (flusher, &flusher->commit_timer, RETRY_SECONDS);
  }
}

static void
reclaim (struct flusher *flusher)
{
  if (alloc_reclaim (flusher->alloc))
    flusher_ask (flusher, FLUSHER_RECLAIM);
}

static void
punch_parts (struct flusher *flusher)
{
  /* Others have their turn in between. */
  if (trims_work (flusher->trims))
    start_timer (flusher, &flusher->trim_timer, 0.);
}

/* Before and after all that touches the file.  Who is held does nothing: what was
 * asked for stays, until flusher_release.
 */
static bool
begin_work (struct flusher *flusher)
{
  pthread_mutex_lock (&flusher->lock);
  flusher->busy = flusher->nr_holds == 0 || flusher->hopeless;
  pthread_mutex_unlock (&flusher->lock);
  return flusher->busy;
}

static void
end_work (struct flusher *flusher)
{
  pthread_mutex_lock (&flusher->lock);
  flusher->busy = false;
  pthread_cond_broadcast (&flusher->changed);
  pthread_mutex_unlock (&flusher->lock);
}

void
flusher_hold (struct flusher *flusher)
{
  pthread_mutex_lock (&flusher->lock);
  flusher->nr_holds++;
  while (flusher->busy)
    pthread_cond_wait (&flusher->changed, &flusher->lock);
  pthread_mutex_unlock (&flusher->lock);
}

void
flusher_release (struct flusher *flusher)
{
  bool free;

  pthread_mutex_lock (&flusher->lock);
  free = --flusher->nr_holds == 0;
  pthread_mutex_unlock (&flusher->lock);
  if (free && flusher->loop)
    loop_ask (flusher->loop, &flusher->client);
}

static void
do_work (struct flusher *flusher, unsigned asked)
{
  if (asked & FLUSHER_EXTEND)
    extend (flusher);
  if (asked & FLUSHER_RECLAIM)
    reclaim (flusher);
  if (asked & (FLUSHER_SCRUB | FLUSHER_RECLAIM))
    alloc_scrub (flusher->alloc);
  if (asked & FLUSHER_TRIM)
    start_timer (flusher, &flusher->trim_timer, TRIM_SECONDS);
  if (asked & (FLUSHER_SCRUB | FLUSHER_SPACE))
    find_space (flusher);
  if (asked & FLUSHER_WRITE_BACK)
    write_back (flusher);
  if (asked & FLUSHER_TRIM_NOW)
    punch_parts (flusher);
  if (asked & FLUSHER_COMMIT)
    start_timer (flusher, &flusher->commit_timer, flusher->copy_delay / 1000.);
  if (asked & FLUSHER_COMMIT_NOW)
    commit_copies (flusher);
  if (asked & FLUSHER_FILL)
    start_timer (flusher, &flusher->fill_timer, FILL_SECONDS);
  if (asked & FLUSHER_LEAD)
    commit_lead (flusher->commit);
}

static void
stop_timers (struct flusher *flusher)
{
  struct ev_loop *ev = flusher->loop->ev;

  ev_timer_stop (ev, &flusher->commit_timer);
  ev_timer_stop (ev, &flusher->write_back_timer);
  ev_timer_stop (ev, &flusher->retry_timer);
  ev_timer_stop (ev, &flusher->trim_timer);
  ev_timer_stop (ev, &flusher->fill_timer);
}

/* What was asked for, also by timers. */
static void
work (struct flusher *flusher)
{
  if (!begin_work (flusher))
    return;
  /* Acquire: pairs with the release in flusher_ask. */
  do_work (flusher, atomic_exchange_explicit (&flusher->work, 0,
                                              memory_order_acq_rel));
  end_work (flusher);
}

static void
run (struct loop_client *client, bool leaving)
{
  struct flusher *flusher = caa_container_of (client, struct flusher, client);

  work (flusher);
  if (leaving)
    stop_timers (flusher);
}

/* The time for some work has come. */
static void
on_due (struct flusher *flusher, enum flusher_work due)
{
  atomic_fetch_or_explicit (&flusher->work, due, memory_order_acq_rel);
  work (flusher);
}

static void
on_commit_timer (struct ev_loop *ev, ev_timer *timer, int events)
{
  (void) ev;
  (void) events;
  on_due (timer->data, FLUSHER_COMMIT_NOW);
}

static void
on_write_back_timer (struct ev_loop *ev, ev_timer *timer, int events)
{
  (void) ev;
  (void) events;
  on_due (timer->data, FLUSHER_WRITE_BACK);
}

static void
on_trim_timer (struct ev_loop *ev, ev_timer *timer, int events)
{
  (void) ev;
  (void) events;
  on_due (timer->data, FLUSHER_TRIM_NOW);
}

/* Does not touch the file. */
static void
on_fill_timer (struct ev_loop *ev, ev_timer *timer, int events)
{
  struct flusher *flusher = timer->data;

  (void) ev;
  (void) events;
  if (flusher->fill && flusher->fill (flusher->fill_opaque))
    start_timer (flusher, timer, FILL_SECONDS);
}

/* With enospc=wait there may be space now: all who wait look for themselves. */
static void
on_retry_timer (struct ev_loop *ev, ev_timer *timer, int events)
{
  struct flusher *flusher = timer->data;

  (void) ev;
  (void) events;
  if (!has_waiters (flusher))
    end_waiting (flusher);
  else if (flusher->give_up && flusher->give_up (flusher->give_up_opaque))
    flusher_give_up (flusher);
  else {
    resume (flusher, true, 0);
    keep_waiting (flusher);
  }
}

/* ---- Starting and stopping --------------------------------------------- */

void
flusher_init (struct flusher *flusher, struct alloc *alloc,
              struct commit *commit, struct trims *trims,
              struct stats *stats, const struct log *log,
              const struct flusher_options *options)
{
  *flusher = (struct flusher) {
    .alloc = alloc,
    .commit = commit,
    .trims = trims,
    .stats = stats,
    .log = log,
    .copy_delay = options->copy_delay,
    .wait_for_space = options->wait_for_space,
    .give_up = options->give_up,
    .give_up_opaque = options->give_up_opaque,
    .fill = options->fill,
    .fill_opaque = options->fill_opaque,
  };
  pthread_mutex_init (&flusher->lock, NULL);
  pthread_cond_init (&flusher->changed, NULL);
}

static void
init_timer (struct flusher *flusher, ev_timer *timer,
            void (*on_time) (struct ev_loop *, ev_timer *, int))
{
  ev_timer_init (timer, on_time, 0., 0.);
  timer->data = flusher;
}

void
flusher_start (struct flusher *flusher, struct loop *loop)
{
  init_timer (flusher, &flusher->commit_timer, on_commit_timer);
  init_timer (flusher, &flusher->write_back_timer, on_write_back_timer);
  init_timer (flusher, &flusher->retry_timer, on_retry_timer);
  init_timer (flusher, &flusher->trim_timer, on_trim_timer);
  init_timer (flusher, &flusher->fill_timer, on_fill_timer);
  loop_client_init (&flusher->client, run);
  flusher->loop = loop;
}

void
flusher_stop (struct flusher *flusher)
{
  if (!flusher->loop)
    return;
  flusher_give_up (flusher);
  loop_leave (flusher->loop, &flusher->client);
}

void
flusher_destroy (struct flusher *flusher)
{
  flusher->loop = NULL;
  pthread_mutex_destroy (&flusher->lock);
  pthread_cond_destroy (&flusher->changed);
}
