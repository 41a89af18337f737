/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that many who wait for the disk share one sync: sixteen writers, each
 * with a connection of its own or all on one, write with FUA to new clusters.
 * The server's statistics must show fewer syncs than answers, and no more writes
 * to the BAT than clusters; everything must read back.  And a flush with nothing
 * to make durable must not sync at all.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#include "disk.h"
#include "harness.h"
#include "image.h"
#include "server.h"

#define CLUSTER (32 * KIB)
#define LENGTH (4 * KIB)
#define NR_CLUSTERS 4000
#define NR_WRITERS 16

/* A leader syncs while fifteen wait: even two to a sync is far from this. */
#define MAX_SYNCS_PER_FUA 0.7

/* Of linux/magic.h, which not every system has. */
#define TMPFS_MAGIC_NUMBER 0x01021994
#define RAMFS_MAGIC_NUMBER 0x858458f6

static const struct image_spec spec = {
  "group", MADE_BY_PLOOP_IMG, 2, CLUSTER, NR_CLUSTERS * CLUSTER, NULL
};

/* ---- Statistics of a server -------------------------------------------- */

/* The count called NAME in the statistics of LOG; 0 when it is left out. */
static uint64_t
count_of (const char *log, const char *name)
{
  static const char mark[] = "stats: ";
  char line[4096];
  uint64_t count = 0;
  bool any = false;
  FILE *f = fopen (log, "r");

  if (f == NULL)
    fail ("%s: %m", log);
  while (fgets (line, sizeof line, f) != NULL) {
    char *text = strstr (line, mark);

    if (text == NULL)
      continue;
    any = true;
    text += sizeof mark - 1;
    if (strncmp (text, name, strlen (name)) != 0)
      continue;
    text += strlen (name);
    /* Not a longer name that begins like this. */
    if (text[strspn (text, " ")] != '\0'
        && isdigit ((unsigned char) text[strspn (text, " ")]))
      count = strtoull (text, NULL, 10);
  }
  fclose (f);
  if (!any)
    fail ("%s: has no statistics", log);
  return count;
}

/* Stop SERVER; its log stays.  Returns the log's path, to be freed. */
static char *
stop_with_statistics (struct server *server)
{
  char *log = format_string ("%s", server_log (server));

  server_stop (server);
  return log;
}

/* Let the servers that follow tell, and have PARAMETERS beside those from
 * outside.
 */
static void
configure (const char *parameters)
{
  static char *nbdkit, *outside;

  if (nbdkit == NULL) {
    const char *prefix = getenv ("NBDKIT");
    const char *others = getenv ("PLOOP_PARAMETERS");

    nbdkit = format_string ("%s -v -D ploop.stats=1",
                            prefix && *prefix ? prefix : "nbdkit");
    outside = format_string ("%s", others ? others : "");
  }
  setenv ("NBDKIT", nbdkit, 1);
  char *all = format_string ("%s %s", outside, parameters);
  setenv ("PLOOP_PARAMETERS", all, 1);
  free (all);
}

/* Does a sync of a file in the test's directory go to a device? */
static bool
syncs_cost_something (void)
{
  struct statfs st;

  if (statfs (test_dir (), &st) == -1)
    fail ("statfs %s: %m", test_dir ());
  return (unsigned long) st.f_type != TMPFS_MAGIC_NUMBER
         && (unsigned long) st.f_type != RAMFS_MAGIC_NUMBER;
}

/* ---- The writers ------------------------------------------------------- */

struct commit_group {
  struct disk *disk;
  const struct server *server;
  unsigned nr_writes;
  atomic_uint next;             /* which cluster is written next */
};

/* What the write to cluster N has, somewhere in the cluster. */
static uint64_t
prepare (const struct commit_group *group, unsigned n, uint8_t *buf)
{
  const uint64_t offset = n * CLUSTER + n % (CLUSTER / LENGTH) * LENGTH;

  for (uint64_t i = 0; i < LENGTH; i++)
    buf[i] = (uint8_t) (1 + (n + i / 512 * 31) % 255);
  disk_submit (group->disk, buf, LENGTH, offset);
  return offset;
}

static void *
write_alone (void *opaque)
{
  struct commit_group *group = opaque;
  struct nbd_handle *nbd = server_connect (group->server);
  uint8_t buf[LENGTH];
  unsigned n;

  while ((n = atomic_fetch_add (&group->next, 1)) < group->nr_writes) {
    const uint64_t offset = prepare (group, n, buf);

    if (nbd_pwrite (nbd, buf, sizeof buf, offset, LIBNBD_CMD_FLAG_FUA) == -1)
      fail_nbd ("write with FUA");
    disk_answer (group->disk, LENGTH, offset);
  }
  server_disconnect (nbd);
  return NULL;
}

static void
write_on_many_connections (struct commit_group *group)
{
  pthread_t threads[NR_WRITERS];

  for (unsigned i = 0; i < NR_WRITERS; i++)
    if (pthread_create (&threads[i], NULL, write_alone, group) != 0)
      fail ("pthread_create");
  for (unsigned i = 0; i < NR_WRITERS; i++)
    pthread_join (threads[i], NULL);
}

/* One request in flight. */
struct slot {
  struct commit_group *group;
  bool busy;
  uint64_t offset;
  uint8_t buf[LENGTH];
};

static int
answered (void *opaque, int *error)
{
  struct slot *slot = opaque;

  if (*error != 0)
    fail ("write with FUA at %" PRIu64 ": %s", slot->offset,
          strerror (*error));
  disk_answer (slot->group->disk, LENGTH, slot->offset);
  slot->busy = false;
  return 1;                     /* libnbd may forget the command */
}

/* Send what fits.  Returns how many are in flight. */
static unsigned
send_more (struct nbd_handle *nbd, struct slot *slots)
{
  unsigned busy = 0;

  for (unsigned i = 0; i < NR_WRITERS; i++) {
    struct slot *slot = &slots[i];
    nbd_completion_callback done = {
      .callback = answered, .user_data = slot
    };

    if (!slot->busy) {
      const unsigned n = slot->group->next;

      if (n >= slot->group->nr_writes)
        continue;
      slot->group->next = n + 1;
      slot->offset = prepare (slot->group, n, slot->buf);
      slot->busy = true;
      if (nbd_aio_pwrite (nbd, slot->buf, LENGTH, slot->offset, done,
                          LIBNBD_CMD_FLAG_FUA) == -1)
        fail_nbd ("nbd_aio_pwrite");
    }
    busy++;
  }
  return busy;
}

static void
write_on_one_connection (struct commit_group *group)
{
  struct nbd_handle *nbd = server_connect (group->server);
  struct slot *slots = calloc (NR_WRITERS, sizeof *slots);

  if (slots == NULL)
    abort ();
  for (unsigned i = 0; i < NR_WRITERS; i++)
    slots[i].group = group;
  while (send_more (nbd, slots) > 0) {
    int r = nbd_poll (nbd, HANG_SECONDS * 1000);

    if (r == -1)
      fail_nbd ("nbd_poll");
    if (r == 0)
      fail ("no answer for %d seconds", HANG_SECONDS);
  }
  free (slots);
  server_disconnect (nbd);
}

/* ---- Sharing ----------------------------------------------------------- */

static void
judge (const char *what, const char *log, unsigned nr_writes)
{
  const uint64_t fua = count_of (log, "requests with FUA");
  const uint64_t syncs = count_of (log, "syncs");
  const uint64_t clusters = count_of (log, "clusters allocated");
  const uint64_t bat_writes = count_of (log, "BAT writes");

  say ("%s: %" PRIu64 " writes with FUA, %" PRIu64 " syncs, %" PRIu64
       " commits that answered %" PRIu64 ", %" PRIu64 " clusters, %" PRIu64
       " writes to the BAT", what, fua, syncs, count_of (log, "commits"),
       count_of (log, "answered by commits"), clusters, bat_writes);
  if (fua != nr_writes || clusters != nr_writes)
    fail ("%s: %" PRIu64 " writes and %" PRIu64 " clusters were counted, "
          "must be %u", what, fua, clusters, nr_writes);
  if (syncs == 0)
    fail ("%s: no sync was counted", what);
  /* Five percent, for commits that find a page behind. */
  if (bat_writes * 100 > clusters * 105)
    fail ("%s: %" PRIu64 " writes to the BAT for %" PRIu64 " clusters", what,
          bat_writes, clusters);
  if (!syncs_cost_something ())
    say ("%s: syncs cost nothing here, so nobody waits to share one", what);
  else if ((double) syncs > MAX_SYNCS_PER_FUA * (double) fua)
    fail ("%s: %" PRIu64 " syncs for %" PRIu64 " writes with FUA", what,
          syncs, fua);
}

static void
test_sharing (const char *parameters, bool many_connections)
{
  char *path = image_make (&spec);
  char *what = format_string ("%s, %s", parameters, many_connections
                              ? "16 connections" : "16 in flight on one");
  struct server *server;
  struct nbd_handle *nbd;
  struct image_state state;
  char *log;
  struct commit_group group = {
    .disk = disk_new (spec.size, spec.cluster_size),
    .nr_writes = scaled (3000),
  };

  if (group.nr_writes > NR_CLUSTERS)
    group.nr_writes = NR_CLUSTERS;
  configure (parameters);
  group.server = server = server_start (path, 0);
  if (many_connections)
    write_on_many_connections (&group);
  else
    write_on_one_connection (&group);
  nbd = server_connect (server);
  disk_compare_nbd (group.disk, nbd, group.disk->size, 0);
  server_disconnect (nbd);
  log = stop_with_statistics (server);
  judge (what, log, group.nr_writes);
  image_expect_clean (path, 0, &state);
  if (state.nr_allocated != group.nr_writes)
    fail ("%s: %u clusters are in the BAT", what, state.nr_allocated);
  disk_free (group.disk);
  free (log);
  free (what);
  free (path);
}

/* ---- Nothing to share -------------------------------------------------- */

/* The syncs of a session that writes a little and then flushes NR_FLUSHES
 * times.
 */
static uint64_t
syncs_with_flushes (unsigned nr_flushes)
{
  char *path = image_make (&spec);
  struct server *server = server_start (path, 0);
  struct nbd_handle *nbd = server_connect (server);
  uint8_t buf[LENGTH] = { 1 };
  uint64_t syncs;
  char *log;

  if (nbd_pwrite (nbd, buf, sizeof buf, 0, 0) == -1)
    fail_nbd ("nbd_pwrite");
  for (unsigned i = 0; i < nr_flushes; i++) {
    if (nbd_flush (nbd, 0) == -1)
      fail_nbd ("nbd_flush");
    /* What reads changes nothing, either. */
    if (nbd_pread (nbd, buf, sizeof buf, i * LENGTH, 0) == -1)
      fail_nbd ("nbd_pread");
  }
  server_disconnect (nbd);
  log = stop_with_statistics (server);
  syncs = count_of (log, "syncs") + count_of (log, "syncs of extensions");
  if (count_of (log, "flush") < nr_flushes)
    fail ("%u flushes were sent, %" PRIu64 " counted", nr_flushes,
          count_of (log, "flush"));
  free (log);
  free (path);
  return syncs;
}

static void
test_idle_flush (const char *parameters)
{
  uint64_t one, many;

  configure (parameters);
  one = syncs_with_flushes (1);
  many = syncs_with_flushes (100);
  say ("%s: %" PRIu64 " syncs with one flush, %" PRIu64 " with a hundred",
       parameters, one, many);
  if (one != many)
    fail ("%s: flushes with nothing to do have synced %" PRIu64 " times",
          parameters, many - one);
}

int
main (void)
{
  static const char *const ways[] = { "fast-path=on", "fast-path=off" };

  test_begin ("test-group");
  for (unsigned i = 0; i < ARRAY_SIZE (ways); i++) {
    test_sharing (ways[i], true);
    test_sharing (ways[i], false);
    test_idle_flush (ways[i]);
  }
  return test_end ();
}
