/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Statistics while the server runs: see stats.h.
 *
 * The hard part is a disk that is opened and closed at any moment (dir=): its
 * counters must never seem to go backwards, or its watcher takes them for begun anew
 * and counts twice.  So there is a record for each disk: what it had counted when it
 * was last closed, and what it has counted since it was opened, as far as is known.
 * A disk's last numbers go from the second to the first under the lock under which
 * all numbers are collected.  Locks are taken in the order: this one, that of the
 * exports.
 *
 * The signal comes at any moment, on any thread of nbdkit's, and also when this plugin
 * is about to be unloaded, or nearly gone.  So its handler stays to the end of the
 * process (the plugin's code does, too: -z nodelete), and does no more than add to an
 * eventfd, which is never closed.  With nbdkit --run, the process that the user knows
 * and the one that serves share it.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "prometheus.h"
#include "stats.h"

/* So many disks that were closed are remembered. */
#define MOST_CLOSED 256u

struct record {
  char *labels;
  char *path, *guid;            /* as in struct export */
  struct ploop_statistics before;       /* until it was last closed */
  struct ploop_statistics since;        /* since it was opened, as last seen */
  struct prometheus_disk disk;          /* as last seen; statistics: both */
  GList link;                   /* in closed */
  bool is_closed;               /* it is there */
};

static struct stats_options options;
static gint64 start_time;
static pthread_t thread;
static bool is_started, has_thread;
static int wake_fd = -1;
static _Atomic bool ending;

/* For what follows, and records. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *records;     /* by labels */
static GQueue closed = G_QUEUE_INIT;    /* records, the oldest first */

static bool write_failed;       /* the last time */

/* ---- Records ----------------------------------------------------------- */

static void
free_record (gpointer opaque)
{
  struct record *record = opaque;

  g_free (record->labels);
  g_free (record->path);
  g_free (record->guid);
  g_free (record);
}

/* With the lock held, as all that follows here.  Found, or new. */
static struct record *
get_record (const struct export *export)
{
  g_autofree char *labels = prometheus_labels (export->path, export->guid);
  struct record *record = g_hash_table_lookup (records, labels);

  if (record)
    return record;
  record = g_new0 (struct record, 1);
  record->labels = g_steal_pointer (&labels);
  record->path = g_strdup (export->path);
  record->guid = g_strdup (export->guid);
  record->disk.labels = record->labels;
  record->link.data = record;
  g_hash_table_insert (records, record->labels, record);
  return record;
}

static void
remember_closed (struct record *record)
{
  if (record->is_closed)
    g_queue_unlink (&closed, &record->link);
  g_queue_push_tail_link (&closed, &record->link);
  record->is_closed = true;
  if (closed.length > MOST_CLOSED) {
    GList *oldest = g_queue_pop_head_link (&closed);

    g_hash_table_remove (records, ((struct record *) oldest->data)->labels);
  }
}

/* One that is open, for exports_foreach. */
static void
see (void *opaque, const struct export *export)
{
  struct record *record = get_record (export);
  struct prometheus_disk *disk = &record->disk;

  (void) opaque;
  if (record->is_closed)
    g_queue_unlink (&closed, &record->link);
  record->is_closed = false;
  disk->is_open = true;
  disk->read_only = ploop_is_read_only (export->image);
  disk->version = ploop_version (export->image);
  disk->size = ploop_size (export->image);
  disk->cluster_size = ploop_cluster_size (export->image);
  /* What cannot be told now is 0, which is the answer then. */
  ploop_get_state (export->image, &disk->state);
  ploop_get_statistics (export->image, &record->since);
}

static gint
compare_labels (gconstpointer a, gconstpointer b)
{
  const struct record *const *x = a, *const *y = b;

  return strcmp ((*x)->labels, (*y)->labels);
}

/* What is about to be opened or closed is not seen: it keeps what it was last seen
 * with.  Returns an array of struct record *, to be read with the lock held.
 */
static GPtrArray *
collect (void)
{
  GPtrArray *list = g_ptr_array_new ();
  GHashTableIter iter;
  gpointer value;

  g_hash_table_iter_init (&iter, records);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    ((struct record *) value)->disk.is_open = false;
  exports_foreach (see, NULL);
  g_hash_table_iter_init (&iter, records);
  while (g_hash_table_iter_next (&iter, NULL, &value)) {
    struct record *record = value;

    record->disk.statistics = record->before;
    ploop_add_statistics (&record->disk.statistics, &record->since);
    g_ptr_array_add (list, record);
  }
  g_ptr_array_sort (list, compare_labels);
  return list;
}

void
stats_closing (const struct export *export)
{
  struct ploop_statistics last;
  struct record *record;

  ploop_get_statistics (export->image, &last);
  pthread_mutex_lock (&lock);
  if (records) {
    record = get_record (export);
    ploop_add_statistics (&record->before, &last);
    record->since = (struct ploop_statistics) { 0 };
    remember_closed (record);
  }
  pthread_mutex_unlock (&lock);
}

/* ---- The file ---------------------------------------------------------- */

static GString *
make_text (void)
{
  const struct prometheus_server server = {
    options.served, PACKAGE_VERSION, start_time,
  };
  g_autoptr (GPtrArray) disks = g_ptr_array_new (), list = NULL;
  GString *text;

  pthread_mutex_lock (&lock);
  list = collect ();
  for (guint i = 0; i < list->len; i++)
    g_ptr_array_add (disks,
                     &((struct record *) g_ptr_array_index (list, i))->disk);
  text = prometheus_text (&server, disks);
  pthread_mutex_unlock (&lock);
  return text;
}

static bool
set_write_error (GError **error, const char *what, int errnum)
{
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
               "stats-file=%s: %s: %s (as user %u)", options.file, what,
               g_strerror (errnum), (unsigned) geteuid ());
  return false;
}

static int
write_all (int fd, const char *text, size_t length)
{
  while (length > 0) {
    const ssize_t n = write (fd, text, length);

    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return -errno;
    text += n;
    length -= (size_t) n;
  }
  return 0;
}

/* A new file beside the one that is to be written: nobody ever sees half of it there.
 * Its name does not end as that of a file that a collector looks for.  To be removed,
 * whatever comes of it, but when it was renamed.
 */
static int
make_new_file (char **path, GError **error)
{
  int fd;

  *path = g_strconcat (options.file, ".XXXXXX", NULL);
  /* Readable by the collector, if the umask lets it. */
  fd = g_mkstemp_full (*path, O_WRONLY | O_CLOEXEC, 0644);
  if (fd == -1)
    set_write_error (error, "a new file cannot be made beside it", errno);
  return fd;
}

/* Write all of it.  Takes FD over. */
static int
fill_new_file (int fd, const char *text, size_t length)
{
  int r = write_all (fd, text, length);

  if (close (fd) == -1 && r == 0)
    r = -errno;
  return r;
}

/* Without a sync: what a power cut loses of it is of no use afterwards, and the guests'
 * syncs should not have to wait for ours.
 */
static bool
write_file (GError **error)
{
  GString *text = make_text ();
  g_autofree char *path = NULL;
  const int fd = make_new_file (&path, error);
  int r = 0;

  if (fd != -1)
    r = fill_new_file (fd, text->str, text->len);
  g_string_free (text, TRUE);
  if (fd == -1)
    return false;
  if (r == 0 && rename (path, options.file) == -1)
    r = -errno;
  if (r == 0)
    return true;
  unlink (path);
  return set_write_error (error, "cannot be written", -r);
}

/* It is said when it begins to fail, and when that is over. */
static void
try_to_write_file (void)
{
  g_autoptr (GError) error = NULL;
  const bool failed = !write_file (&error);

  if (failed && !write_failed)
    nbdkit_error ("warning: %s: the disk is served all the same",
                  error->message);
  else if (!failed && write_failed)
    nbdkit_error ("warning: stats-file=%s: is written again", options.file);
  write_failed = failed;
}

/* A file that is there is replaced: it must be one of ours, and not a disk image by
 * mistake.
 */
static bool
may_be_replaced (void)
{
  char start[sizeof PROMETHEUS_START - 1];
  struct stat st;
  ssize_t n;
  int fd;

  /* Why else, who tries to write there will say. */
  if (lstat (options.file, &st) == -1)
    return true;
  if (!S_ISREG (st.st_mode))
    return false;
  fd = open (options.file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd == -1)
    return false;
  n = read (fd, start, sizeof start);
  close (fd);
  return n == 0 || (n == sizeof start
                    && memcmp (start, PROMETHEUS_START, sizeof start) == 0);
}

/* Is there room for a file?  One disk needs less. */
static bool
try_new_file (GError **error)
{
  static const char zeros[32768];
  g_autofree char *path = NULL;
  const int fd = make_new_file (&path, error);
  int r;

  if (fd == -1)
    return false;
  r = fill_new_file (fd, zeros, sizeof zeros);
  unlink (path);
  return r == 0 || set_write_error (error, "cannot be written", -r);
}

static bool
check_file (GError **error)
{
  if (may_be_replaced ())
    return try_new_file (error);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_EXISTS,
               "stats-file=%s: exists, and is not a file of statistics, which "
               "could be replaced: give another name, or remove it",
               options.file);
  return false;
}

/* ---- The log ----------------------------------------------------------- */

/* A name must not look like lines of the log. */
static char *
name_of (const struct record *record)
{
  char *name = g_strconcat (record->path, record->guid ? "/" : "",
                            record->guid, NULL);

  for (char *p = name; *p; p++)
    if (g_ascii_iscntrl (*p))
      *p = '?';
  return name;
}

static char *
describe_state (const struct ploop_state *state)
{
  return g_strdup_printf (
    "%" PRIu64 " of %" PRIu64 " clusters allocated, %" PRIu64 " free, in a file of "
    "%" PRIu64 " bytes that takes %" PRIu64 "%s\n", state->nr_allocated,
    state->nr_clusters, state->nr_free, state->file_size, state->file_space,
    state->sync_failed ? "; a sync has failed" : "");
}

/* Add lines to LINES, char *. */
static void
describe_record (const struct record *record, GPtrArray *lines)
{
  g_autofree char *name = name_of (record);
  g_autofree char *state = describe_state (&record->disk.state);
  g_autofree char *counts =
    ploop_describe_statistics (&record->disk.statistics);
  g_autofree char *text = g_strconcat (state, counts, NULL);
  g_auto (GStrv) all = g_strsplit (text, "\n", -1);

  for (char **line = all; *line; line++)
    if (**line)
      g_ptr_array_add (lines, g_strdup_printf ("%s: %s", name, *line));
}

/* Returns how many there are. */
static unsigned
describe_open (GPtrArray *lines)
{
  g_autoptr (GPtrArray) list = NULL;
  unsigned nr = 0;

  pthread_mutex_lock (&lock);
  list = collect ();
  for (guint i = 0; i < list->len; i++) {
    const struct record *record = g_ptr_array_index (list, i);

    if (!record->disk.is_open)
      continue;
    describe_record (record, lines);
    nr++;
  }
  pthread_mutex_unlock (&lock);
  return nr;
}

/* nbdkit has no messages that are always shown but errors.  The log may be slow:
 * without the lock.
 */
static void
say_all (void)
{
  g_autoptr (GPtrArray) lines = g_ptr_array_new_with_free_func (g_free);
  const unsigned nr = describe_open (lines);

  nbdkit_error ("statistics: %u %s open", nr, nr == 1 ? "disk" : "disks");
  for (guint i = 0; i < lines->len; i++)
    nbdkit_error ("statistics: %s", (char *) g_ptr_array_index (lines, i));
}

/* ---- The thread -------------------------------------------------------- */

static void
wake (void)
{
  const uint64_t one = 1;
  /* Full: it is awake anyway. */
  const ssize_t n = write (wake_fd, &one, sizeof one);

  (void) n;
}

static void
on_signal (int number)
{
  const int before = errno;

  (void) number;
  wake ();
  errno = before;
}

/* Until somebody has called wake, returns true then, or the monotonic clock says DUE,
 * in microseconds; 0: never.
 */
static bool
wait_until (gint64 due)
{
  const gint64 left = MAX (due - g_get_monotonic_time (), 0);
  struct pollfd fd = { .fd = wake_fd, .events = POLLIN };
  uint64_t nr;

  poll (&fd, 1, due == 0 ? -1 : (int) ((left + 999) / 1000));
  return read (wake_fd, &nr, sizeof nr) == sizeof nr;
}

static void *
run (void *opaque)
{
  const gint64 interval = (gint64) options.seconds * G_USEC_PER_SEC;
  gint64 due = options.file ? g_get_monotonic_time () + interval : 0;

  for (;;) {
    const bool woken = wait_until (due);
    const gint64 now = g_get_monotonic_time ();

    if (atomic_load (&ending))
      return opaque;
    if (woken)
      say_all ();
    if (due == 0 || now < due)
      continue;
    try_to_write_file ();
    due += interval;
    /* What was missed is not made up for: a slow file system has its pauses. */
    if (due < g_get_monotonic_time ())
      due = g_get_monotonic_time () + interval;
  }
}

/* ---- Starting and ending ----------------------------------------------- */

bool
stats_get_ready (const struct stats_options *of, GError **error)
{
  const struct sigaction action = {
    .sa_handler = on_signal,
    .sa_flags = SA_RESTART,
  };

  options = *of;
  start_time = g_get_real_time ();
  records = g_hash_table_new_full (g_str_hash, g_str_equal, NULL, free_record);
  wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_fd == -1) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM, "no eventfd: %s",
                 g_strerror (errno));
    return false;
  }
  sigaction (SIGUSR1, &action, NULL);
  return !options.file || check_file (error);
}

/* Signals are for nbdkit's own threads. */
static int
start_thread (void)
{
  sigset_t all, before;
  int r;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  r = pthread_create (&thread, NULL, run, NULL);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (r == 0)
    pthread_setname_np (thread, "ploop-stats");
  return r;
}

bool
stats_start (GError **error)
{
  int r;

  if (options.file && !write_file (error))
    return false;
  is_started = true;
  r = start_thread ();
  has_thread = r == 0;
  if (r != 0)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
                 "threads cannot be started: %s", g_strerror (r));
  return r == 0;
}

void
stats_stop (void)
{
  if (!has_thread)
    return;
  has_thread = false;
  atomic_store (&ending, true);
  wake ();
  pthread_join (thread, NULL);
}

void
stats_finish (void)
{
  if (is_started && options.file)
    try_to_write_file ();
  is_started = false;
  pthread_mutex_lock (&lock);
  g_queue_init (&closed);
  g_clear_pointer (&records, g_hash_table_unref);
  pthread_mutex_unlock (&lock);
}
