/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The ground that the test programs stand on; see harness.h.  It knows nothing
 * of NBD beyond libnbd's error text.  The hard thing about it is to fail from
 * any thread: the first that fails takes the lock and never gives it back.
 */

#include <config.h>

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#include "harness.h"

/* An upper limit for one program, far above what it needs under valgrind. */
#define PROGRAM_SECONDS 3000

static const char *program_name = "test";
static char *directory;
static char *command_log;
static uint64_t seed;
static unsigned scale_percent = 100;
static pid_t main_pid;

static void (*cleanup_fns[8]) (void);
static size_t nr_cleanup_fns;
static void (*failure_fns[8]) (void);
static size_t nr_failure_fns;

static pthread_mutex_t end_lock = PTHREAD_MUTEX_INITIALIZER;

void
at_cleanup (void (*fn) (void))
{
  if (nr_cleanup_fns == ARRAY_SIZE (cleanup_fns))
    fail ("too many clean-up functions");
  cleanup_fns[nr_cleanup_fns++] = fn;
}

void
at_failure (void (*fn) (void))
{
  if (nr_failure_fns == ARRAY_SIZE (failure_fns))
    fail ("too many failure functions");
  failure_fns[nr_failure_fns++] = fn;
}

void
say (const char *fmt, ...)
{
  va_list args;
  char line[1024];

  va_start (args, fmt);
  vsnprintf (line, sizeof line, fmt, args);
  va_end (args);
  printf ("%s: %s\n", program_name, line);
  fflush (stdout);
}

double
now_seconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

void
poll_pause (void)
{
  const struct timespec t = { .tv_nsec = 2 * 1000 * 1000 };

  nanosleep (&t, NULL);
}

char *
format_string (const char *fmt, ...)
{
  va_list args;
  char *text;

  va_start (args, fmt);
  if (vasprintf (&text, fmt, args) == -1)
    abort ();
  va_end (args);
  return text;
}

const char *
test_dir (void)
{
  return directory;
}

char *
test_path (const char *name)
{
  return format_string ("%s/%s", directory, name);
}

const char *
test_env (const char *name)
{
  const char *value = getenv (name);

  if (value == NULL || *value == '\0')
    fail ("%s is not set: run this test with make check", name);
  return value;
}

static void
clean_up (void)
{
  size_t i;

  for (i = nr_cleanup_fns; i > 0; i--)
    cleanup_fns[i - 1] ();
  if (directory == NULL)
    return;
  if (getenv ("PLOOP_TEST_KEEP") != NULL) {
    printf ("%s: kept %s\n", program_name, directory);
    return;
  }
  char *command = format_string ("rm -rf '%s'", directory);
  if (system (command) != 0)
    printf ("%s: could not remove %s\n", program_name, directory);
  free (command);
}

/* Also called in children of the test: those only leave. */
static _Noreturn void
leave (int status)
{
  if (getpid () != main_pid)
    _exit (status);
  clean_up ();
  fflush (NULL);
  _exit (status);
}

static void
show_command_log (void)
{
  FILE *f = command_log ? fopen (command_log, "r") : NULL;
  char line[512];

  if (f == NULL)
    return;
  printf ("---- output of the last command\n");
  while (fgets (line, sizeof line, f) != NULL)
    fputs (line, stdout);
  printf ("----\n");
  fclose (f);
}

void
fail (const char *fmt, ...)
{
  va_list args;
  size_t i;

  pthread_mutex_lock (&end_lock);
  printf ("%s: FAILED: ", program_name);
  va_start (args, fmt);
  vprintf (fmt, args);
  va_end (args);
  printf ("\n%s: repeat with PLOOP_TEST_SEED=%" PRIu64 "\n", program_name,
          seed);
  if (getpid () == main_pid) {
    show_command_log ();
    for (i = 0; i < nr_failure_fns; i++)
      failure_fns[i] ();
  }
  leave (EXIT_FAILURE);
}

void
fail_nbd (const char *what)
{
  const char *text = nbd_get_error ();

  fail ("%s: %s", what, text ? text : "no text");
}

void
skip (const char *fmt, ...)
{
  va_list args;

  pthread_mutex_lock (&end_lock);
  printf ("%s: skipped: ", program_name);
  va_start (args, fmt);
  vprintf (fmt, args);
  va_end (args);
  printf ("\n");
  leave (77);
}

/* A test that hangs is a failure too, and says so.  A signal, not a thread:
 * some tests fork.  The kernel ends the servers then.
 */
static void
time_is_up (int signal_number)
{
  static const char text[] = "FAILED: still running, taken for hung\n";
  ssize_t n = write (STDOUT_FILENO, text, sizeof text - 1);

  (void) signal_number;
  _exit (n == -1 ? 2 : EXIT_FAILURE);
}

void
test_begin (const char *name)
{
  const char *value;
  const char *parent;

  program_name = name;
  main_pid = getpid ();
  setvbuf (stdout, NULL, _IOLBF, 0);
  signal (SIGPIPE, SIG_IGN);

  value = getenv ("PLOOP_TEST_SEED");
  if (value != NULL && *value != '\0')
    seed = strtoull (value, NULL, 0);
  else if (getrandom (&seed, sizeof seed, 0) != sizeof seed)
    fail ("getrandom: %m");
  value = getenv ("PLOOP_TEST_SCALE");
  if (value != NULL && *value != '\0')
    scale_percent = (unsigned) strtoul (value, NULL, 10);
  say ("PLOOP_TEST_SEED=%" PRIu64 " PLOOP_TEST_SCALE=%u", seed,
       scale_percent);

  /* The path of a socket in it must stay below 108 bytes. */
  parent = getenv ("TMPDIR");
  if (parent == NULL || *parent != '/' || strlen (parent) > 60)
    parent = "/tmp";
  directory = format_string ("%s/ploop-test-XXXXXX", parent);
  if (mkdtemp (directory) == NULL)
    fail ("mkdtemp %s: %m", directory);
  command_log = test_path ("command.log");

  signal (SIGALRM, time_is_up);
  alarm (PROGRAM_SECONDS);
}

int
test_end (void)
{
  pthread_mutex_lock (&end_lock);
  clean_up ();
  free (directory);
  free (command_log);
  directory = command_log = NULL;
  printf ("%s: passed\n", program_name);
  return EXIT_SUCCESS;
}

unsigned
scaled (unsigned count)
{
  unsigned n = (unsigned) ((uint64_t) count * scale_percent / 100);

  return n == 0 ? 1 : n;
}

bool
chosen (size_t index, size_t count)
{
  const size_t wanted = scale_percent >= 100 ? 1 : scale_percent >= 50 ? 2 : 3;
  const size_t stride = wanted < count ? wanted : count;

  return index % stride == seed % stride;
}

bool
nbdkit_is_plain (void)
{
  const char *nbdkit = getenv ("NBDKIT");
  const char *preload = getenv ("NBDKIT_PRELOAD");

  if (preload != NULL && *preload != '\0')
    return false;
  return nbdkit == NULL || *nbdkit == '\0' || strcmp (nbdkit, "nbdkit") == 0;
}

void
test_requires (const char *program)
{
  if (run ("command -v %s", program) != 0)
    skip ("%s is not installed", program);
}

static int
run_shell (const char *command)
{
  char *logged = format_string ("( %s ) >%s 2>&1 </dev/null", command,
                                command_log);
  int status = system (logged);

  free (logged);
  if (status == -1)
    fail ("system: %m");
  return WIFEXITED (status) ? WEXITSTATUS (status) : 128 + WTERMSIG (status);
}

int
run (const char *fmt, ...)
{
  va_list args;
  char *command;
  int status;

  va_start (args, fmt);
  if (vasprintf (&command, fmt, args) == -1)
    abort ();
  va_end (args);
  status = run_shell (command);
  free (command);
  return status;
}

void
run_ok (const char *fmt, ...)
{
  va_list args;
  char *command;
  int status;

  va_start (args, fmt);
  if (vasprintf (&command, fmt, args) == -1)
    abort ();
  va_end (args);
  status = run_shell (command);
  if (status != 0)
    fail ("exit status %d from: %s", status, command);
  free (command);
}

/* splitmix64: every seed is good, and streams do not meet. */
uint64_t
rng_next (struct rng *rng)
{
  uint64_t z = (rng->state += UINT64_C (0x9e3779b97f4a7c15));

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

void
rng_init (struct rng *rng, uint64_t stream)
{
  struct rng base = { seed };
  uint64_t first = rng_next (&base);
  struct rng mixed = { first ^ (stream * UINT64_C (0xd1342543de82ef95)) };

  rng->state = rng_next (&mixed);
}

uint64_t
rng_below (struct rng *rng, uint64_t limit)
{
  return limit < 2 ? 0 : rng_next (rng) % limit;
}

bool
rng_percent (struct rng *rng, unsigned percent)
{
  return rng_below (rng, 100) < percent;
}
