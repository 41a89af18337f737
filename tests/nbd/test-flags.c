/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that the server says what it can do and does what it says: the flags
 * and block sizes of an export, when it is read-only, that reading changes no
 * byte of the file, when the in-use mark is on disk, and that requests past
 * the end are turned away and leave the server in service.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk.h"
#include "harness.h"
#include "image.h"
#include "server.h"

/* Of a small read: not a multiple of anything. */
#define PIECE UINT64_C (4099)

static const struct image_spec specs[] = {
  { "v2-32k", MADE_BY_PLOOP_IMG, 2, 32 * KIB, 2 * MIB + 512, NULL },
  { "v2-1m", MADE_BY_PLOOP_IMG, 2, MIB, 16 * MIB, NULL },
  { "v1-1m", MADE_BY_PLOOP_IMG, 1, MIB, 16 * MIB - 512, NULL },
  { "v2-64m", MADE_BY_PLOOP_IMG, 2, 64 * MIB, 256 * MIB, NULL },
  { "v1-64m", MADE_BY_PLOOP_IMG, 1, 64 * MIB, 192 * MIB + 512, NULL },
  { "q-512", MADE_BY_QEMU, 2, 512, MIB, NULL },
  { "v1-63", FROM_CORPUS, 1, 63 * 512, 8 * MIB, "e-v1-63/i.hds" },
  /* Its file ends inside its last cluster. */
  { "cut", FROM_CORPUS, 2, 32 * KIB, 8 * MIB, "h-corrupt/tail-cut-1000.hds" },
};

/* A file as it was: all its bytes and what stat says of it. */
struct snapshot {
  char *content;
  size_t length;
  struct stat st;
};

static struct snapshot
snapshot_take (const char *path)
{
  struct snapshot s;
  size_t done = 0;
  ssize_t n;
  int fd = open (path, O_RDONLY | O_CLOEXEC);

  if (fd == -1 || fstat (fd, &s.st) == -1)
    fail ("%s: %m", path);
  s.length = (size_t) s.st.st_size;
  s.content = malloc (s.length + 1);
  if (s.content == NULL)
    abort ();
  while (done < s.length) {
    n = read (fd, s.content + done, s.length - done);
    if (n <= 0)
      fail ("%s: ends at %zu", path, done);
    done += (size_t) n;
  }
  close (fd);
  return s;
}

/* Also frees the snapshot. */
static void
snapshot_expect_unchanged (const char *path, struct snapshot *before,
                           const char *after_what)
{
  struct snapshot now = snapshot_take (path);

  if (now.length != before->length)
    fail ("%s changed the length of %s from %zu to %zu", after_what, path,
          before->length, now.length);
  if (memcmp (now.content, before->content, now.length) != 0)
    fail ("%s changed the content of %s", after_what, path);
  if (now.st.st_mtim.tv_sec != before->st.st_mtim.tv_sec ||
      now.st.st_mtim.tv_nsec != before->st.st_mtim.tv_nsec)
    fail ("%s changed the modification time of %s", after_what, path);
  if (now.st.st_ino != before->st.st_ino)
    fail ("%s replaced %s", after_what, path);
  free (now.content);
  free (before->content);
}

static void
expect_true (int answer, const char *what)
{
  if (answer == -1)
    fail_nbd (what);
  if (answer == 0)
    fail ("%s is false, must be true", what);
}

static void
expect_false (int answer, const char *what)
{
  if (answer == -1)
    fail_nbd (what);
  if (answer != 0)
    fail ("%s is true, must be false", what);
}

static void
check_block_sizes (struct nbd_handle *nbd, const struct image_spec *spec)
{
  int64_t minimum = nbd_get_block_size (nbd, LIBNBD_SIZE_MINIMUM);
  int64_t preferred = nbd_get_block_size (nbd, LIBNBD_SIZE_PREFERRED);
  int64_t maximum = nbd_get_block_size (nbd, LIBNBD_SIZE_MAXIMUM);
  int64_t cluster = (int64_t) spec->cluster_size;
  int64_t largest = (int64_t) (32 * MIB);

  say ("%s: block sizes %" PRIi64 " %" PRIi64 " %" PRIi64, spec->name,
       minimum, preferred, maximum);
  if (minimum != 1)
    fail ("%s: the minimum block size is %" PRIi64, spec->name, minimum);
  if (maximum != (int64_t) (64 * MIB))
    fail ("%s: the maximum block size is %" PRIi64, spec->name, maximum);
  if (preferred < 512 || preferred > largest ||
      (preferred & (preferred - 1)) != 0)
    fail ("%s: the preferred block size is %" PRIi64, spec->name, preferred);
  /* Small clusters are no reason to ask for requests below a page. */
  if ((cluster & (cluster - 1)) == 0 && cluster >= 4096 &&
      preferred != (cluster < largest ? cluster : largest))
    fail ("%s: the preferred block size is %" PRIi64
          ", but the cluster is of %" PRIi64,
          spec->name, preferred, cluster);
}

static void
test_advertised (const struct image_spec *spec)
{
  char *path = image_make (spec);
  struct server *server = server_start (path, 0);
  struct nbd_handle *nbd = server_connect (server);
  char *description;

  if (nbd_get_size (nbd) != (int64_t) spec->size)
    fail ("%s: the size is %" PRIi64, spec->name, nbd_get_size (nbd));
  check_block_sizes (nbd, spec);
  expect_false (nbd_is_read_only (nbd), "is_read_only");
  expect_true (nbd_can_flush (nbd), "can_flush");
  expect_true (nbd_can_fua (nbd), "can_fua");
  expect_true (nbd_can_multi_conn (nbd), "can_multi_conn");
  expect_true (nbd_can_zero (nbd), "can_zero");
  description = nbd_get_export_description (nbd);
  if (description == NULL || *description == '\0')
    fail ("%s: no export description", spec->name);
  say ("%s: %s; rotational %d, fast zero %d, trim %d, cache %d", spec->name,
       description, nbd_is_rotational (nbd), nbd_can_fast_zero (nbd),
       nbd_can_trim (nbd), nbd_can_cache (nbd));
  free (description);
  server_disconnect (nbd);
  server_stop (server);
  free (path);
}

/* Read everything; with STRICT off, also try what must be refused. */
static void
read_all_and_try_to_write (struct nbd_handle *nbd, const struct disk *disk,
                           const char *what)
{
  char byte = 1;

  disk_compare_nbd (disk, nbd, disk->size, 0);
  expect_true (nbd_is_read_only (nbd), what);
  if (nbd_set_strict_mode (nbd, 0) == -1)
    fail_nbd ("nbd_set_strict_mode");
  if (nbd_pwrite (nbd, &byte, 1, 0, 0) == 0)
    fail ("%s: a write was answered without an error", what);
  if (nbd_get_errno () != EPERM && nbd_get_errno () != EROFS)
    fail ("%s: a write was answered with %s", what,
          strerror (nbd_get_errno ()));
  if (nbd_zero (nbd, 1, 0, 0) == 0)
    fail ("%s: a zero request was answered without an error", what);
  if (nbd_trim (nbd, 512, 0, 0) == 0)
    fail ("%s: a trim was answered without an error", what);
  disk_compare_nbd (disk, nbd, disk->size, 0);
}

static void
test_read_only_option (const char *path, const struct disk *disk)
{
  struct snapshot before = snapshot_take (path);
  struct server *server = server_start (path, SERVER_READ_ONLY);
  struct nbd_handle *nbd = server_connect (server);

  read_all_and_try_to_write (nbd, disk, "nbdkit -r");
  server_disconnect (nbd);
  server_stop (server);
  snapshot_expect_unchanged (path, &before, "nbdkit -r");
}

/* Root may write to every file, so the server must be somebody else. */
static void
test_file_without_permission (const char *path, const struct disk *disk)
{
  struct snapshot before;
  struct server *server;
  struct nbd_handle *nbd;

  if (run ("command -v setpriv") != 0) {
    say ("no setpriv: a file without permission is not tried");
    return;
  }
  if (chmod (path, 0444) == -1)
    fail ("chmod: %m");
  before = snapshot_take (path);
  server = server_start (path, SERVER_UNPRIVILEGED);
  nbd = server_connect (server);
  read_all_and_try_to_write (nbd, disk, "a file without write permission");
  server_disconnect (nbd);
  if (run ("grep -i 'read.only' %s", server_log (server)) != 0)
    fail ("the log does not say that the export is read-only");
  server_stop (server);
  snapshot_expect_unchanged (path, &before, "serving without permission");
  if (chmod (path, 0644) == -1)
    fail ("chmod: %m");
}

/* In a mount namespace of its own, which all servers started later share. */
static void
test_read_only_file_system (const char *path, const struct disk *disk)
{
  char *mounted = test_path ("read-only");
  char *file = format_string ("%s/image", mounted);
  struct snapshot before;
  struct server *server;
  struct nbd_handle *nbd;

  if (mkdir (mounted, 0755) == -1)
    fail ("mkdir: %m");
  run_ok ("cp --sparse=always %s %s", path, file);
  if (geteuid () != 0 || unshare (CLONE_NEWNS) == -1 ||
      mount (NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == -1 ||
      mount (mounted, mounted, NULL, MS_BIND, NULL) == -1 ||
      mount (NULL, mounted, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY,
             NULL) == -1) {
    say ("a read-only file system is not tried: %m");
    free (file);
    free (mounted);
    return;
  }
  before = snapshot_take (file);
  server = server_start (file, 0);
  nbd = server_connect (server);
  read_all_and_try_to_write (nbd, disk, "a read-only file system");
  server_disconnect (nbd);
  server_stop (server);
  snapshot_expect_unchanged (file, &before, "a read-only file system");
  if (umount (mounted) == -1)
    fail ("umount: %m");
  free (file);
  free (mounted);
}

static bool
is_zero (const struct disk *disk, uint64_t length, uint64_t offset)
{
  while (length > 0 && disk->answered[offset + length - 1] == 0)
    length--;
  return length == 0;
}

/* Read every piece that has data after one that has data to its very end, often
 * enough that each of the server's threads comes across both: what a read does
 * not fill would show the other piece's bytes.
 */
static void
read_with_used_buffers (struct nbd_handle *nbd, const struct disk *disk)
{
  unsigned rounds = scaled (16);
  uint64_t offset, full = 0;

  while (full + PIECE < disk->size && disk->answered[full + PIECE - 1] == 0)
    full += PIECE;
  if (full + PIECE >= disk->size)
    return;                     /* no data at all */
  for (unsigned i = 0; i < rounds; i++)
    for (offset = 0; offset + PIECE <= disk->size; offset += PIECE)
      if (!is_zero (disk, PIECE, offset)) {
        disk_compare_nbd (disk, nbd, PIECE, full);
        disk_compare_nbd (disk, nbd, PIECE, offset);
      }
}

/* Open for write, but only read, flushed and written with nothing. */
static void
test_reading_changes_nothing (const char *path, const struct disk *disk)
{
  struct snapshot before = snapshot_take (path);
  struct server *server = server_start (path, 0);
  struct nbd_handle *nbd = server_connect (server);

  disk_compare_nbd (disk, nbd, disk->size, 0);
  read_with_used_buffers (nbd, disk);
  if (nbd_flush (nbd, 0) == -1)
    fail_nbd ("nbd_flush");
  if (image_in_use (path) != IN_USE_CLOSED)
    fail ("the image is marked in use before anything was written");
  server_disconnect (nbd);
  server_stop (server);
  snapshot_expect_unchanged (path, &before, "reading");
}

enum first_change { BY_WRITE, BY_OVERWRITE, BY_FUA, BY_ZERO };

static const char *const change_names[] = {
  "a write", "an overwrite", "a write with FUA", "a zero request",
};

/* Each of the four must mark the image before it is answered. */
static void
test_in_use (const struct image_spec *spec, struct disk *disk,
             const char *path, enum first_change how)
{
  struct server *server = server_start (path, 0);
  struct nbd_handle *nbd = server_connect (server);
  uint64_t offset = how == BY_WRITE || how == BY_FUA
                      ? spec->size - 512 : 0;
  uint8_t buf[512];
  struct image_state state;
  int r;

  memset (buf, 'a' + (int) how, sizeof buf);
  disk_submit (disk, how == BY_ZERO ? NULL : buf, sizeof buf, offset);
  if (how == BY_ZERO)
    r = nbd_zero (nbd, sizeof buf, offset, LIBNBD_CMD_FLAG_NO_HOLE);
  else
    r = nbd_pwrite (nbd, buf, sizeof buf, offset,
                    how == BY_FUA ? LIBNBD_CMD_FLAG_FUA : 0);
  if (r == -1)
    fail_nbd (change_names[how]);
  disk_answer (disk, sizeof buf, offset);
  if (image_in_use (path) != IN_USE_OPEN)
    fail ("%s was answered and in use is 0x%x", change_names[how],
          image_in_use (path));
  server_disconnect (nbd);
  server_stop (server);
  image_expect_clean (path, 0, &state);
}

static void
expect_refused (int result, int errno1, int errno2, const char *what,
                uint64_t offset)
{
  if (result == 0)
    fail ("%s (%" PRIu64 ") was answered without an error", what, offset);
  if (nbd_get_errno () != errno1 && nbd_get_errno () != errno2)
    fail ("%s (%" PRIu64 ") was answered with %s", what, offset,
          strerror (nbd_get_errno ()));
}

static void
test_bounds (struct disk *disk, const char *path)
{
  struct snapshot before = snapshot_take (path);
  struct server *server = server_start (path, 0);
  struct nbd_handle *nbd = server_connect (server);
  const uint64_t size = disk->size;
  const uint64_t offsets[] = {
    size, size - 1, size + 1, size + 512, size + disk->cluster_size,
    UINT64_C (1) << 32, UINT64_C (1) << 41, INT64_MAX - 511, UINT64_MAX - 511,
    UINT64_MAX - 1,
  };
  uint8_t buf[512] = { 1 };
  size_t i;

  if (nbd_set_strict_mode (nbd, 0) == -1)
    fail_nbd ("nbd_set_strict_mode");
  for (i = 0; i < ARRAY_SIZE (offsets); i++) {
    if (offsets[i] < size - 511)
      continue;                 /* this disk is larger */
    expect_refused (nbd_pread (nbd, buf, sizeof buf, offsets[i], 0), EINVAL,
                    EINVAL, "a read past the end", offsets[i]);
    expect_refused (nbd_pwrite (nbd, buf, sizeof buf, offsets[i], 0), EINVAL,
                    ENOSPC, "a write past the end", offsets[i]);
    expect_refused (nbd_zero (nbd, sizeof buf, offsets[i], 0), EINVAL,
                    ENOSPC, "a zero request past the end", offsets[i]);
  }
  expect_refused (nbd_zero (nbd, size + 1, 0, 0), EINVAL, ENOSPC,
                  "a zero request longer than the disk", 0);
  disk_compare_nbd (disk, nbd, size, 0);
  server_disconnect (nbd);
  server_stop (server);
  snapshot_expect_unchanged (path, &before, "a request past the end");
}

static void
test_behaviour (const struct image_spec *spec)
{
  char *path = image_make (spec);
  struct disk *disk = disk_new (spec->size, spec->cluster_size);
  enum first_change how;

  if (spec->maker == FROM_CORPUS)
    disk_load (disk, path);
  test_reading_changes_nothing (path, disk);
  test_bounds (disk, path);
  for (how = BY_WRITE; how <= BY_ZERO; how++)
    test_in_use (spec, disk, path, how);
  test_reading_changes_nothing (path, disk);
  test_read_only_option (path, disk);
  test_file_without_permission (path, disk);
  disk_compare_qemu (disk, path);
  say ("%s: behaves", spec->name);
  disk_free (disk);
  free (path);
}

/* The last, for it leaves the test in another mount namespace. */
static void
test_mounts (const struct image_spec *spec)
{
  char *path = image_make (spec);
  struct disk *disk = disk_new (spec->size, spec->cluster_size);

  test_read_only_file_system (path, disk);
  disk_free (disk);
  free (path);
}

int
main (void)
{
  size_t i;

  test_begin ("test-flags");
  test_requires ("qemu-img");
  for (i = 0; i < ARRAY_SIZE (specs); i++)
    test_advertised (&specs[i]);
  for (i = 0; i < ARRAY_SIZE (specs); i++)
    if (specs[i].size <= 64 * MIB && chosen (i, ARRAY_SIZE (specs)))
      test_behaviour (&specs[i]);
  test_mounts (&specs[0]);
  return test_end ();
}
