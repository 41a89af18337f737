/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Disks that come through a pipe: see stream.h.
 *
 * Somebody may keep us waiting for ever.  So nothing is read before there is something,
 * and whoever wants it to end is asked meanwhile.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stream.h"

#define ASK_MS 200

bool
stream_is (const char *name)
{
  struct stat st;

  return strcmp (name, "-") == 0
         || (!strstr (name, "://") && stat (name, &st) == 0
             && S_ISFIFO (st.st_mode));
}

const char *
stream_title (const char *name)
{
  return strcmp (name, "-") == 0 ? "standard input" : name;
}

/* Of standard input, a duplicate: its flags are those of others, too. */
int
stream_open (const char *name, GError **error)
{
  const int fd = strcmp (name, "-") == 0
                   ? fcntl (STDIN_FILENO, F_DUPFD_CLOEXEC, 0)
                   : open (name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

  if (fd == -1)
    error_set_system (error, errno, "%s: cannot be read", stream_title (name));
  return fd;
}

/* Of a fifo that nobody has opened for writing yet, poll does not tell the end, but
 * read would.
 */
static int
wait_for_input (int fd, stream_wait_fn go_on, void *opaque)
{
  struct pollfd one = { .fd = fd, .events = POLLIN };

  for (;;) {
    const int r = poll (&one, 1, ASK_MS);

    if (r > 0)
      return 0;
    if (r == -1 && errno != EINTR)
      return -errno;
    if (!go_on (opaque))
      return -ECANCELED;
  }
}

ssize_t
stream_read (int fd, void *buf, size_t length, stream_wait_fn go_on,
             void *opaque)
{
  size_t done = 0;

  while (done < length) {
    const int r = wait_for_input (fd, go_on, opaque);
    const ssize_t n =
      r == 0 ? read (fd, (char *) buf + done, length - done) : r;

    if (n == 0)
      break;
    if (n > 0)
      done += (size_t) n;
    else if (r < 0)
      return r;
    else if (errno != EINTR && errno != EAGAIN)
      return -errno;
  }
  return (ssize_t) done;
}
