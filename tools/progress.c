/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What takes its time: the bar on a terminal, with the rate and the time that is
 * left, and the signals that end it early.
 */

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ploop-img.h"

#define BAR_WIDTH 40

/* The bar is drawn anew that often, and the rate is told after that long. */
#define DRAW_US (G_USEC_PER_SEC / 5)
#define RATE_US G_USEC_PER_SEC

static volatile sig_atomic_t was_signalled;

/* ---- Signals ----------------------------------------------------------- */

static void
on_signal (int signal G_GNUC_UNUSED)
{
  was_signalled = 1;
}

/* Whoever started us with a signal ignored, as nohup does, means it.  The second
 * signal kills: that costs no data, only time.
 */
static void
catch_signals (void)
{
  static const int signals[] = { SIGHUP, SIGINT, SIGTERM };
  const struct sigaction action = {
    .sa_handler = on_signal,
    .sa_flags = SA_RESTART | (int) SA_RESETHAND,
  };
  struct sigaction old;

  for (size_t i = 0; i < G_N_ELEMENTS (signals); i++)
    if (sigaction (signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
      sigaction (signals[i], &action, NULL);
}

/* ---- The bar ----------------------------------------------------------- */

static char *
describe_rate (const struct progress *progress, uint64_t nr_bytes_done,
               uint64_t nr_bytes, gint64 now)
{
  const double seconds =
    (double) (now - progress->begun) / (double) G_USEC_PER_SEC;
  const double rate = (double) nr_bytes_done / seconds;
  g_autofree char *shown = NULL;
  unsigned left;

  if (now - progress->begun < RATE_US || nr_bytes_done == 0
      || progress->is_time)
    return g_strdup ("");
  shown = size_format ((uint64_t) rate);
  left = (unsigned) MIN ((double) (nr_bytes - nr_bytes_done) / rate, 359999.);
  return g_strdup_printf ("  %s/s, %u:%02u:%02u left", shown, left / 3600,
                          left / 60 % 60, left % 60);
}

/* How much there is in all is not known. */
static void
draw_amount (struct progress *progress, uint64_t nr_bytes_done)
{
  const gint64 now = g_get_monotonic_time ();
  const double seconds =
    (double) MAX (now - progress->begun, 1) / (double) G_USEC_PER_SEC;
  g_autofree char *done = NULL, *rate = NULL, *text = NULL;

  if (progress->percent >= 0 && now - progress->drawn < DRAW_US)
    return;
  progress->percent = 0;
  progress->drawn = now;
  done = size_format (nr_bytes_done);
  rate = size_format ((uint64_t) ((double) nr_bytes_done / seconds));
  text = g_strdup_printf ("%s, %s/s", done, rate);
  fprintf (stderr, "\r%-*s", (int) progress->width, text);
  progress->width = strlen (text);
  fflush (stderr);
}

static void
draw (struct progress *progress, uint64_t nr_bytes_done, uint64_t nr_bytes)
{
  static const char full[] = "========================================";
  const gint64 now = g_get_monotonic_time ();
  const double fraction = (double) nr_bytes_done / (double) nr_bytes;
  const int percent = (int) (100 * fraction);
  g_autofree char *rate = NULL;

  G_STATIC_ASSERT (sizeof full - 1 == BAR_WIDTH);
  if (percent == progress->percent && now - progress->drawn < DRAW_US)
    return;
  progress->percent = percent;
  progress->drawn = now;
  rate = describe_rate (progress, nr_bytes_done, nr_bytes, now);
  fprintf (stderr, "\r[%-*.*s] %3d %%%-*s", BAR_WIDTH,
           BAR_WIDTH * percent / 100, full, percent, (int) progress->width,
           rate);
  progress->width = strlen (rate);
  fflush (stderr);
}

void
progress_begin (struct progress *progress, const struct common_options *common)
{
  *progress = (struct progress) {
    .shown = common->progress || (!common->quiet && isatty (STDERR_FILENO)),
    .percent = -1,
    .begun = g_get_monotonic_time (),
  };
  catch_signals ();
}

bool
progress_step (void *opaque, uint64_t nr_bytes_done, uint64_t nr_bytes)
{
  struct progress *progress = opaque;

  if (progress->shown && nr_bytes == 0)
    draw_amount (progress, nr_bytes_done);
  else if (progress->shown)
    draw (progress, nr_bytes_done, nr_bytes);
  return !was_signalled;
}

void
progress_end (const struct progress *progress)
{
  if (progress->percent >= 0)
    fputc ('\n', stderr);
}
