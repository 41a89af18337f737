/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that one server serves hundreds of disks of a directory at once: opened
 * by as many connections at the same time, with random requests on all of them
 * against models in memory, and a fifth of them with a lower delta, whose snapshot
 * stays what it was.  200 open disks have the threads that one has; memory and
 * file descriptors for each are bounded; when the clients have gone, every disk is
 * closed, unmarked and free for another server, and no descriptor is left.
 * Clients that die take nobody with them, and a server that is told to end with
 * all disks open leaves all of them closed; of one that is killed, the next server
 * that writes to them does.
 */

#include <config.h>

#include <dirent.h>
#include <inttypes.h>
#include <pthread.h>
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

#define MAX_DISKS 200u
#define MIN_DISKS 40u
#define NR_THREADS 8u           /* of the test, that open and write */
#define CLUSTER (32 * KIB)

/* What a disk that is open may cost, far above what it does. */
#define MAX_DISK_MEMORY MIB
#define MAX_DISK_FDS 8u

struct item {
  char *name;                   /* of its export */
  char *path;                   /* of the image that is written to */
  unsigned version;
  struct disk *disk;
  char *snapshot;               /* an export of what FROZEN has, or NULL */
  struct disk *frozen;
  bool killed;                  /* its server was, once */
};

static struct item items[MAX_DISKS];
static unsigned nr_items;
static char *directory;
static uint64_t next_stream;

/* ---- Disks ------------------------------------------------------------- */

static void
make_item (unsigned i)
{
  struct item *item = &items[i];
  char *file = format_string ("disks/g%u/n%u/disk-%u.hds", i % 7, i % 3, i);
  const struct image_spec spec = {
    file, MADE_BY_PLOOP_IMG, 1 + i % 2, CLUSTER, (24 + i % 16) * CLUSTER, NULL
  };

  item->path = image_make (&spec);
  item->name = format_string ("%s", file + strlen ("disks/"));
  item->version = spec.version;
  item->disk = disk_new (spec.size, CLUSTER);
  disk_expect_trims (item->disk);
  free (file);
}

/* The image becomes the lower delta of a disk with a descriptor. */
static void
freeze_item (unsigned i)
{
  struct item *item = &items[i];
  char *base = format_string ("%s.base", item->path);
  char *guid = format_string ("{%08x-aaaa-BBBB-cccc-444444444444}", i);
  char *xml = format_string ("%s/DiskDescriptor.xml", item->path);
  FILE *f;

  run_ok ("mv %s %s && mkdir %s && mv %s %s/base.hds && "
          "%s create --version=%u --cluster-size=32K %s/top.hds %" PRIu64,
          item->path, base, item->path, base, item->path, test_env ("PLOOP_IMG"),
          3 - item->version, item->path, item->disk->size);
  f = fopen (xml, "w");
  if (f == NULL)
    fail ("%s: %m", xml);
  fprintf (f, "<?xml version=\"1.0\"?>\n<Parallels_disk_image><Disk_Parameters>"
              "<Disk_size>%" PRIu64 "</Disk_size><Padding>0</Padding>"
              "</Disk_Parameters><StorageData><Storage><Start>0</Start>"
              "<End>%" PRIu64 "</End><Blocksize>64</Blocksize>",
           item->disk->size / 512, item->disk->size / 512);
  fprintf (f, "<Image><GUID>%s</GUID><Type>Compressed</Type>"
              "<File>base.hds</File></Image>"
              "<Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>"
              "<Type>Compressed</Type><File>top.hds</File></Image></Storage>"
              "</StorageData><Snapshots>", guid);
  fprintf (f, "<TopGUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</TopGUID>"
              "<Shot><GUID>%s</GUID><ParentGUID>"
              "{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot>"
              "<Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID>"
              "<ParentGUID>%s</ParentGUID></Shot></Snapshots>"
              "</Parallels_disk_image>\n", guid, guid);
  fclose (f);
  item->snapshot = format_string ("%s/%s", item->name, guid);
  item->frozen = disk_new (item->disk->size, CLUSTER);
  memcpy (item->frozen->answered, item->disk->answered, item->disk->size);
  free (item->path);
  item->path = format_string ("%s/%s/top.hds", directory, item->name);
  free (xml);
  free (guid);
  free (base);
}

static struct server *
start (const char *parameters)
{
  /* valgrind has no room for all threads that nbdkit would make. */
  char *all = format_string ("-t %u %s", nbdkit_is_plain () ? 4 : 2, parameters);
  struct server *server = server_start_with (directory, SERVER_DIRECTORY, all);

  free (all);
  return server;
}

/* ---- What the server takes --------------------------------------------- */

static unsigned
count_fds (const struct server *server)
{
  char *path = format_string ("/proc/%d/fd", (int) server_pid (server));
  DIR *stream = opendir (path);
  unsigned n = 0;

  if (stream == NULL)
    fail ("%s: %m", path);
  while (readdir (stream) != NULL)
    n++;
  closedir (stream);
  free (path);
  return n - 2;                 /* . and .. */
}

/* Bytes. */
static int64_t
memory_of (const struct server *server)
{
  char *path = format_string ("/proc/%d/status", (int) server_pid (server));
  FILE *f = fopen (path, "r");
  int64_t kib = -1;
  char line[256];

  while (f != NULL && fgets (line, sizeof line, f) != NULL)
    sscanf (line, "VmRSS: %" SCNd64, &kib);
  if (kib == -1)
    fail ("%s has no VmRSS", path);
  fclose (f);
  free (path);
  return kib * (int64_t) KIB;
}

static int
compare_text (const void *a, const void *b)
{
  return strcmp (a, b);
}

/* The names of the plugin's threads, sorted; to be freed. */
static char *
threads_of (const struct server *server)
{
  char *path = format_string ("/proc/%d/task", (int) server_pid (server));
  char names[64][20], *text = format_string ("%s", "");
  DIR *stream = opendir (path);
  const struct dirent *entry;
  size_t n = 0;

  if (stream == NULL)
    fail ("%s: %m", path);
  while ((entry = readdir (stream)) != NULL) {
    char *comm = format_string ("%s/%s/comm", path, entry->d_name);
    FILE *f = entry->d_name[0] == '.' ? NULL : fopen (comm, "r");

    if (f != NULL && fgets (names[n], sizeof names[n], f) != NULL
        && strncmp (names[n], "ploop-", 6) == 0 && ++n == ARRAY_SIZE (names))
      fail ("the server has more than %zu threads of the plugin's", n);
    if (f != NULL)
      fclose (f);
    free (comm);
  }
  closedir (stream);
  qsort (names, n, sizeof names[0], compare_text);
  for (size_t i = 0; i < n; i++) {
    char *more = format_string ("%s%.*s ", text, (int) strcspn (names[i], "\n"),
                                names[i]);

    free (text);
    text = more;
  }
  free (path);
  return text;
}

/* One that is asked for in vain: the server is at work when it has answered. */
static unsigned
fds_at_start (const struct server *server)
{
  unsigned least = 0;

  if (server_try_connect_to (server, "no such disk") != NULL)
    fail ("there is an export 'no such disk'");
  /* That connection may take a moment to go. */
  for (unsigned same = 0, n; same < 100; least = n, poll_pause ()) {
    n = count_fds (server);
    same = n == least ? same + 1 : 0;
  }
  return least;
}

static unsigned
count_marked (void)
{
  unsigned n = 0;

  for (unsigned i = 0; i < nr_items; i++)
    n += image_in_use (items[i].path) != IN_USE_CLOSED;
  return n;
}

/* Until all is closed that was opened since. */
static void
wait_for_fds (const struct server *server, unsigned before)
{
  const double limit = now_seconds () + HANG_SECONDS;
  unsigned n;

  while ((n = count_fds (server)) > before || count_marked () > 0) {
    if (now_seconds () > limit)
      fail ("%u file descriptors are open, %u were; %u disks are marked", n,
            before, count_marked ());
    poll_pause ();
  }
}

/* ---- All at once ------------------------------------------------------- */

struct worker {
  pthread_t thread;
  unsigned number;
  const struct server *server;
  struct nbd_handle **handles;  /* of all items */
  unsigned nr_rounds;
};

static void
run_workers (const struct server *server, void *(*fn) (void *),
             struct nbd_handle **handles, unsigned nr_rounds)
{
  struct worker workers[NR_THREADS];

  for (unsigned i = 0; i < NR_THREADS; i++) {
    workers[i] = (struct worker) {
      .number = i, .server = server, .handles = handles, .nr_rounds = nr_rounds,
    };
    if (pthread_create (&workers[i].thread, NULL, fn, &workers[i]) != 0)
      fail ("pthread_create");
  }
  for (unsigned i = 0; i < NR_THREADS; i++)
    pthread_join (workers[i].thread, NULL);
}

/* All ask for the last disk first, which one of them opens. */
static void *
connect_some (void *arg)
{
  const struct worker *worker = arg;

  server_disconnect (server_connect_to (worker->server,
                                        items[nr_items - 1].name));
  for (unsigned i = worker->number; i < nr_items; i += NR_THREADS)
    worker->handles[i] = server_connect_to (worker->server, items[i].name);
  return NULL;
}

static void
disconnect_all (struct nbd_handle **handles)
{
  for (unsigned i = 0; i < nr_items; i++)
    server_disconnect (handles[i]);
}

static void
compare_item (const struct item *item, struct nbd_handle *nbd,
              const struct server *server)
{
  struct nbd_handle *frozen;

  if (nbd_get_size (nbd) != (int64_t) item->disk->size)
    fail ("%s: its size is %" PRIi64, item->name, nbd_get_size (nbd));
  disk_compare_extents (item->disk, nbd);
  disk_compare_nbd (item->disk, nbd, item->disk->size, 0);
  if (item->snapshot == NULL)
    return;
  frozen = server_connect_to (server, item->snapshot);
  if (nbd_is_read_only (frozen) != 1)
    fail ("%s: is not read-only", item->snapshot);
  disk_compare_extents (item->frozen, frozen);
  disk_compare_nbd (item->frozen, frozen, item->frozen->size, 0);
  server_disconnect (frozen);
}

static void
compare_all (const struct server *server)
{
  for (unsigned i = 0; i < nr_items; i++) {
    struct nbd_handle *nbd = server_connect_to (server, items[i].name);

    compare_item (&items[i], nbd, server);
    server_disconnect (nbd);
  }
}

static struct load
make_load (unsigned i, const struct server *server)
{
  const unsigned nr = i % 8 == 0 ? 3 : 1;
  struct load load = {
    .disk = items[i].disk, .server = server, .export = items[i].name,
    .nr_connections = nr, .depth = 4, .nr_requests = scaled (60 * nr),
    .length = items[i].disk->size, .stripe = CLUSTER / 8,
    .max_length = 4 * CLUSTER, .stream = next_stream++, .read_percent = 40,
    .space = true, .counts = load_counts_new (),
  };

  return load;
}

/* At least some of each. */
static void
wait_answered (const struct load *loads, unsigned nr)
{
  for (unsigned i = 0; i < nr; i++)
    if (loads[i].counts != NULL && !load_wait_answered (loads[i].counts, 1))
      fail ("%s: no request is answered", loads[i].export);
}

static void
run_loads (const struct server *server)
{
  struct load_run *runs[MAX_DISKS];

  for (unsigned i = 0; i < nr_items; i++) {
    const struct load load = make_load (i, server);

    runs[i] = load_start (&load);
  }
  for (unsigned i = 0; i < nr_items; i++)
    load_join (runs[i]);
}

/* All are closed. */
static void
expect_all_clean (void)
{
  for (unsigned i = 0; i < nr_items; i++) {
    const struct item *item = &items[i];
    const uint64_t max_leaked = item->killed ? item->disk->size / CLUSTER : 0;
    struct image_state state;

    image_read (item->path, &state);
    if (state.in_use != IN_USE_CLOSED)
      fail ("%s: in use is 0x%x after its clients have gone", item->path,
            state.in_use);
    if (state.nr_leaked - state.nr_holes > max_leaked)
      fail ("%s: %" PRIu64 " clusters are leaked", item->path,
            state.nr_leaked - state.nr_holes);
  }
}

/* Also for other programs: ploop-img looks at all images, qemu at some. */
static void
check_all (void)
{
  char *list = test_path ("list");
  FILE *f = fopen (list, "w");

  if (f == NULL)
    fail ("%s: %m", list);
  expect_all_clean ();
  for (unsigned i = 0; i < nr_items; i++) {
    struct image_state state;

    if (i % 40 == 0)
      image_expect_clean (items[i].path, items[i].disk->size / CLUSTER, &state);
    image_read (items[i].path, &state);
    fprintf (f, "%s %d\n", items[i].path, state.nr_leaked > 0 ? 3 : 0);
  }
  fclose (f);
  run_ok ("while read -r path may; do s=0; %s check $path || s=$?; "
          "[ $s = 0 ] || [ $s = $may ] || { echo $path: $s; exit 1; }; done < %s",
          test_env ("PLOOP_IMG"), list);
  free (list);
}

/* What 200 open disks take beyond one. */
static void
measure (const struct server *server, struct nbd_handle **handles)
{
  struct nbd_handle *first = server_connect_to (server, items[0].name);
  char *threads_of_one = threads_of (server), *threads;
  const int64_t memory_of_one = memory_of (server);
  const unsigned fds_of_one = count_fds (server);
  int64_t memory;
  unsigned fds;

  run_workers (server, connect_some, handles, 0);
  server_disconnect (first);
  threads = threads_of (server);
  memory = (memory_of (server) - memory_of_one) / (nr_items - 1);
  fds = (count_fds (server) - fds_of_one) / (nr_items - 1);
  say ("%u disks open: %" PRIi64 " bytes of memory and %u descriptors for each, "
       "threads: %s", nr_items, memory, fds, threads);
  if (strcmp (threads, threads_of_one) != 0)
    fail ("threads with one disk: %s; with %u: %s", threads_of_one, nr_items,
          threads);
  if (strstr (threads, "ploop-flush ploop-idle ploop-run-0 ") == NULL)
    fail ("there is not one of each kind of threads");
  if (nbdkit_is_plain () && memory > (int64_t) MAX_DISK_MEMORY)
    fail ("an open disk takes %" PRIi64 " bytes of memory", memory);
  if (fds > MAX_DISK_FDS)
    fail ("an open disk takes %u file descriptors", fds);
  free (threads);
  free (threads_of_one);
}

/* Another server can have them, to write, though the first one still runs. */
static void
write_by_another (void)
{
  struct server *server = start ("idle-close=86400");
  struct nbd_handle *handles[MAX_DISKS];
  uint8_t buf[512];

  run_workers (server, connect_some, handles, 0);
  for (unsigned i = 0; i < nr_items; i++) {
    struct disk *disk = items[i].disk;

    memset (buf, (int) (1 + i % 255), sizeof buf);
    disk_submit (disk, buf, sizeof buf, disk->size - sizeof buf);
    if (nbd_pwrite (handles[i], buf, sizeof buf, disk->size - sizeof buf, 0)
        == -1)
      fail_nbd (items[i].name);
    disk_answer (disk, sizeof buf, disk->size - sizeof buf);
  }
  if (count_marked () != nr_items)
    fail ("only %u images that are written to are marked", count_marked ());
  disconnect_all (handles);
  /* All are open still, and written to. */
  server_stop (server);
  expect_all_clean ();
}

static void
test_all_at_once (const char *parameters)
{
  struct server *server;
  struct nbd_handle *handles[MAX_DISKS];
  double begin = now_seconds ();
  char *all = format_string ("idle-close=1 %s", parameters);
  unsigned fds;

  say ("all at once: %s", all);
  server = start (all);
  fds = fds_at_start (server);
  measure (server, handles);
  run_loads (server);
  say ("  loads: %.1f s; %" PRIi64 " bytes of memory, %u are marked",
       now_seconds () - begin, memory_of (server), count_marked ());
  for (unsigned i = 0; i < nr_items; i++)
    compare_item (&items[i], handles[i], server);
  disconnect_all (handles);
  wait_for_fds (server, fds);
  expect_all_clean ();
  write_by_another ();
  compare_all (server);
  server_stop (server);
  expect_all_clean ();
  say ("  %.1f s", now_seconds () - begin);
  free (all);
}

/* ---- Clients that die, servers that end -------------------------------- */

#define NR_CHILDREN 4u

/* An image that a server has left marked stays so until it is written to: write
 * what is there already.
 */
static void
write_again (const struct item *item, struct nbd_handle *nbd)
{
  if (nbd_pwrite (nbd, item->disk->answered, 512, 0, 0) == -1)
    fail_nbd (item->name);
}

/* The server may have been killed, or nbdkit 1.32 have fallen to an assertion of its
 * own.  What was answered is there even so, but copies of lower deltas' clusters that
 * were not committed.  All are closed then.
 */
static void
settle_all (bool aborted)
{
  struct server *server = start ("");

  for (unsigned i = 0; i < nr_items; i++) {
    struct disk *disk = items[i].disk;
    struct nbd_handle *nbd = server_connect_to (server, items[i].name);

    if (aborted)
      items[i].killed = true;
    if (!aborted || items[i].snapshot == NULL)
      disk_settle (disk, nbd, false);
    else if (nbd_pread (nbd, disk->answered, disk->size, 0, 0) == -1)
      fail_nbd (items[i].name);
    else {
      memcpy (disk->submitted, disk->answered, disk->size);
      memset (disk->loose, 0, disk->size);
    }
    compare_item (&items[i], nbd, server);
    if (aborted)
      write_again (&items[i], nbd);
    server_disconnect (nbd);
  }
  server_stop (server);
}

/* A child of the test that works on some of the disks until it is killed. */
static pid_t
start_client (const struct load *loads, unsigned child)
{
  const pid_t parent = getpid ();
  const pid_t pid = fork ();

  if (pid == -1)
    fail ("fork: %m");
  if (pid > 0)
    return pid;
  prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (getppid () != parent)
    _exit (126);
  for (unsigned i = 10 * child; i < nr_items; i += 10 * NR_CHILDREN)
    load_start (&loads[i]);
  pause ();
  _exit (1);
}

static bool
is_childs (unsigned i)
{
  return i % 10 == 0;
}

static bool
were_served (const struct load *loads)
{
  for (unsigned i = 0; i < nr_items; i++)
    if (!is_childs (i)
        && atomic_load (&loads[i].counts->issued) <= loads[i].nr_requests)
      return false;
  return true;
}

/* Somebody was not served any more: nothing else may be the reason. */
static bool
has_been_aborted (struct server *server)
{
  const double limit = now_seconds () + HANG_SECONDS;

  while (!server_was_aborted_by_nbdkit (server)) {
    if (now_seconds () > limit)
      fail ("another client was not served, and the server lives");
    poll_pause ();
  }
  return true;
}

/* The clients of a tenth of the disks die, the others go on. */
static void
test_dying_clients (void)
{
  const double begin = now_seconds ();
  struct server *server = start ("idle-close=1 -t 1");
  const unsigned fds = fds_at_start (server);
  struct load loads[MAX_DISKS];
  struct load_run *runs[MAX_DISKS] = { NULL };
  pid_t children[NR_CHILDREN];
  bool aborted;

  for (unsigned i = 0; i < nr_items; i++) {
    loads[i] = make_load (i, server);
    loads[i].may_break = true;
    if (is_childs (i))
      loads[i].nr_requests = 0;
  }
  for (unsigned i = 0; i < NR_CHILDREN; i++)
    children[i] = start_client (loads, i);
  wait_answered (loads, 0);
  for (unsigned i = 0; i < nr_items; i++)
    if (!is_childs (i))
      runs[i] = load_start (&loads[i]);
  wait_answered (loads, nr_items);
  for (unsigned i = 0; i < NR_CHILDREN; i++)
    if (kill (children[i], SIGKILL) == -1
        || waitpid (children[i], NULL, 0) != children[i])
      fail ("a client has gone before it was killed");
  for (unsigned i = 0; i < nr_items; i++)
    if (!is_childs (i))
      load_join (runs[i]);

  aborted = !were_served (loads) && has_been_aborted (server);
  if (!aborted) {
    wait_for_fds (server, fds);
    expect_all_clean ();
    server_stop (server);
  }
  settle_all (aborted);
  say ("clients die: %.1f s%s", now_seconds () - begin,
       aborted ? ", nbdkit aborted on an assertion of its own" : "");
}

/* All disks are open and were written to.  Either nobody is at work any more, or
 * each seventh disk has clients that do not end by themselves.
 */
enum ending {
  AT_REST,
  UNDER_LOAD,
  KILLED,                       /* under load, too */
};

static const char *const ending_names[] = {
  [AT_REST] = "SIGTERM",
  [UNDER_LOAD] = "SIGTERM under load",
  [KILLED] = "SIGKILL under load",
};

/* Returns true when the images were not closed. */
static bool
end_server (struct server *server, enum ending ending,
            struct nbd_handle **handles)
{
  if (ending == KILLED) {
    server_kill (server);
    disconnect_all (handles);
    return true;
  }
  /* nbdkit waits for clients that ask for nothing. */
  server_terminate (server);
  disconnect_all (handles);
  return server_stop_or_aborted (server);
}

static void
test_ending (enum ending ending)
{
  const bool busy = ending != AT_REST;
  const double begin = now_seconds ();
  struct server *server = start ("idle-close=86400 copy-on-write=lazy");
  struct nbd_handle *handles[MAX_DISKS];
  struct load loads[MAX_DISKS];
  struct load_run *runs[MAX_DISKS];
  bool aborted;

  run_workers (server, connect_some, handles, 0);
  for (unsigned i = 0; i < nr_items; i++) {
    loads[i] = make_load (i, server);
    if (busy && i % 7 == 0) {
      loads[i].may_break = true;
      loads[i].nr_requests = 0;
    }
    runs[i] = load_start (&loads[i]);
  }
  wait_answered (loads, nr_items);
  for (unsigned i = 0; i < nr_items; i++)
    if (loads[i].nr_requests > 0)
      load_join (runs[i]);
  aborted = end_server (server, ending, handles);
  for (unsigned i = 0; i < nr_items; i++)
    if (loads[i].nr_requests == 0)
      load_join (runs[i]);
  if (aborted && !busy)
    fail ("nbdkit aborted while nobody was at work");
  if (!aborted)
    expect_all_clean ();
  settle_all (aborted);
  if (busy)
    check_all ();
  say ("%s with %u open disks: %.1f s%s", ending_names[ending], nr_items,
       now_seconds () - begin,
       aborted && ending != KILLED
         ? ", nbdkit aborted on an assertion of its own" : "");
}

/* ---- Opened and closed all the time ------------------------------------ */

#define NR_CHURNED 6u
#define SHARE 2048u             /* bytes of each cluster that a thread has */

/* It reads what it has written last, through another opening. */
static void
churn_disk (const struct worker *worker, const struct item *item,
            struct rng *rng)
{
  const uint64_t offset = rng_below (rng, item->disk->size / CLUSTER) * CLUSTER
                          + worker->number * SHARE;
  struct nbd_handle *nbd = server_connect_to (worker->server, item->name);
  uint8_t buf[SHARE];

  disk_compare_nbd (item->disk, nbd, SHARE, offset);
  memset (buf, (int) (1 + rng_below (rng, 255)), sizeof buf);
  disk_submit (item->disk, buf, SHARE, offset);
  if (nbd_pwrite (nbd, buf, SHARE, offset, 0) == -1)
    fail_nbd (item->name);
  disk_answer (item->disk, SHARE, offset);
  if (rng_percent (rng, 50))
    server_disconnect (nbd);
  else
    nbd_close (nbd);
}

static void *
churn (void *arg)
{
  const struct worker *worker = arg;
  struct rng rng;

  rng_init (&rng, next_stream + worker->number);
  for (unsigned i = 0; i < worker->nr_rounds; i++) {
    const struct item *item = &items[5 * rng_below (&rng, NR_CHURNED)];

    if (item->snapshot != NULL && rng_percent (&rng, 40)) {
      struct nbd_handle *nbd =
        server_connect_to (worker->server, item->snapshot);

      disk_compare_nbd (item->frozen, nbd, item->frozen->size, 0);
      server_disconnect (nbd);
    }
    else
      churn_disk (worker, item, &rng);
  }
  return NULL;
}

/* A few disks with snapshots, each of which is closed when its last client goes,
 * while the next one comes.
 */
static void
test_churn (void)
{
  struct server *server = start ("idle-close=0");
  const unsigned fds = fds_at_start (server);
  const double begin = now_seconds ();
  char *threads = threads_of (server);

  if (strstr (threads, "ploop-idle") != NULL)
    fail ("a thread waits for disks to be idle: %s", threads);
  free (threads);
  run_workers (server, churn, NULL, scaled (60));
  next_stream += NR_THREADS;
  wait_for_fds (server, fds);
  expect_all_clean ();
  compare_all (server);
  server_stop (server);
  say ("opened and closed all the time: %.1f s", now_seconds () - begin);
}

int
main (void)
{
  test_begin ("test-directory");
  test_requires ("qemu-img");
  nr_items = nbdkit_is_plain () ? scaled (MAX_DISKS) : MIN_DISKS;
  if (nr_items < MIN_DISKS || nr_items > MAX_DISKS)
    nr_items = nr_items < MIN_DISKS ? MIN_DISKS : MAX_DISKS;
  directory = test_path ("disks");
  for (unsigned i = 0; i < 7; i++)
    run_ok ("mkdir -p %s/g%u/n0 %s/g%u/n1 %s/g%u/n2", directory, i, directory, i,
            directory, i);
  for (unsigned i = 0; i < nr_items; i++)
    make_item (i);
  test_all_at_once ("");
  test_dying_clients ();
  for (unsigned i = 0; i < nr_items; i += 5)
    freeze_item (i);
  test_all_at_once ("copy-on-write=lazy detect-zeroes=unmap");
  test_ending (AT_REST);
  test_ending (UNDER_LOAD);
  test_ending (KILLED);
  test_churn ();
  return test_end ();
}
