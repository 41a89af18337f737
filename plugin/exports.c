/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The server's exports: see exports.h.
 *
 * Opening and closing take their time, and hundreds of disks may be at it at once.
 * So neither is done with the lock held: an entry is busy meanwhile, and whoever
 * wants it waits for that to end, and looks again.
 */

#include <config.h>

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "exports.h"

/* An export that is open, or about to be. */
struct entry {
  struct export export;
  char *name, *path;
  char *given;                  /* as the client has written the name */
  char *guid;                   /* of a snapshot: in the name; NULL: a disk */
  struct entry *disk;           /* whose snapshot it is, and which is used for it */
  unsigned nr_users;
  bool busy;                    /* somebody opens or closes it */
  gint64 idle_since;            /* with no users */
};

static struct exports_options options;
static struct entry the_disk;   /* of a server of one disk */

/* For what follows, and entries. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;  /* an entry is busy no longer, or idle; or ending */
static GHashTable *entries;     /* struct entry, by name */
static bool ending;
static pthread_t janitor;       /* closes what is idle */
static bool has_janitor;

void
exports_init (const struct exports_options *of)
{
  pthread_condattr_t attr;

  options = *of;
  the_disk.export = (struct export) { of->disk, of->path, NULL };
  the_disk.path = (char *) of->path;
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&changed, &attr);
  pthread_condattr_destroy (&attr);
  entries = g_hash_table_new (g_str_hash, g_str_equal);
}

/* ---- Names ------------------------------------------------------------- */

static bool
is_disk (const char *name)
{
  g_autofree char *path = ploop_find_disk (options.path, name, NULL);

  return path != NULL;
}

/* Where in NAME a snapshot's GUID begins; NULL when it is a disk's.  Below a
 * directory, what looks like a GUID may be the name of a disk.
 */
static char *
find_guid (char *name)
{
  char *slash = strrchr (name, '/');

  if (options.disk)
    return name;
  return slash && slash[1] == '{' && !is_disk (name) ? slash + 1 : NULL;
}

/* What is shown of a name that a client has given. */
#define MOST_SHOWN 100

/* Is it one of its disk's snapshots? */
static bool
is_snapshot (const struct entry *entry, GError **error)
{
  g_autoptr (GPtrArray) list =
    ploop_list_snapshots (entry->disk->path, options.open->allow_outside,
                          error);
  g_autofree char *start = g_strndup (entry->given, MOST_SHOWN);
  g_autofree char *shown = NULL;

  if (!list)
    return false;
  for (guint i = 0; i < list->len; i++) {
    const struct ploop_snapshot *snapshot = g_ptr_array_index (list, i);

    if (g_str_equal (snapshot->guid, entry->guid))
      return true;
  }
  shown = g_strescape (start, NULL);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: there is no export '%s%s': give no name for the disk, or a "
               "snapshot's GUID in braces", entry->disk->path, shown,
               strlen (entry->given) > MOST_SHOWN ? "..." : "");
  return false;
}

/* ---- Opening ----------------------------------------------------------- */

static struct entry *get_entry (const char *given, GError **error);
static void put_entry (struct entry *entry);

static ploop_image *
open_snapshot (struct entry *entry, GError **error)
{
  struct ploop_open_options open = *options.open;
  const struct entry *disk = entry->disk;

  if (!is_snapshot (entry, error))
    return NULL;
  open.read_only = true;
  open.defer_start = false;
  open.bases = NULL;
  open.overlay = NULL;
  open.beside = disk->export.image;
  open.snapshot = entry->guid;
  entry->path = g_strdup (disk->path);
  return ploop_open (entry->path, &open, error);
}

static ploop_image *
open_disk (struct entry *entry, GError **error)
{
  struct ploop_open_options open = *options.open;

  open.defer_start = false;
  entry->path = ploop_find_disk (options.path, entry->name, error);
  return entry->path ? ploop_open (entry->path, &open, error) : NULL;
}

/* Snapshots have none of their own. */
static struct entry *
get_disk (const struct entry *snapshot, GError **error)
{
  g_autofree char *name =
    g_strndup (snapshot->name, (gsize) (snapshot->guid - snapshot->name - 1));
  g_autofree char *path = ploop_find_disk (options.path, name, error);

  return path ? get_entry (name, error) : NULL;
}

/* Of a snapshot, the disk is opened first: they share its locks. */
static bool
open_entry (struct entry *entry, GError **error)
{
  if (entry->guid) {
    entry->disk = options.disk ? &the_disk : get_disk (entry, error);
    if (!entry->disk)
      return false;
  }
  entry->export.image = entry->disk ? open_snapshot (entry, error)
                                    : open_disk (entry, error);
  entry->export.path = entry->path;
  entry->export.guid = entry->guid;
  if (!entry->export.image)
    return false;
  options.opened (&entry->export);
  return true;
}

static void
free_entry (struct entry *entry)
{
  if (entry->disk && entry->disk != &the_disk)
    put_entry (entry->disk);
  g_free (entry->name);
  g_free (entry->given);
  g_free (entry->path);
  g_free (entry);
}

/* Not open yet.  GUIDs are in lower case: a snapshot has one entry however it is
 * written.
 */
static struct entry *
new_entry (const char *given)
{
  struct entry *entry = g_new0 (struct entry, 1);

  entry->given = g_strdup (given);
  entry->name = g_strdup (given);
  entry->guid = find_guid (entry->name);
  for (char *p = entry->guid; p && *p; p++)
    *p = g_ascii_tolower (*p);
  return entry;
}

/* With the lock held, which is let go meanwhile.  Takes ENTRY over. */
static struct entry *
add_entry (struct entry *entry, GError **error)
{
  bool ok;

  entry->busy = true;
  g_hash_table_insert (entries, entry->name, entry);
  pthread_mutex_unlock (&lock);
  ok = open_entry (entry, error);
  pthread_mutex_lock (&lock);
  entry->busy = false;
  pthread_cond_broadcast (&changed);
  if (ok)
    return entry;
  g_hash_table_remove (entries, entry->name);
  pthread_mutex_unlock (&lock);
  free_entry (entry);
  pthread_mutex_lock (&lock);
  return NULL;
}

/* With the lock held, which is let go meanwhile.  Takes FRESH over if it is used. */
static struct entry *
find_or_add (struct entry **fresh, GError **error)
{
  struct entry *entry = NULL;

  while (!ending && (entry = g_hash_table_lookup (entries, (*fresh)->name))
         && entry->busy)
    pthread_cond_wait (&changed, &lock);
  /* nbdkit may know nothing yet of a client that comes now, and wait for it no more. */
  if (ending) {
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
                 "%s: the server is ending: connect again later",
                 options.path);
    return NULL;
  }
  return entry ? entry : add_entry (g_steal_pointer (fresh), error);
}

/* The entry that a client has called GIVEN, for one user more. */
static struct entry *
get_entry (const char *given, GError **error)
{
  struct entry *fresh = new_entry (given), *entry;

  pthread_mutex_lock (&lock);
  entry = find_or_add (&fresh, error);
  if (entry)
    entry->nr_users++;
  pthread_mutex_unlock (&lock);
  if (fresh)
    free_entry (fresh);
  return entry;
}

struct export *
exports_get (const char *name, GError **error)
{
  struct entry *entry;

  if (options.disk && *name == '\0')
    return &the_disk.export;
  entry = get_entry (name, error);
  return entry ? &entry->export : NULL;
}

/* ---- Closing ----------------------------------------------------------- */

/* With the lock held, which is let go meanwhile. */
static void
close_entry (struct entry *entry)
{
  g_autoptr (GError) error = NULL;

  entry->busy = true;
  pthread_mutex_unlock (&lock);
  if (ploop_stop (entry->export.image, &error) == -1)
    options.failed (error);
  options.closing (&entry->export);
  ploop_close (entry->export.image, NULL);
  pthread_mutex_lock (&lock);
  g_hash_table_remove (entries, entry->name);
  pthread_cond_broadcast (&changed);
  pthread_mutex_unlock (&lock);
  free_entry (entry);
  pthread_mutex_lock (&lock);
}

static void
put_entry (struct entry *entry)
{
  pthread_mutex_lock (&lock);
  if (--entry->nr_users == 0) {
    entry->idle_since = g_get_monotonic_time ();
    if (has_janitor)
      pthread_cond_broadcast (&changed);
    else if (!ending)
      close_entry (entry);
  }
  pthread_mutex_unlock (&lock);
}

void
exports_put (struct export *export)
{
  if (export != &the_disk.export)
    put_entry ((struct entry *) export);
}

/* One that has been idle for long enough; NULL with the time when the next one will
 * have been, or 0.
 */
static struct entry *
find_idle (gint64 *next)
{
  const gint64 idle = (gint64) options.idle_seconds * G_USEC_PER_SEC;
  const gint64 now = g_get_monotonic_time ();
  GHashTableIter iter;
  gpointer value;

  *next = 0;
  g_hash_table_iter_init (&iter, entries);
  while (g_hash_table_iter_next (&iter, NULL, &value)) {
    struct entry *entry = value;

    if (entry->busy || entry->nr_users > 0)
      continue;
    if (entry->idle_since + idle <= now)
      return entry;
    *next = *next == 0 ? entry->idle_since + idle
                       : MIN (*next, entry->idle_since + idle);
  }
  return NULL;
}

/* With the lock held, until something changes or the monotonic clock says WHEN, in
 * microseconds.
 */
static void
wait_until (gint64 when)
{
  const struct timespec time = {
    .tv_sec = (time_t) (when / G_USEC_PER_SEC),
    .tv_nsec = (long) (when % G_USEC_PER_SEC) * 1000,
  };

  pthread_cond_timedwait (&changed, &lock, &time);
}

static void *
close_idle (void *opaque)
{
  pthread_mutex_lock (&lock);
  while (!ending) {
    gint64 next;
    struct entry *entry = find_idle (&next);

    if (entry)
      close_entry (entry);
    else if (next == 0)
      pthread_cond_wait (&changed, &lock);
    else
      wait_until (next);
  }
  pthread_mutex_unlock (&lock);
  return opaque;
}

/* Signals are for nbdkit's own threads. */
bool
exports_start (GError **error)
{
  sigset_t all, before;
  int r;

  if (options.disk || options.idle_seconds == 0)
    return true;
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  r = pthread_create (&janitor, NULL, close_idle, NULL);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (r == 0) {
    pthread_setname_np (janitor, "ploop-idle");
    has_janitor = true;
    return true;
  }
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_SYSTEM,
               "threads cannot be started: %s", g_strerror (r));
  return false;
}

/* ---- Listing ----------------------------------------------------------- */

/* A descriptor that cannot be read any more says nothing of its disk, which may be
 * open: it is listed alone then.
 */
static int
list_snapshots (const char *path, const char *disk,
                int (*fn) (void *, const char *, const struct ploop_snapshot *),
                void *opaque)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (GPtrArray) list =
    ploop_list_snapshots (path, options.open->allow_outside, &error);
  int r = 0;

  if (!list) {
    g_prefix_error (&error, "snapshots cannot be listed: ");
    options.failed (error);
    return 0;
  }
  for (guint i = 0; i < list->len && r == 0; i++) {
    const struct ploop_snapshot *snapshot = g_ptr_array_index (list, i);
    g_autofree char *name = disk
                              ? g_strdup_printf ("%s/%s", disk, snapshot->guid)
                              : g_strdup (snapshot->guid);

    r = fn (opaque, name, snapshot);
  }
  return r;
}

static int
list_disk (const char *name,
           int (*fn) (void *, const char *, const struct ploop_snapshot *),
           void *opaque)
{
  g_autofree char *path = g_build_filename (options.path, name, NULL);
  int r = fn (opaque, name, NULL);

  return r == 0 ? list_snapshots (path, name, fn, opaque) : r;
}

int
exports_list (int (*fn) (void *, const char *, const struct ploop_snapshot *),
              void *opaque, GError **error)
{
  g_autoptr (GPtrArray) names = NULL;
  int r = 0;

  if (options.disk) {
    r = fn (opaque, "", NULL);
    return r == 0 ? list_snapshots (options.path, NULL, fn, opaque) : r;
  }
  names = ploop_list_disks (options.path, error);
  if (!names)
    return -1;
  for (guint i = 0; i < names->len && r == 0; i++)
    r = list_disk (g_ptr_array_index (names, i), fn, opaque);
  return r;
}

/* ---- Those that are open ------------------------------------------------ */

void
exports_foreach (void (*fn) (void *, const struct export *), void *opaque)
{
  GHashTableIter iter;
  gpointer value;

  if (options.disk)
    fn (opaque, &the_disk.export);
  pthread_mutex_lock (&lock);
  g_hash_table_iter_init (&iter, entries);
  while (g_hash_table_iter_next (&iter, NULL, &value)) {
    const struct entry *entry = value;

    if (!entry->busy)
      fn (opaque, &entry->export);
  }
  pthread_mutex_unlock (&lock);
}

/* ---- Ending ------------------------------------------------------------ */

static void
stop_entry (gpointer key, gpointer value, gpointer opaque)
{
  g_autoptr (GError) error = NULL;
  struct entry *entry = value;

  (void) key;
  (void) opaque;
  if (ploop_stop (entry->export.image, &error) == -1)
    options.failed (error);
}

static gboolean
is_busy (gpointer key, gpointer value, gpointer opaque)
{
  const struct entry *entry = value;

  (void) key;
  (void) opaque;
  return entry->busy;
}

void
exports_stop (void)
{
  pthread_mutex_lock (&lock);
  ending = true;
  pthread_cond_broadcast (&changed);
  pthread_mutex_unlock (&lock);
  if (has_janitor)
    pthread_join (janitor, NULL);
  pthread_mutex_lock (&lock);
  has_janitor = false;
  /* What is being opened by such a client must be stopped, too. */
  while (entries && g_hash_table_find (entries, is_busy, NULL))
    pthread_cond_wait (&changed, &lock);
  if (entries)
    g_hash_table_foreach (entries, stop_entry, NULL);
  pthread_mutex_unlock (&lock);
}

/* Snapshots before their disks. */
static void
close_all (bool snapshots)
{
  g_autoptr (GList) list = g_hash_table_get_values (entries);

  for (GList *link = list; link; link = link->next) {
    struct entry *entry = link->data;

    if ((entry->guid != NULL) != snapshots)
      continue;
    pthread_mutex_lock (&lock);
    close_entry (entry);
    pthread_mutex_unlock (&lock);
  }
}

void
exports_close (void)
{
  if (!entries)
    return;
  ending = true;
  close_all (true);
  close_all (false);
  g_clear_pointer (&entries, g_hash_table_unref);
}
