/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that a disk above a base on another server keeps what is written to it
 * whatever becomes of that server: it is killed and started again all the time, and
 * slow, while several connections write, zero, trim, flush and read against a model
 * in memory.  No request fails, nothing is read that is not right, the base does not
 * change by a byte, and all is there when the disk is opened again.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disk.h"
#include "harness.h"
#include "image.h"
#include "load.h"
#include "server.h"

struct way {
  const char *parameters;
  const char *filter;           /* of the base's server */
  uint64_t cluster_size;
};

static const struct way ways[] = {
  { "", "", 64 * KIB },
  { "copy-on-write=lazy", "", 64 * KIB },
  { "copy-on-write=lazy copy-delay=20 runners=4", "--filter=delay", MIB },
  { "base-cache=on cache=none", "", 32 * KIB },
  { "base-cache=on copy-on-write=lazy fast-path=off runners=3", "", 64 * KIB },
};

#define SIZE (12 * MIB + 512)
#define BASE_SIZE (11 * MIB + 777)

/* How long the base's server is there, and gone, ms at most. */
#define UP_MS 200u
#define DOWN_MS 100u
#define MIN_KILLS 4u

static uint64_t next_stream;

/* ---- The base's server ---------------------------------------------------- */

struct base {
  char *path, *socket, *pid_file;
  const char *filter;
  pid_t pid;
  pthread_t thread;
  atomic_bool ending;
  atomic_uint nr_kills;
};

static struct base base;

static _Noreturn void
become_base (pid_t parent)
{
  const bool slow = *base.filter != '\0';
  const int null = open ("/dev/null", O_RDWR);

  prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (getppid () != parent || null == -1 || dup2 (null, 0) == -1
      || dup2 (null, 2) == -1)
    _exit (126);
  execlp ("nbdkit", "nbdkit", "-f", "-r", "-U", base.socket, "-P",
          base.pid_file,
          slow ? base.filter : "--filter=noextents", "file", base.path,
          slow ? "rdelay=2ms" : NULL, NULL);
  _exit (127);
}

static void
start_base (void)
{
  const pid_t parent = getpid ();

  unlink (base.socket);
  unlink (base.pid_file);
  base.pid = fork ();
  if (base.pid == -1)
    fail ("fork: %m");
  if (base.pid == 0)
    become_base (parent);
}

static void
kill_base (void)
{
  if (base.pid <= 0)
    return;
  kill (base.pid, SIGKILL);
  while (waitpid (base.pid, NULL, 0) == -1 && errno == EINTR)
    continue;
  base.pid = 0;
}

static void
wait_for_base (void)
{
  const double limit = now_seconds () + HANG_SECONDS;

  while (access (base.pid_file, F_OK) == -1) {
    if (now_seconds () > limit)
      fail ("the base's server does not come up");
    poll_pause ();
  }
}

static void
sleep_ms (uint64_t ms)
{
  const struct timespec time = { (time_t) (ms / 1000),
                                 (long) (ms % 1000) * 1000000 };

  nanosleep (&time, NULL);
}

static void *
disturb (void *opaque)
{
  struct rng rng = *(const struct rng *) opaque;

  while (!base.ending) {
    sleep_ms (rng_below (&rng, UP_MS));
    kill_base ();
    sleep_ms (rng_below (&rng, DOWN_MS));
    start_base ();
    base.nr_kills++;
  }
  return NULL;
}

static void
begin_unrest (void)
{
  static struct rng rng;

  rng_init (&rng, next_stream++);
  base.ending = false;
  if (pthread_create (&base.thread, NULL, disturb, &rng) != 0)
    fail ("pthread_create");
}

static void
end_unrest (void)
{
  base.ending = true;
  pthread_join (base.thread, NULL);
  /* What a thread has started may end with it. */
  kill_base ();
  start_base ();
}

/* ---- Content --------------------------------------------------------------- */

static void
make_base (struct disk *disk)
{
  uint8_t *bytes = malloc (BASE_SIZE);
  const int fd = open (base.path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  struct rng rng;

  if (bytes == NULL || fd == -1)
    fail ("%s: %m", base.path);
  rng_init (&rng, next_stream++);
  for (uint64_t i = 0; i < BASE_SIZE; i++)
    bytes[i] = (uint8_t) (1 + rng_below (&rng, 255));
  for (uint64_t i = 0; i < BASE_SIZE; i += MIB)
    if (rng_percent (&rng, 30))
      memset (bytes + i, 0, i + MIB < BASE_SIZE ? MIB / 2 : BASE_SIZE - i);
  if (write (fd, bytes, BASE_SIZE) != (ssize_t) BASE_SIZE || close (fd) == -1)
    fail ("%s: %m", base.path);
  disk_submit (disk, bytes, BASE_SIZE, 0);
  disk_answer (disk, BASE_SIZE, 0);
  free (bytes);
  run_ok ("cp %s %s.as-it-was", base.path, base.path);
}

static void
run_load (struct disk *disk, const struct server *server,
          const struct way *way)
{
  struct load load = {
    .disk = disk, .server = server, .length = disk->size,
    .max_length = 256 * KIB, .read_percent = 40, .space = true,
    .nr_connections = 4, .depth = 8, .stripe = way->cluster_size / 8,
    .nr_requests = scaled (4000), .stream = next_stream++,
  };

  load_run (&load);
}

static void
compare_all (struct disk *disk, const char *top, unsigned flags,
             const char *parameters)
{
  struct server *server = server_start_with (top, flags, parameters);
  struct nbd_handle *nbd = server_connect (server);

  disk_settle (disk, nbd, true);
  disk_compare_nbd (disk, nbd, disk->size, 0);
  server_disconnect (nbd);
  server_stop (server);
}

/* ---- One way ---------------------------------------------------------------- */

static void
work_on (struct disk *disk, const struct way *way, const char *top,
         const char *parameters)
{
  struct server *server = server_start_with (top, 0, parameters);
  struct nbd_handle *nbd = server_connect (server);

  begin_unrest ();
  do {
    run_load (disk, server, way);
    disk_compare_nbd (disk, nbd, disk->size, 0);
  } while (base.nr_kills < MIN_KILLS);
  run_load (disk, server, way);
  if (nbd_flush (nbd, 0) == -1)
    fail_nbd ("nbd_flush, while the base's server comes and goes");
  end_unrest ();
  wait_for_base ();
  disk_compare_nbd (disk, nbd, disk->size, 0);
  run_load (disk, server, way);
  server_disconnect (nbd);
  server_stop (server);
}

static void
test_way (unsigned index)
{
  const struct way *way = &ways[index];
  char *name = format_string ("top.%u", index);
  const struct image_spec image = {
    name, MADE_BY_PLOOP_IMG, 2, way->cluster_size, SIZE, NULL
  };
  char *top = image_make (&image);
  char *below = format_string ("base=nbd+unix:///?socket=%s", base.socket);
  char *parameters = format_string ("%s %s", below, way->parameters);
  struct disk *disk = disk_new (SIZE, way->cluster_size);
  const double begin = now_seconds ();
  struct image_state state;

  base.filter = way->filter;
  base.nr_kills = 0;
  disk_expect_trims (disk);
  make_base (disk);
  start_base ();
  wait_for_base ();
  work_on (disk, way, top, parameters);
  compare_all (disk, top, SERVER_READ_ONLY, below);
  compare_all (disk, top, 0, below);
  kill_base ();
  run_ok ("cmp %s %s.as-it-was", base.path, base.path);
  image_expect_clean (top, 0, &state);
  say ("%s: %u times gone, %.1f s",
       *way->parameters ? way->parameters : "eager", base.nr_kills,
       now_seconds () - begin);
  disk_free (disk);
  unlink (top);
  free (top);
  free (name);
  free (below);
  free (parameters);
}

int
main (void)
{
  test_begin ("test-remote");
  test_requires ("nbdkit");
  at_cleanup (kill_base);
  base.path = test_path ("base.raw");
  base.socket = test_path ("base.sock");
  base.pid_file = test_path ("base.pid");
  for (unsigned i = 0; i < ARRAY_SIZE (ways); i++)
    if (chosen (i, ARRAY_SIZE (ways)))
      test_way (i);
  return test_end ();
}
