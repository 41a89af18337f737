/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Both kinds of locks: see lock.h.
 *
 * The protocol of the byte-range locks is qemu's: take a shared lock on the
 * byte of each permission that is used (100+n) and of each that is not shared
 * (200+n); then see whether anybody else holds the opposite byte.  Two that
 * start at once may both give way, never both go on.  libploop 9 takes shared
 * locks on 200 to 204 and looks whether anybody else has one there: it meets
 * ours.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "descriptor.h"
#include "lock.h"
#include "mounted.h"

enum permission {
  CONSISTENT_READ = 0,
  WRITE = 1,
  WRITE_UNCHANGED = 2,
  RESIZE = 3,
};

#define BIT(permission) (1u << (permission))
#define NR_PERMISSIONS 4
#define USED_BASE 100
#define UNSHARED_BASE 200

/* What qemu's block layer asks for a format's file. */
static const unsigned writer_uses =
  BIT (CONSISTENT_READ) | BIT (WRITE) | BIT (RESIZE);
static const unsigned reader_uses = BIT (CONSISTENT_READ);
static const unsigned nobody_else_may = BIT (WRITE) | BIT (RESIZE);

/* Apply COMMAND to one byte.  Returns 0 or a negative errno. */
static int
range_lock (int fd, int command, short type, off_t byte,
            struct flock *lock)
{
  *lock = (struct flock) {
    .l_type = type,
    .l_whence = SEEK_SET,
    .l_start = byte,
    .l_len = 1,
  };
  while (fcntl (fd, command, lock) == -1)
    if (errno != EINTR)
      return -errno;
  return 0;
}

/* Take shared locks on the bytes of SET.  Returns 0 or a negative errno. */
static int
take (int fd, off_t base, unsigned set)
{
  struct flock lock;

  for (int n = 0; n < NR_PERMISSIONS; n++)
    if (set & BIT (n)) {
      int r = range_lock (fd, F_OFD_SETLK, F_RDLCK, base + n, &lock);

      if (r < 0)
        return r;
    }
  return 0;
}

/* Does anybody else hold a byte of SET?  -EAGAIN when so, with its process in
 * *PID where the kernel tells (0: it does not).
 */
static int
look (int fd, off_t base, unsigned set, pid_t *pid)
{
  struct flock lock;

  for (int n = 0; n < NR_PERMISSIONS; n++)
    if (set & BIT (n)) {
      int r = range_lock (fd, F_OFD_GETLK, F_WRLCK, base + n, &lock);

      if (r < 0)
        return r;
      if (lock.l_type != F_UNLCK) {
        *pid = lock.l_pid > 0 ? lock.l_pid : 0;
        return -EAGAIN;
      }
    }
  return 0;
}

static void
set_in_use_error (GError **error, const char *path, bool writer, pid_t pid)
{
  g_autofree char *by =
    pid ? g_strdup_printf ("process %ld", (long) pid)
        : g_strdup ("another program (qemu, libploop or another server)");

  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
               "%s: in use by %s: stop it first%s", path, by,
               writer ? ", or open the image read-only if it is only read"
                      : "; it writes the image");
}

/* No lock, but the same to whoever asks: a kernel that has the image as a part of a
 * device (mounted.h).
 */
static bool
refuse_mounted (int fd, const char *path, bool writer, GError **error)
{
  g_autofree char *device = NULL;
  bool writes;

  if (!mounted_find (MOUNTED_SYSFS, fd, &device, &writes)
      || (!writer && !writes))
    return false;
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
               "%s: in use by this kernel's ploop driver as /dev/%s: 'ploop umount -d "
               "/dev/%s' first", path, device, device);
  return true;
}

bool
lock_image (int fd, const char *path, bool writer, GError **error)
{
  const unsigned uses = writer ? writer_uses : reader_uses;
  pid_t pid = 0;
  int r;

  if ((r = take (fd, USED_BASE, uses)) == 0
      && (r = take (fd, UNSHARED_BASE, nobody_else_may)) == 0
      && (r = look (fd, UNSHARED_BASE, uses, &pid)) == 0)
    r = look (fd, USED_BASE, nobody_else_may, &pid);

  if (r == -EAGAIN || r == -EACCES)
    set_in_use_error (error, path, writer, pid);
  else if (r < 0)
    error_set_system (error, r, "%s: cannot be locked", path);
  return r == 0 && !refuse_mounted (fd, path, writer, error);
}

enum ploop_lock_state
lock_look (int fd)
{
  g_autofree char *device = NULL;
  bool writes;
  pid_t pid;

  if (mounted_find (MOUNTED_SYSFS, fd, &device, &writes))
    return writes ? PLOOP_LOCKED_FOR_WRITING : PLOOP_LOCKED_FOR_READING;
  if (look (fd, USED_BASE, nobody_else_may, &pid) == -EAGAIN
      || look (fd, UNSHARED_BASE, BIT (CONSISTENT_READ), &pid) == -EAGAIN)
    return PLOOP_LOCKED_FOR_WRITING;
  if (look (fd, UNSHARED_BASE, nobody_else_may, &pid) == -EAGAIN)
    return PLOOP_LOCKED_FOR_READING;
  return PLOOP_UNLOCKED;
}

/* ploop_get_info looks whether the lock is free by taking it for a moment; that
 * must not turn a server away.
 */
#define LOOK_TRIES 10
#define LOOK_USEC 20000

/* Open ploop's lock file; a writer creates it.  Whatever else lies under its
 * name (a link, a fifo) is not opened.
 */
static int
open_lock_file (const char *name, enum descriptor_lock lock)
{
  const int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW;
  int fd = lock == DESCRIPTOR_LOCK_READER
             ? -1 : open (name, O_RDWR | O_CREAT | flags, 0600);
  struct stat st;

  if (fd == -1 && lock != DESCRIPTOR_LOCK_WRITER)
    fd = open (name, O_RDONLY | flags);
  if (fd >= 0 && (fstat (fd, &st) == -1 || !S_ISREG (st.st_mode))) {
    close (fd);
    errno = EINVAL;
    return -1;
  }
  return fd;
}

/* Returns 0 or a negative errno. */
static int
try_flock (int fd, int operation)
{
  for (int tries = 0; flock (fd, operation | LOCK_NB) == -1;) {
    if (errno == EINTR)
      continue;
    if (errno != EWOULDBLOCK || tries++ == LOOK_TRIES)
      return -errno;
    g_usleep (LOOK_USEC);
  }
  return 0;
}

bool
lock_descriptor_file (const char *descriptor, const char *path,
                      enum descriptor_lock lock, int *fd, GError **error)
{
  g_autofree char *lock_file = g_strconcat (descriptor, ".lck", NULL);
  int r;

  *fd = open_lock_file (lock_file, lock);
  if (*fd == -1) {
    /* One that may not open ploop's lock can still be kept out by the other
     * kind.
     */
    if (lock != DESCRIPTOR_LOCK_WRITER)
      return true;
    error_set_system (error, errno, "%s: cannot be opened to keep ploop out",
                      lock_file);
    return false;
  }
  r = try_flock (*fd, lock == DESCRIPTOR_LOCK_WRITER ? LOCK_EX : LOCK_SH);
  if (r == 0)
    return true;
  if (r == -EWOULDBLOCK)
    g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_IN_USE,
                 "%s: in use by ploop or another server, which holds %s: stop it "
                 "first; a server has its snapshots as exports", path,
                 lock_file);
  else
    error_set_system (error, r, "%s: cannot be locked", lock_file);
  close (*fd);
  *fd = -1;
  return false;
}

char *
lock_descriptor_name (const char *path)
{
  g_autofree char *directory = g_path_get_dirname (path);

  return g_build_filename (directory, DESCRIPTOR_FILE_NAME, NULL);
}

bool
lock_descriptor (const char *path, enum descriptor_lock lock, int *fd,
                 GError **error)
{
  g_autofree char *descriptor = lock_descriptor_name (path);

  *fd = -1;
  return access (descriptor, F_OK) == -1
         || lock_descriptor_file (descriptor, path, lock, fd, error);
}
