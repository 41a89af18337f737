/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Dying at any system call, and the order of those before it: see killer.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <glib.h>

#include "killer.h"

#define SECTOR 512u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct killer_report *report;    /* NULL: it is not at work */
static uint64_t deadly;
static bool in_half;
static GHashTable *unsynced;    /* of char *, inodes: as last changed by */
static GHashTable *ours;        /* of char *, inodes that were not there before */
static GHashTable *unnamed;     /* those whose names are not on disk */
static bool replaced;           /* a name is, and that is not on disk */

ssize_t __real_pwrite (int, const void *, size_t, off_t);
ssize_t __real_write (int, const void *, size_t);
ssize_t __real_copy_file_range (int, off_t *, int, off_t *, size_t, unsigned);
int __real_fallocate (int, int, off_t, off_t);
int __real_ftruncate (int, off_t);
int __real_fdatasync (int);
int __real_fsync (int);
int __real_fchmod (int, mode_t);
int __real_fchown (int, uid_t, gid_t);
int __real_chmod (const char *, mode_t);
int __real_lchown (const char *, uid_t, gid_t);
int __real_open (const char *, int, ...);
int __real_openat (int, const char *, int, ...);
int __real_renameat (int, const char *, int, const char *);
int __real_renameat2 (int, const char *, int, const char *, unsigned);
int __real_linkat (int, const char *, int, const char *, int);
int __real_unlink (const char *);
int __real_unlinkat (int, const char *, int);
int __real_ioctl (int, unsigned long, ...);

ssize_t __wrap_pwrite (int, const void *, size_t, off_t);
ssize_t __wrap_ring_pwrite (int, const void *, size_t, off_t);
ssize_t __wrap_write (int, const void *, size_t);
ssize_t __wrap_copy_file_range (int, off_t *, int, off_t *, size_t, unsigned);
int __wrap_fallocate (int, int, off_t, off_t);
int __wrap_ftruncate (int, off_t);
int __wrap_fdatasync (int);
int __wrap_fsync (int);
int __wrap_fchmod (int, mode_t);
int __wrap_fchown (int, uid_t, gid_t);
int __wrap_chmod (const char *, mode_t);
int __wrap_lchown (const char *, uid_t, gid_t);
int __wrap_open (const char *, int, ...);
int __wrap_openat (int, const char *, int, ...);
int __wrap_renameat (int, const char *, int, const char *);
int __wrap_renameat2 (int, const char *, int, const char *, unsigned);
int __wrap_linkat (int, const char *, int, const char *, int);
int __wrap_unlink (const char *);
int __wrap_unlinkat (int, const char *, int);
int __wrap_ioctl (int, unsigned long, ...);

void
killer_start (struct killer_report *where, uint64_t n, bool half)
{
  unsynced = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, g_free);
  ours = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
  unnamed = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
  replaced = false;
  deadly = n;
  in_half = half;
  *where = (struct killer_report) { .nr_calls = 0 };
  report = where;
}

void
killer_stop (void)
{
  pthread_mutex_lock (&lock);
  report = NULL;
  pthread_mutex_unlock (&lock);
}

/* ---- What is changed --------------------------------------------------- */

static char *
inode_of (const struct stat *st)
{
  return g_strdup_printf ("%lu:%lu", (unsigned long) st->st_dev,
                          (unsigned long) st->st_ino);
}

static char *
name_of (int fd)
{
  g_autofree char *self = g_strdup_printf ("/proc/self/fd/%d", fd);
  g_autofree char *path = g_file_read_link (self, NULL);

  return g_path_get_basename (path ? path : "?");
}

static void
break_rule (const char *what, const char *name)
{
  if (report->broken[0] == '\0')
    snprintf (report->broken, sizeof report->broken, "%s: %s (call %"
              G_GUINT64_FORMAT ")", name, what, report->nr_calls);
}

/* Before a file that was there is changed, what is new is on disk: a backup, say. */
static void
judge_change (const char *name)
{
  GHashTableIter iter;
  void *inode, *change;

  g_hash_table_iter_init (&iter, unsynced);
  while (g_hash_table_iter_next (&iter, &inode, &change))
    if (g_hash_table_contains (ours, inode))
      break_rule (change, name);
  if (g_hash_table_size (unnamed) > 0)
    break_rule ("is changed before the name of a new file is on disk", name);
}

/* WHAT of the file ST, called NAME, is not on disk from now on. */
static void
note_change (const struct stat *st, const char *what, const char *name)
{
  g_autofree char *inode = inode_of (st);

  if (!S_ISREG (st->st_mode))
    return;
  if (!g_hash_table_contains (ours, inode))
    judge_change (name);
  g_hash_table_replace (
    unsynced, g_steal_pointer (&inode),
    g_strdup_printf ("%s of %s is not on disk", what, name));
}

static void
note_sync (const struct stat *st)
{
  g_autofree char *inode = inode_of (st);

  if (S_ISDIR (st->st_mode)) {
    g_hash_table_remove_all (unnamed);
    replaced = false;
  }
  g_hash_table_remove (unsynced, inode);
}

static bool
is_descriptor (const char *path)
{
  return g_str_has_suffix (path, "DiskDescriptor.xml");
}

static void
judge_names (const char *path)
{
  GHashTableIter iter;
  void *change;

  g_hash_table_iter_init (&iter, unsynced);
  while (g_hash_table_iter_next (&iter, NULL, &change))
    break_rule (change, path);
}

/* PATH, whose file was there before, goes. */
static void
judge_removal (int directory_fd, const char *path)
{
  g_autofree char *inode = NULL;
  struct stat st;

  if (fstatat (directory_fd, path, &st, AT_SYMLINK_NOFOLLOW) == -1)
    return;
  inode = inode_of (&st);
  if (g_hash_table_remove (ours, inode))
    return;
  judge_names (path);
  if (replaced)
    break_rule ("goes before what was renamed is on disk", path);
}

static void
judge_replacement (int directory_fd, const char *from, const char *to)
{
  g_autofree char *inode = NULL;
  struct stat st;

  judge_names (to);
  if (fstatat (directory_fd, from, &st, 0) == -1)
    return;
  inode = inode_of (&st);
  g_hash_table_remove (ours, inode);
  /* The name of what it is made from is no more. */
  g_hash_table_remove (unnamed, inode);
  if (is_descriptor (to) && g_hash_table_size (unnamed) > 0)
    break_rule ("may name a file whose name is not on disk", to);
  replaced = true;
}

/* ---- Calls ------------------------------------------------------------- */

/* A call WHAT of NAME comes next, with the lock held.  Returns whether it is the last
 * one, of which half is still to be made.
 */
static bool
count_call (const char *what, const char *name, size_t length)
{
  snprintf (report->last, sizeof report->last, "%s %s", what, name);
  report->wrote = length > SECTOR;
  report->nr_calls++;
  if (report->nr_calls != deadly)
    return false;
  if (!in_half || !report->wrote)
    _exit (KILLER_STATUS);
  return true;
}

/* Is the file, and the process, one that is watched?  Then the lock is held. */
static bool
begin_call (int fd, struct stat *st)
{
  pthread_mutex_lock (&lock);
  if (report && fstat (fd, st) == 0
      && (S_ISREG (st->st_mode) || S_ISDIR (st->st_mode)))
    return true;
  pthread_mutex_unlock (&lock);
  return false;
}

static bool
begin_named_call (void)
{
  pthread_mutex_lock (&lock);
  if (report)
    return true;
  pthread_mutex_unlock (&lock);
  return false;
}

static void
end_call (void)
{
  pthread_mutex_unlock (&lock);
}

/* A change of what FD is: WHAT, of LENGTH bytes if it is a write.  Returns how many of
 * them are to be written before the end; 0: it goes on.
 */
static size_t
change (int fd, const char *what, size_t length)
{
  g_autofree char *name = NULL;
  struct stat st;
  bool is_last;

  if (!begin_call (fd, &st))
    return 0;
  name = name_of (fd);
  is_last = count_call (what, name, length);
  note_change (&st, what, name);
  /* The lock stays: nobody else comes after the end. */
  if (is_last)
    return length / 2;
  end_call ();
  return 0;
}

ssize_t
__wrap_pwrite (int fd, const void *buf, size_t length, off_t offset)
{
  const size_t last = change (fd, "write", length);

  if (last > 0) {
    __real_pwrite (fd, buf, last, offset);
    _exit (KILLER_STATUS);
  }
  return __real_pwrite (fd, buf, length, offset);
}

ssize_t
__wrap_ring_pwrite (int fd, const void *buf, size_t length, off_t offset)
{
  return __wrap_pwrite (fd, buf, length, offset);
}

ssize_t
__wrap_write (int fd, const void *buf, size_t length)
{
  const size_t last = change (fd, "write", length);

  if (last > 0) {
    __real_write (fd, buf, last);
    _exit (KILLER_STATUS);
  }
  return __real_write (fd, buf, length);
}

ssize_t
__wrap_copy_file_range (int from_fd, off_t *from, int fd, off_t *to,
                        size_t length, unsigned flags)
{
  change (fd, "copy", 0);
  return __real_copy_file_range (from_fd, from, fd, to, length, flags);
}

int
__wrap_ioctl (int fd, unsigned long request, ...)
{
  va_list args;
  void *argument;

  va_start (args, request);
  argument = va_arg (args, void *);
  va_end (args);
  if (request == FICLONERANGE)
    change (fd, "clone", 0);
  return __real_ioctl (fd, request, argument);
}

int
__wrap_fallocate (int fd, int mode, off_t offset, off_t length)
{
  change (fd, mode & FALLOC_FL_PUNCH_HOLE ? "punch" : "reservation", 0);
  return __real_fallocate (fd, mode, offset, length);
}

int
__wrap_ftruncate (int fd, off_t length)
{
  change (fd, "truncation", 0);
  return __real_ftruncate (fd, length);
}

int
__wrap_fchmod (int fd, mode_t mode)
{
  change (fd, "mode", 0);
  return __real_fchmod (fd, mode);
}

int
__wrap_fchown (int fd, uid_t uid, gid_t gid)
{
  change (fd, "owner", 0);
  return __real_fchown (fd, uid, gid);
}

/* The same by name. */
static void
change_named (const char *path, const char *what)
{
  struct stat st;

  if (!begin_named_call ())
    return;
  count_call (what, path, 0);
  if (lstat (path, &st) == 0) {
    g_autofree char *base = g_path_get_basename (path);

    note_change (&st, what, base);
  }
  end_call ();
}

int
__wrap_chmod (const char *path, mode_t mode)
{
  change_named (path, "mode");
  return __real_chmod (path, mode);
}

int
__wrap_lchown (const char *path, uid_t uid, gid_t gid)
{
  change_named (path, "owner");
  return __real_lchown (path, uid, gid);
}

static void
sync_file (int fd)
{
  g_autofree char *name = NULL;
  struct stat st;

  if (!begin_call (fd, &st))
    return;
  name = name_of (fd);
  count_call ("sync", name, 0);
  note_sync (&st);
  end_call ();
}

int
__wrap_fdatasync (int fd)
{
  sync_file (fd);
  return __real_fdatasync (fd);
}

int
__wrap_fsync (int fd)
{
  sync_file (fd);
  return __real_fsync (fd);
}

/* ---- Names ------------------------------------------------------------- */

/* A file without a name. */
static bool
is_temporary (int flags)
{
  return (flags & O_TMPFILE) == O_TMPFILE;
}

static bool
has_mode (int flags)
{
  return (flags & O_CREAT) || is_temporary (flags);
}

/* Before PATH is opened so that it is made: is it not there?  A lock file stays as it
 * is, and means nothing.
 */
static bool
begin_making (int directory_fd, const char *path, int flags)
{
  struct stat st;

  if (!has_mode (flags) || g_str_has_suffix (path, ".lck")
      || !begin_named_call ())
    return false;
  count_call ("open", path, 0);
  if (is_temporary (flags)
      || fstatat (directory_fd, path, &st, AT_SYMLINK_NOFOLLOW) == -1)
    return true;
  end_call ();
  return false;
}

static void
end_making (int fd, int flags)
{
  struct stat st;

  if (fd >= 0 && fstat (fd, &st) == 0) {
    g_autofree char *name = name_of (fd);

    g_hash_table_add (ours, inode_of (&st));
    note_change (&st, "the content", name);
    if (!is_temporary (flags))
      g_hash_table_add (unnamed, inode_of (&st));
  }
  end_call ();
}

int
__wrap_openat (int directory_fd, const char *path, int flags, ...)
{
  const bool makes = begin_making (directory_fd, path, flags);
  mode_t mode = 0;
  va_list args;
  int fd;

  if (has_mode (flags)) {
    va_start (args, flags);
    mode = va_arg (args, mode_t);
    va_end (args);
  }
  fd = __real_openat (directory_fd, path, flags, mode);
  if (makes)
    end_making (fd, flags);
  return fd;
}

int
__wrap_open (const char *path, int flags, ...)
{
  mode_t mode = 0;
  va_list args;

  if (has_mode (flags)) {
    va_start (args, flags);
    mode = va_arg (args, mode_t);
    va_end (args);
  }
  return __wrap_openat (AT_FDCWD, path, flags, mode);
}

int
__wrap_linkat (int from_fd, const char *from, int to_fd, const char *to,
               int flags)
{
  struct stat st;

  if (begin_named_call ()) {
    count_call ("link", to, 0);
    if (fstatat (from_fd, from, &st, 0) == 0)
      g_hash_table_add (unnamed, inode_of (&st));
    end_call ();
  }
  return __real_linkat (from_fd, from, to_fd, to, flags);
}

static void
rename_file (int from_fd, const char *from, const char *to)
{
  if (!begin_named_call ())
    return;
  count_call ("rename to", to, 0);
  judge_replacement (from_fd, from, to);
  end_call ();
}

int
__wrap_renameat (int from_fd, const char *from, int to_fd, const char *to)
{
  rename_file (from_fd, from, to);
  return __real_renameat (from_fd, from, to_fd, to);
}

int
__wrap_renameat2 (int from_fd, const char *from, int to_fd, const char *to,
                  unsigned flags)
{
  rename_file (from_fd, from, to);
  return __real_renameat2 (from_fd, from, to_fd, to, flags);
}

int
__wrap_unlinkat (int directory_fd, const char *path, int flags)
{
  if (begin_named_call ()) {
    count_call ("removal of", path, 0);
    judge_removal (directory_fd, path);
    end_call ();
  }
  return __real_unlinkat (directory_fd, path, flags);
}

int
__wrap_unlink (const char *path)
{
  return __wrap_unlinkat (AT_FDCWD, path, 0);
}
