/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What every test program of this directory needs: to say what it does, to
 * fail loudly from any thread, to skip with a reason, to repeat itself from a
 * seed, and to leave nothing behind.
 *
 * A program calls test_begin first and returns test_end ().  From the outside:
 *
 *   PLOOP_TEST_SEED    the seed of an earlier run, to repeat it
 *   PLOOP_TEST_SCALE   percent of the iterations (default 100)
 *   PLOOP_TEST_KEEP    when set, the temporary directory is kept
 */

#ifndef PLOOP_TEST_HARNESS_H
#define PLOOP_TEST_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PRINTF_LIKE(format, first) \
  __attribute__ ((__format__ (__printf__, format, first)))

#define ARRAY_SIZE(a) (sizeof (a) / sizeof (a)[0])

#define KIB UINT64_C (1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
#define TIB (1024 * GIB)

/* Start the test program NAME: a private directory, a seed, a time limit after
 * which the test fails as hung.
 */
void test_begin (const char *name);

/* Stop what was started, remove the directory.  Returns EXIT_SUCCESS. */
int test_end (void);

/* Print one line, at once. */
void say (const char *fmt, ...) PRINTF_LIKE (1, 2);

/* Print why, show the logs of the servers, clean up, exit with 1.  May be
 * called from any thread; only the first caller is heard.
 */
_Noreturn void fail (const char *fmt, ...) PRINTF_LIKE (1, 2);

/* Clean up and exit with 77. */
_Noreturn void skip (const char *fmt, ...) PRINTF_LIKE (1, 2);

/* fail with the text of libnbd's last error of this thread. */
_Noreturn void fail_nbd (const char *what);

/* The private directory, and a path in it (to be freed). */
const char *test_dir (void);
char *test_path (const char *name);

char *format_string (const char *fmt, ...) PRINTF_LIKE (1, 2);

/* The value of the environment variable NAME; fails when it is not set. */
const char *test_env (const char *name);

/* Skip the test unless PROGRAM is in PATH. */
void test_requires (const char *program);

/* Run a shell command.  `run` returns its exit status, or 128 + the signal;
 * `run_ok` fails unless it is 0.  What it prints goes to a file that is shown
 * when the test fails.
 */
int run (const char *fmt, ...) PRINTF_LIKE (1, 2);
void run_ok (const char *fmt, ...) PRINTF_LIKE (1, 2);

/* COUNT in the percentage that PLOOP_TEST_SCALE gives, at least 1. */
unsigned scaled (unsigned count);

/* Is INDEX, of COUNT cases that a test goes through, one that this run has?  All
 * are, but of short runs (PLOOP_TEST_SCALE) only every second or third, and the
 * seed says which: at least one.
 */
bool chosen (size_t index, size_t count);

/* True when NBDKIT is plain nbdkit: no valgrind, no sanitizer. */
bool nbdkit_is_plain (void);

/* Random numbers that the seed determines: one state for each user. */
struct rng { uint64_t state; };

void rng_init (struct rng *rng, uint64_t stream);
uint64_t rng_next (struct rng *rng);

/* From 0 to LIMIT - 1. */
uint64_t rng_below (struct rng *rng, uint64_t limit);

/* True in PERCENT of the calls. */
bool rng_percent (struct rng *rng, unsigned percent);

/* Wait a moment before a condition is looked at again.  The condition decides,
 * never the time.
 */
void poll_pause (void);

/* Seconds of the monotonic clock, for what is printed and for the limits that
 * only a hang reaches.
 */
double now_seconds (void);

/* How long anything may take before it counts as hung. */
#define HANG_SECONDS 180

/* Called by fail, skip and test_end. */
void at_cleanup (void (*fn) (void));
void at_failure (void (*fn) (void));

#endif /* PLOOP_TEST_HARNESS_H */
