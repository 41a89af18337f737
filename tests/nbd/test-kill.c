/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that an image survives whatever ends its server or its client in the
 * middle of writes: SIGTERM, SIGKILL, SIGKILL while the server is closing, and
 * a client process that is killed with its requests in flight.  The same image
 * goes through many rounds.  After each it must open again, have everything
 * that was answered (what a dead process wrote is in the page cache), show
 * each sector that was in flight as old or new, and have no error that a
 * checker could find.  The same for a file that lost its end, as a power cut
 * may leave it.
 */

#include <config.h>

#include <endian.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
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

enum death {
  BY_SIGTERM,
  BY_SIGKILL,
  BY_SIGKILL_WHILE_CLOSING,
  OF_THE_CLIENT,
  NR_DEATHS,
};

static const char *const death_names[] = {
  "SIGTERM", "SIGKILL", "SIGKILL while closing", "SIGKILL of the client",
};

static const struct image_spec specs[] = {
  { "v2-32k", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 80 * MIB + 512, NULL },
  { "v1-64k", MADE_BY_PLOOP_IMG, 1, 64 * KIB, 64 * MIB - 512, NULL },
  { "v2-1m", MADE_BY_PLOOP_IMG, 2, MIB, 48 * MIB + 4096, NULL },
  { "v1-63", FROM_CORPUS, 1, 63 * 512, 8 * MIB, "e-v1-63/i.hds" },
};

/* What was answered to the last sectors of the disk, which no load uses, is
 * checked on its own: it was flushed, too.
 */
#define RESERVED 512

/* A server that is killed may leave clusters that it had taken for requests in
 * flight between others, where closing cannot cut them off.
 */
#define DEPTH 8
#define MAX_LEAKED_BY_A_KILL (DEPTH * LOAD_MAX_CONNECTIONS)

/* How often nbdkit 1.32 fell to an assertion of its own, and how often it ended
 * as it should.
 */
static unsigned nr_aborted, nr_orderly;

static struct load
make_load (struct disk *disk, const struct server *server, struct rng *rng,
           uint64_t stream)
{
  static const uint64_t stripes[] = { 512, 4096, 8192, 16384 };
  struct load load = {
    .disk = disk, .server = server, .nr_connections = LOAD_MAX_CONNECTIONS,
    .depth = DEPTH, .offset = 0, .length = disk->size - RESERVED,
    .stripe = stripes[rng_below (rng, ARRAY_SIZE (stripes))],
    .max_length = 96 * KIB, .stream = stream, .read_percent = 15,
    .aligned = rng_percent (rng, 70), .may_break = true,
    .counts = load_counts_new (),
  };

  /* Begin where the other rounds did not: there is more to allocate. */
  atomic_store (&load.counts->front, rng_below (rng, 100000));
  return load;
}

/* A child of the test that runs LOAD until it is killed. */
static pid_t
start_client (const struct load *load)
{
  pid_t parent = getpid ();
  pid_t pid = fork ();

  if (pid == -1)
    fail ("fork: %m");
  if (pid > 0)
    return pid;
  prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (getppid () != parent)
    _exit (126);
  load_run (load);
  _exit (1);
}

static void
write_reserved (const struct server *server, struct disk *disk, uint8_t value)
{
  struct nbd_handle *nbd = server_connect (server);
  uint64_t offset = disk->size - RESERVED;
  uint8_t buf[RESERVED];

  memset (buf, value, sizeof buf);
  disk_submit (disk, buf, sizeof buf, offset);
  if (nbd_pwrite (nbd, buf, sizeof buf, offset, 0) == -1 ||
      nbd_flush (nbd, 0) == -1)
    fail_nbd ("write and flush");
  disk_answer (disk, sizeof buf, offset);
  server_disconnect (nbd);
}

static void
wait_answered (struct load *load, uint64_t n)
{
  if (!load_wait_answered (load->counts, n))
    fail ("no progress: %" PRIuFAST64 " requests were answered",
          atomic_load (&load->counts->answered));
}

/* True when the server ended in the orderly way. */
static bool
ended_orderly (bool aborted)
{
  if (aborted) {
    say ("  nbdkit aborted on an assertion of its own");
    nr_aborted++;
  }
  else
    nr_orderly++;
  return !aborted;
}

/* The server dies under the load.  True when it ended in the orderly way. */
static bool
kill_server (struct server *server, struct load *load, enum death death,
             uint64_t after)
{
  struct load_run *run = load_start (load);
  bool orderly = false;

  wait_answered (load, after);
  switch (death) {
  case BY_SIGTERM:
    orderly = ended_orderly (server_stop_or_aborted (server));
    break;
  case BY_SIGKILL_WHILE_CLOSING:
    server_terminate (server);
    server_kill_ending (server);
    break;
  default:
    server_kill (server);
  }
  load_join (run);
  return orderly;
}

/* The client dies; another one goes on being served.  nbdkit 1.32 itself may
 * fall to it, and the image must not mind.
 */
static bool
kill_client (struct server *server, struct load *load, uint64_t after,
             uint8_t value)
{
  pid_t client = start_client (load);
  struct nbd_handle *nbd;
  int status;

  wait_answered (load, after);
  kill (client, SIGKILL);
  if (waitpid (client, &status, 0) != client)
    fail ("waitpid: %m");
  if (!WIFSIGNALED (status) || WTERMSIG (status) != SIGKILL)
    fail ("the client ended before it was killed: status 0x%x", status);

  nbd = server_try_connect (server);
  if (nbd != NULL) {
    uint8_t buf[RESERVED];
    uint64_t offset = load->disk->size - RESERVED;

    memset (buf, value, sizeof buf);
    disk_submit (load->disk, buf, sizeof buf, offset);
    if (nbd_pwrite (nbd, buf, sizeof buf, offset, LIBNBD_CMD_FLAG_FUA) == 0)
      disk_answer (load->disk, sizeof buf, offset);
    else {
      double limit = now_seconds () + HANG_SECONDS;

      say ("  the other client's write: %s", nbd_get_error ());
      while (!server_was_aborted_by_nbdkit (server)) {
        if (now_seconds () > limit)
          fail ("the other client was not served, and the server lives");
        poll_pause ();
      }
      nbd_close (nbd);
      return ended_orderly (true);
    }
    nbd_close (nbd);
  }
  return ended_orderly (server_stop_or_aborted (server));
}

static void
check_image (struct disk *disk, const char *path, bool orderly,
             bool sectors_are_whole, uint64_t max_leaked)
{
  struct image_state state;
  struct server *server;
  struct nbd_handle *nbd;

  if (orderly)
    image_expect_clean (path, max_leaked, &state);
  else
    image_expect_sound (path, &state);
  say ("  in use 0x%08x, %u of %u clusters, %" PRIu64 " leaked",
       state.in_use, state.nr_allocated, state.nr_clusters,
       state.nr_leaked);

  server = server_start (path, SERVER_READ_ONLY);
  nbd = server_connect (server);
  disk_settle (disk, nbd, sectors_are_whole);
  server_disconnect (nbd);
  server_stop (server);
}

static void
test_round (struct disk *disk, const char *path, enum death death,
            unsigned round, struct rng *rng)
{
  struct server *server = server_start (path, 0);
  struct load load = make_load (disk, server, rng,
                                rng_next (rng) & 0xffffffff);
  uint64_t after = 1 + rng_below (rng, 300);
  bool orderly;

  say ("  %s after %" PRIu64 " answers, stripes of %" PRIu64 "%s",
       death_names[death], after, load.stripe,
       load.aligned ? ", aligned" : "");
  write_reserved (server, disk, (uint8_t) (round * 2 + 1));
  if (death == OF_THE_CLIENT)
    orderly = kill_client (server, &load, after, (uint8_t) (round * 2 + 2));
  else
    orderly = kill_server (server, &load, death, after);
  check_image (disk, path, orderly, load.aligned,
               (uint64_t) round * MAX_LEAKED_BY_A_KILL);
}

static void
test_image (const struct image_spec *spec, uint64_t stream)
{
  char *path = image_make (spec);
  struct disk *disk = disk_new (spec->size, spec->cluster_size);
  unsigned rounds = scaled (4 * NR_DEATHS);
  double begin = now_seconds ();
  struct image_state state;
  struct server *server;
  struct rng rng;
  unsigned i;

  rng_init (&rng, stream);
  if (spec->maker == FROM_CORPUS)
    disk_load (disk, path);
  for (i = 0; i < rounds; i++) {
    say ("%s, round %u", spec->name, i);
    test_round (disk, path, (enum death) (i % NR_DEATHS), i, &rng);
  }

  /* Whatever happened, the next orderly end leaves it clean. */
  server = server_start (path, 0);
  write_reserved (server, disk, 0xFF);
  server_stop (server);
  image_expect_clean (path, (uint64_t) rounds * MAX_LEAKED_BY_A_KILL, &state);
  disk_compare_qemu (disk, path);
  say ("%s: %.1f s", spec->name, now_seconds () - begin);
  disk_free (disk);
  free (path);
}

/* What a power cut may leave of an image that was in use: entries that were on
 * disk before the file's new size was.  CUT bytes are missing at the end of the
 * file.  What they held was never flushed, so it reads as zeros, and those who
 * get the space next must not show up in it.
 */
static void
test_lost_entries (uint64_t cut)
{
  const struct image_spec spec = {
    "lost", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 4 * MIB, NULL,
  };
  const uint64_t written = 20 * spec.cluster_size;
  const uint32_t open_mark = htole32 (IN_USE_OPEN);
  char *path = image_make (&spec);
  struct disk *disk = disk_new (spec.size, spec.cluster_size);
  uint8_t *buf = malloc (spec.size);
  struct image_state state;
  struct server *server;
  struct nbd_handle *nbd;
  uint64_t i;
  int fd;

  say ("%" PRIu64 " bytes are missing at the end of the file", cut);
  if (buf == NULL)
    abort ();
  for (i = 0; i < spec.size; i++)
    buf[i] = (uint8_t) (1 + i / 512 % 251);

  /* One after the other, so that the file has them in this order. */
  server = server_start (path, 0);
  nbd = server_connect (server);
  for (i = 0; i < written; i += spec.cluster_size)
    if (nbd_pwrite (nbd, buf + i, spec.cluster_size, i, 0) == -1)
      fail_nbd ("nbd_pwrite");
  server_disconnect (nbd);
  server_stop (server);
  image_expect_clean (path, 0, &state);

  fd = open (path, O_WRONLY | O_CLOEXEC);
  if (fd == -1 || ftruncate (fd, (off_t) (state.file_size - cut)) == -1 ||
      pwrite (fd, &open_mark, sizeof open_mark, 44) != sizeof open_mark)
    fail ("%s: %m", path);
  close (fd);
  disk_submit (disk, buf, written - cut, 0);
  disk_answer (disk, written - cut, 0);

  server = server_start (path, SERVER_READ_ONLY);
  nbd = server_connect (server);
  disk_compare_nbd (disk, nbd, disk->size, 0);
  server_disconnect (nbd);
  server_stop (server);

  server = server_start (path, 0);
  nbd = server_connect (server);
  disk_compare_nbd (disk, nbd, disk->size, 0);
  for (i = written; i < spec.size; i += spec.cluster_size) {
    disk_submit (disk, buf + i, spec.cluster_size, i);
    if (nbd_pwrite (nbd, buf + i, spec.cluster_size, i, 0) == -1)
      fail_nbd ("nbd_pwrite");
    disk_answer (disk, spec.cluster_size, i);
    disk_compare_nbd (disk, nbd, written, 0);
  }
  /* And into one that was lost. */
  disk_submit (disk, buf, 512, written - 1024);
  if (nbd_pwrite (nbd, buf, 512, written - 1024, 0) == -1)
    fail_nbd ("nbd_pwrite");
  disk_answer (disk, 512, written - 1024);
  disk_compare_nbd (disk, nbd, disk->size, 0);
  server_disconnect (nbd);
  server_stop (server);
  image_expect_clean (path, 0, &state);
  disk_compare_qemu (disk, path);
  free (buf);
  disk_free (disk);
  free (path);
}

/* What a killed server had preallocated is given back by the next one, also by
 * one that allocates nothing.
 */
static void
test_preallocated_tail (void)
{
  const struct image_spec spec = {
    "tail", MADE_BY_PLOOP_IMG, 2, 64 * KIB, 64 * MIB, NULL,
  };
  char *path = image_make (&spec);
  struct disk *disk = disk_new (spec.size, spec.cluster_size);
  struct image_state state;
  struct server *server;

  server = server_start (path, 0);
  write_reserved (server, disk, 1);
  server_kill (server);
  image_expect_sound (path, &state);
  say ("a killed server left %" PRIu64 " clusters at the end of the file",
       state.nr_leaked);
  server = server_start (path, 0);
  write_reserved (server, disk, 2);
  server_stop (server);
  image_expect_clean (path, 0, &state);
  disk_compare_qemu (disk, path);
  disk_free (disk);
  free (path);
}

int
main (void)
{
  size_t i;

  test_begin ("test-kill");
  test_requires ("qemu-img");
  test_preallocated_tail ();
  test_lost_entries (32 * KIB);
  test_lost_entries (5 * 32 * KIB);
  test_lost_entries (5 * 32 * KIB + 700);
  test_lost_entries (20 * 32 * KIB);
  for (i = 0; i < ARRAY_SIZE (specs); i++)
    test_image (&specs[i], i);
  say ("%u orderly ends, %u aborted by nbdkit", nr_orderly, nr_aborted);
  if (nr_orderly == 0)
    fail ("no orderly end at all");
  return test_end ();
}
