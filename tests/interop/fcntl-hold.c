/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Locks a file as libploop 9 does: a POSIX read lock (not an OFD one) on bytes
 * 200 to 204, without waiting, then a look whether anybody else has one there.
 * With write, a write lock instead: whoever takes it wants to be alone.
 *
 *   fcntl-hold try|hold read|write FILE
 *
 * Prints "locked" and, with hold, holds the lock until it is killed; or prints
 * "refused" and exits with 1 when somebody else is in the way.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_BYTE 200
#define NR_BYTES 5

int
main (int argc, char **argv)
{
  struct flock lock = {
    .l_whence = SEEK_SET, .l_start = FIRST_BYTE, .l_len = NR_BYTES,
  };
  int fd;

  if (argc != 4) {
    fprintf (stderr, "usage: fcntl-hold try|hold read|write FILE\n");
    return 2;
  }
  lock.l_type = strcmp (argv[2], "write") == 0 ? F_WRLCK : F_RDLCK;
  fd = open (argv[3], O_RDWR | O_CLOEXEC);
  if (fd == -1) {
    perror (argv[3]);
    return 2;
  }
  if (fcntl (fd, F_SETLK, &lock) == -1) {
    if (errno != EACCES && errno != EAGAIN) {
      perror ("fcntl");
      return 2;
    }
    puts ("refused");
    return EXIT_FAILURE;
  }
  lock.l_type = F_WRLCK;
  if (fcntl (fd, F_GETLK, &lock) == -1 || lock.l_type != F_UNLCK) {
    puts ("refused");
    return EXIT_FAILURE;
  }
  puts ("locked");
  fflush (stdout);
  while (strcmp (argv[1], "hold") == 0)
    pause ();
  return EXIT_SUCCESS;
}
