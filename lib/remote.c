/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A base image on an NBD server: see remote.h.
 *
 * There is a pool of connections.  Each carries one request at a time, so the
 * thread that asks is the one that waits for the answer, and a connection that
 * goes wrong is nobody else's.  libnbd's asynchronous calls are used all the
 * same: they let a thread wait for the answer, for remote_stop, and for a
 * deadline at once.
 *
 * The hard part is to tell three kinds of failure apart.
 *
 *   - The connection is lost: it broke, cannot be made, or is silent for too
 *     long.  Nothing is known about the data, so the request is made again over
 *     another one, as long as its time lasts.  Inside this file that is
 *     -ENOTCONN; no caller sees it.
 *   - The server has answered that it cannot.  It would say so again: -EIO.
 *   - The server is there, but its export is not what was opened.  What could
 *     be read there is some other disk's: -EIO, without asking for any of it,
 *     until one that fits is there again.  Inside this file that is -ESTALE.
 *
 * Whether the remote is lost is also kept for all reads together.  It is what
 * the user is told, and it lets reads that only wait for a connection give up
 * like the ones that hold it.
 *
 * A connection that cannot be made while there are others is no loss.  Servers
 * take so many and no more, and some let the next one wait: the reads then
 * share those that there are.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <libnbd.h>

#include "remote.h"

#define SECONDS(n) ((gint64) (n) * G_USEC_PER_SEC)

#define DEFAULT_REPLY_SECONDS 30u
#define DEFAULT_RETRY_SECONDS 30u

/* Between two attempts; doubled from the one to the other. */
#define FIRST_PAUSE (SECONDS (1) / 10)
#define LONGEST_PAUSE SECONDS (2)

/* Who waits asks so often whether to go on: ms. */
#define ASK_AFTER 1000

/* What an attempt gets even if the time to try is over. */
#define SHORTEST_ATTEMPT SECONDS (1)

/* How long a connection may take that is only to be one more, and how long the
 * next is not tried where one was not to be had.
 */
#define EXTRA_TIME SECONDS (5)
#define GROW_INTERVAL SECONDS (60)

/* A connection that comes and goes is worth a line that often. */
#define WARNING_INTERVAL SECONDS (10)

/* One request's worth.  All servers take 32 MiB; but an answer has to come in
 * time over a slow network too.
 */
#define MAX_READ (UINT64_C (4) << 20)

/* Linux and qemu ask for as much as a 32 bit length allows; this is a multiple
 * of every block size (64 KiB at most).
 */
#define MAX_STATUS (UINT64_C (2) << 30)

/* What to take for the smallest block of a server that names none (proto.md,
 * "Block size constraints").
 */
#define USUAL_BLOCK_SIZE 512u

struct connection {
  struct connection *next;      /* in the list of the idle */
  struct nbd_handle *nbd;
  uint32_t block_size;          /* requests are whole ones */
  uint32_t max_read;            /* bytes in one request */
};

/* What the server has said of a range: where there may be data in it. */
struct range {
  uint64_t start, stop;
};

struct extents {
  uint64_t start, stop;         /* that this is about */
  GArray *data;                 /* of struct range, ascending */
  guint next;                   /* the first that may end after start */
  bool unknown;                 /* the server does not say, or has failed to */
};

/* What the user is told once for as long as the remote is lost, and not again
 * soon after that.
 */
struct news {
  bool told;
  gint64 told_at;               /* 0: never */
};

struct remote {
  char *uri;
  const struct log *log;
  gint64 reply_time, retry_time; /* microseconds */
  uint64_t size;
  int stop_fd;                  /* readable when stopped */
  bool (*give_up) (void *opaque);
  void *give_up_opaque;
  struct extents extents;       /* remote_next_data's */

  pthread_mutex_t lock;         /* for all below */
  pthread_cond_t changed;       /* signalled when a connection can be had */
  struct connection *idle;
  unsigned nr_made;             /* idle or in use */
  unsigned nr_making;           /* being made */
  unsigned max_connections;
  gint64 grow_at;               /* not before this, if there is any */
  bool stopped;
  bool lost;                    /* the last attempt failed, and none since went
                                   well */
  gint64 lost_at;
  struct news loss, change;     /* of the server; of its export */
};

/* One request, from the first attempt to the last. */
struct attempt {
  struct remote *remote;
  gint64 failed_at;             /* when the first failed; 0: none has */
  gint64 deadline;              /* of this one */
  gint64 pause;                 /* before the next */
  char *why;                    /* why the last failed (g_free) */
};

static const struct log no_log;

static void
say_why (struct attempt *attempt, const char *why)
{
  g_free (attempt->why);
  attempt->why = g_strdup (why);
}

/* The connection is lost: say why. */
static int
lost (struct attempt *attempt, const char *why)
{
  say_why (attempt, why ? why : "the connection is closed");
  return -ENOTCONN;
}

/* ---- Waiting for the server -------------------------------------------- */

static int
milliseconds_until (gint64 deadline)
{
  const gint64 left = deadline - g_get_monotonic_time ();

  return left <= 0 ? 0 : (int) MIN ((left + 999) / 1000, G_MAXINT);
}

static bool
gives_up (const struct remote *remote)
{
  return remote->give_up && remote->give_up (remote->give_up_opaque);
}

/* Let libnbd do what its socket is ready for.  An error of the socket is for
 * whatever libnbd wants to do next to find.
 */
static int
notify (struct nbd_handle *nbd, unsigned direction, short revents)
{
  if ((direction & LIBNBD_AIO_DIRECTION_READ) && (revents & ~POLLOUT))
    return nbd_aio_notify_read (nbd);
  if (direction & LIBNBD_AIO_DIRECTION_WRITE)
    return nbd_aio_notify_write (nbd);
  return 0;
}

/* Wait for the server, once.  Returns 0 when something may have changed.  The
 * time of one that sends all the time ends too.
 */
static int
advance (struct nbd_handle *nbd, struct attempt *attempt)
{
  const unsigned direction = nbd_aio_get_direction (nbd);
  struct pollfd fds[] = {
    { .fd = nbd_aio_get_fd (nbd) },
    { .fd = attempt->remote->stop_fd, .events = POLLIN },
  };
  int r;

  if (g_get_monotonic_time () >= attempt->deadline)
    return lost (attempt, "the server does not answer in time");
  if (direction & LIBNBD_AIO_DIRECTION_READ)
    fds[0].events |= POLLIN;
  if (direction & LIBNBD_AIO_DIRECTION_WRITE)
    fds[0].events |= POLLOUT;
  r = poll (fds, G_N_ELEMENTS (fds),
            MIN (milliseconds_until (attempt->deadline), ASK_AFTER));
  if (r == -1)
    return errno == EINTR ? 0 : lost (attempt, g_strerror (errno));
  if (fds[1].revents || (r == 0 && gives_up (attempt->remote)))
    return -ESHUTDOWN;
  if (r > 0 && notify (nbd, direction, fds[0].revents) == -1)
    return lost (attempt, nbd_get_error ());
  return 0;
}

/* A request of libnbd's has failed: is that the server's answer? */
static int
judge_failure (struct nbd_handle *nbd, struct attempt *attempt)
{
  const int errnum = nbd_get_errno ();

  say_why (attempt, nbd_get_error ());
  /* A server that shuts down says so to whoever asks it for anything. */
  if (!nbd_aio_is_ready (nbd) || errnum == ESHUTDOWN)
    return -ENOTCONN;
  return -EIO;
}

/* Wait for the answer to the request COOKIE; -1 stands for one that libnbd did
 * not take.
 */
static int
await_answer (struct nbd_handle *nbd, int64_t cookie, struct attempt *attempt)
{
  for (;;) {
    const int done =
      cookie == -1 ? -1 : nbd_aio_command_completed (nbd, (uint64_t) cookie);
    int r;

    if (done == 1)
      return 0;
    if (done == -1)
      return judge_failure (nbd, attempt);
    r = advance (nbd, attempt);
    if (r < 0)
      return r;
  }
}

/* ---- One connection ---------------------------------------------------- */

/* Does not wait for the server, which learns of it at once or from the socket's
 * end.
 */
static void
close_connection (struct connection *connection)
{
  if (!connection)
    return;
  if (connection->nbd && nbd_aio_is_ready (connection->nbd))
    nbd_aio_disconnect (connection->nbd, 0);
  nbd_close (connection->nbd);
  g_free (connection);
}

/* A connection that is idle for long may be forgotten by something between the
 * server and us, which does not tell.  Only for TCP, and only of use: where it
 * fails, the first read waits for its answer in vain, once.
 */
static void
keep_alive (struct nbd_handle *nbd)
{
  const int fd = nbd_aio_get_fd (nbd);
  const int on = 1, idle_seconds = 30, interval_seconds = 10;

  setsockopt (fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_seconds,
              sizeof idle_seconds);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_seconds,
              sizeof interval_seconds);
}

/* Connect and agree with the server, until it is ready for requests. */
static int
negotiate (struct nbd_handle *nbd, struct attempt *attempt)
{
  if (nbd_set_uri_allow_local_file (nbd, true) == -1
      || nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1
      || nbd_aio_connect_uri (nbd, attempt->remote->uri) == -1)
    return lost (attempt, nbd_get_error ());
  while (nbd_aio_is_connecting (nbd)) {
    const int r = advance (nbd, attempt);

    if (r < 0)
      return r;
  }
  if (!nbd_aio_is_ready (nbd))
    return lost (attempt, nbd_get_error ());
  keep_alive (nbd);
  return 0;
}

/* What requests have to look like for an export of SIZE bytes. */
static void
learn_limits (struct connection *connection, uint64_t size)
{
  const int64_t minimum =
    nbd_get_block_size (connection->nbd, LIBNBD_SIZE_MINIMUM);
  const int64_t maximum =
    nbd_get_block_size (connection->nbd, LIBNBD_SIZE_MAXIMUM);
  uint64_t block_size, max_read = MAX_READ;

  if (minimum > 0)
    block_size = (uint64_t) minimum;
  else
    /* The end of a size that is odd must have been meant to be read. */
    block_size = size % USUAL_BLOCK_SIZE == 0 ? USUAL_BLOCK_SIZE : 1;
  if (maximum > 0)
    max_read = MIN (max_read, (uint64_t) maximum);
  connection->block_size = (uint32_t) block_size;
  connection->max_read =
    (uint32_t) MAX (max_read - max_read % block_size, block_size);
}

/* Is the export one that can be read, whole?  If so, *SIZE is its size. */
static int
examine_export (struct connection *connection, struct attempt *attempt,
                uint64_t *size)
{
  const int64_t told = nbd_get_size (connection->nbd);
  g_autofree char *why = NULL;

  if (told < 0)
    return lost (attempt, nbd_get_error ());
  *size = (uint64_t) told;
  learn_limits (connection, *size);
  if (*size == 0)
    why = g_strdup ("the export is empty");
  else if (*size % connection->block_size != 0)
    why = g_strdup_printf ("the export has %" PRIu64 " bytes, which is no "
                           "multiple of the server's smallest block (%" PRIu32
                           "), so its end cannot be read", *size,
                           connection->block_size);
  if (!why)
    return 0;
  say_why (attempt, why);
  return -ESTALE;
}

/* Make a connection to an export of *SIZE bytes; 0: of any, and it is set.
 * -ESTALE: there is a server, but not with this export.
 */
static int
make_connection (struct attempt *attempt, uint64_t *size,
                 struct connection **made)
{
  struct connection *connection = g_new0 (struct connection, 1);
  uint64_t size_now = 0;
  int r;

  connection->nbd = nbd_create ();
  if (!connection->nbd)
    r = lost (attempt, nbd_get_error ());
  else
    r = negotiate (connection->nbd, attempt);
  if (r == 0)
    r = examine_export (connection, attempt, &size_now);
  if (r == 0 && *size != 0 && size_now != *size) {
    g_free (attempt->why);
    attempt->why =
      g_strdup_printf ("the export was %" PRIu64 " bytes large, and is %"
                       PRIu64 " now", *size, size_now);
    r = -ESTALE;
  }
  if (r < 0) {
    close_connection (connection);
    return r;
  }
  *size = size_now;
  *made = connection;
  return 0;
}

/* ---- Telling the user -------------------------------------------------- */

/* With the lock held: is this to be told? */
static bool
is_to_be_told (struct news *news)
{
  const gint64 now = g_get_monotonic_time ();

  if (news->told
      || (news->told_at != 0 && now - news->told_at < WARNING_INTERVAL))
    return false;
  news->told = true;
  news->told_at = now;
  return true;
}

/* An attempt has failed with R. */
static void
note_loss (struct attempt *attempt, int r)
{
  struct remote *remote = attempt->remote;
  bool is_news;

  pthread_mutex_lock (&remote->lock);
  if (!remote->lost) {
    remote->lost = true;
    remote->lost_at = g_get_monotonic_time ();
    remote->loss.told = remote->change.told = false;
  }
  is_news = is_to_be_told (r == -ESTALE ? &remote->change : &remote->loss);
  /* For those that wait without an end. */
  pthread_cond_broadcast (&remote->changed);
  pthread_mutex_unlock (&remote->lock);
  if (!is_news)
    return;
  if (r == -ESTALE)
    log_warning (remote->log, "%s: this is not what was opened: %s: reads fail "
                 "until that is there again", remote->uri, attempt->why);
  else
    log_warning (remote->log, "%s: connection lost: %s: each read is tried "
                 "again for %" G_GINT64_FORMAT " seconds, and fails then",
                 remote->uri, attempt->why,
                 remote->retry_time / G_USEC_PER_SEC);
}

/* The server has answered. */
static void
note_answer (struct remote *remote)
{
  bool is_news;
  gint64 seconds;

  pthread_mutex_lock (&remote->lock);
  is_news = remote->lost && (remote->loss.told || remote->change.told);
  seconds = (g_get_monotonic_time () - remote->lost_at) / G_USEC_PER_SEC;
  remote->lost = false;
  pthread_mutex_unlock (&remote->lock);
  if (is_news)
    log_warning (remote->log, "%s: answers again, after %" G_GINT64_FORMAT
                 " seconds", remote->uri, seconds);
}

/* ---- The pool ---------------------------------------------------------- */

/* May a thread that waits for a connection go on, with the lock held? */
static bool
has_connection (const struct remote *remote)
{
  if (remote->idle)
    return true;
  if (remote->nr_made + remote->nr_making >= remote->max_connections)
    return false;
  /* As long as there is one that will come back, no other is needed. */
  return remote->nr_made == 0 || g_get_monotonic_time () >= remote->grow_at;
}

/* Wait, with the lock held, until there is a connection to take or one may be
 * made.  As long as the remote is lost that counts as trying.
 */
static int
wait_for_turn (struct remote *remote, struct attempt *attempt)
{
  while (!remote->stopped && !has_connection (remote)) {
    struct timespec until;
    gint64 end;

    if (!remote->lost) {
      pthread_cond_wait (&remote->changed, &remote->lock);
      continue;
    }
    if (attempt->failed_at == 0)
      attempt->failed_at = g_get_monotonic_time ();
    end = attempt->failed_at + remote->retry_time;
    if (g_get_monotonic_time () >= end)
      return lost (attempt, "no connection was free in time");
    until.tv_sec = (time_t) (end / G_USEC_PER_SEC);
    until.tv_nsec = (long) (end % G_USEC_PER_SEC) * 1000;
    pthread_cond_timedwait (&remote->changed, &remote->lock, &until);
  }
  return remote->stopped ? -ESHUTDOWN : 0;
}

static void
give_back (struct remote *remote, struct connection *connection)
{
  bool was_lost;

  pthread_mutex_lock (&remote->lock);
  connection->next = remote->idle;
  remote->idle = connection;
  was_lost = remote->lost;
  pthread_cond_signal (&remote->changed);
  pthread_mutex_unlock (&remote->lock);
  if (was_lost)
    note_answer (remote);
}

/* Close a connection that was taken.
 *
 * Those that are idle go with it.  They went to the same server: if it is gone,
 * so are they, and if it is silent, each would cost a read its whole time.
 */
static void
drop (struct remote *remote, struct connection *connection)
{
  struct connection *list = connection;

  pthread_mutex_lock (&remote->lock);
  connection->next = g_steal_pointer (&remote->idle);
  for (struct connection *c = list; c; c = c->next)
    remote->nr_made--;
  if (remote->nr_made == 0)
    remote->grow_at = 0;        /* another server may take more */
  pthread_cond_broadcast (&remote->changed);
  pthread_mutex_unlock (&remote->lock);
  while (list) {
    struct connection *next = list->next;

    close_connection (list);
    list = next;
  }
}

/* Take an idle connection out of the pool, or the right to make one, which is
 * *EXTRA when there are others.
 */
static int
take_turn (struct attempt *attempt, struct connection **taken, bool *extra)
{
  struct remote *remote = attempt->remote;
  int r;

  pthread_mutex_lock (&remote->lock);
  r = wait_for_turn (remote, attempt);
  *taken = r == 0 ? remote->idle : NULL;
  *extra = remote->nr_made > 0;
  if (*taken)
    remote->idle = (*taken)->next;
  else if (r == 0)
    remote->nr_making++;
  pthread_mutex_unlock (&remote->lock);
  return r;
}

/* Give the right back, with a connection or without.  Returns true when it was
 * only to be one more: there are others still.
 */
static bool
end_making (struct remote *remote, bool made, bool extra)
{
  bool has_others;

  pthread_mutex_lock (&remote->lock);
  remote->nr_making--;
  has_others = extra && remote->nr_made > 0;
  if (made)
    remote->nr_made++;
  else if (has_others)
    remote->grow_at = g_get_monotonic_time () + GROW_INTERVAL;
  pthread_cond_broadcast (&remote->changed);
  pthread_mutex_unlock (&remote->lock);
  return has_others;
}

/* When this attempt ends; what is EXTRA is not worth waiting for. */
static gint64
deadline_of (const struct attempt *attempt, bool extra)
{
  const struct remote *remote = attempt->remote;
  const gint64 now = g_get_monotonic_time ();
  gint64 deadline = now + remote->reply_time;

  if (extra)
    return MIN (deadline, now + EXTRA_TIME);
  if (attempt->failed_at != 0)
    deadline = MIN (deadline, attempt->failed_at + remote->retry_time);
  return MAX (deadline, now + SHORTEST_ATTEMPT);
}

/* Get a connection, idle or new. */
static int
take (struct attempt *attempt, struct connection **taken)
{
  struct remote *remote = attempt->remote;
  uint64_t size = remote->size;

  for (;;) {
    bool extra;
    int r = take_turn (attempt, taken, &extra);

    if (r == 0 && !*taken) {
      attempt->deadline = deadline_of (attempt, extra);
      r = make_connection (attempt, &size, taken);
      extra = end_making (remote, r == 0, extra);
      if (r == -ENOTCONN && extra) {
        log_debug (remote->log, "%s: no other connection: %s", remote->uri,
                   attempt->why);
        continue;
      }
    }
    attempt->deadline = deadline_of (attempt, false);
    return r;
  }
}

/* ---- Trying again ------------------------------------------------------ */

/* Sleep before the next attempt.  The first comes at once: an idle connection's
 * end is often found only when it is used.
 */
static int
pause_before_next (struct attempt *attempt)
{
  const struct remote *remote = attempt->remote;
  const gint64 now = g_get_monotonic_time ();
  struct pollfd stop = { .fd = remote->stop_fd, .events = POLLIN };
  gint64 end;

  if (attempt->failed_at == 0)
    attempt->failed_at = now;
  end = attempt->failed_at + remote->retry_time;
  if (now >= end)
    return -EIO;
  if (gives_up (remote))
    return -ESHUTDOWN;
  if (poll (&stop, 1, milliseconds_until (MIN (now + attempt->pause, end)))
      > 0)
    return -ESHUTDOWN;
  attempt->pause = CLAMP (2 * attempt->pause, FIRST_PAUSE, LONGEST_PAUSE);
  return 0;
}

/* What is done over a connection: 0 or -EIO by the server's answer, -ENOTCONN
 * and -ESHUTDOWN as above, -ENOMEM.
 */
typedef int (*request_fn) (struct connection *connection,
                           struct attempt *attempt, void *opaque);

static int
try_once (struct attempt *attempt, request_fn request, void *opaque)
{
  struct connection *connection;
  int r = take (attempt, &connection);

  if (r < 0)
    return r;
  r = request (connection, attempt, opaque);
  /* When stopped there is an answer still to come, which nobody waits for. */
  if (r == -ENOTCONN || r == -ESHUTDOWN)
    drop (attempt->remote, connection);
  else
    give_back (attempt->remote, connection);
  return r;
}

/* Make a request, over as many connections as it takes. */
static int
try_until_answered (struct remote *remote, request_fn request, void *opaque)
{
  struct attempt attempt = { .remote = remote };
  int r;

  do {
    r = try_once (&attempt, request, opaque);
    if (r == -ENOTCONN || r == -ESTALE)
      note_loss (&attempt, r);
    if (r != -ENOTCONN)
      break;
    r = pause_before_next (&attempt);
  } while (r == 0);
  if (r < 0 && attempt.why)
    log_debug (remote->log, "%s: request failed: %s", remote->uri,
               attempt.why);
  g_free (attempt.why);
  return r == -ESTALE ? -EIO : r;
}

/* ---- Reading ----------------------------------------------------------- */

/* What is still to be read. */
struct cursor {
  char *buf;
  size_t length;
  uint64_t offset;
};

static void
move_on (struct cursor *cursor, size_t length)
{
  cursor->buf += length;
  cursor->length -= length;
  cursor->offset += length;
}

static int
read_over (struct connection *connection, struct attempt *attempt, void *buf,
           size_t length, uint64_t offset)
{
  const int64_t cookie = nbd_aio_pread (connection->nbd, buf, length, offset,
                                        NBD_NULL_COMPLETION, 0);

  return await_answer (connection->nbd, cookie, attempt);
}

/* Read what the cursor wants of one block. */
static int
read_part_of_block (struct connection *connection, struct attempt *attempt,
                    struct cursor *cursor)
{
  const size_t into = cursor->offset % connection->block_size;
  const size_t length = MIN (cursor->length, connection->block_size - into);
  g_autofree char *block = g_try_malloc (connection->block_size);
  int r;

  if (!block)
    return -ENOMEM;
  r = read_over (connection, attempt, block, connection->block_size,
                 cursor->offset - into);
  if (r < 0)
    return r;
  memcpy (cursor->buf, block + into, length);
  move_on (cursor, length);
  return 0;
}

/* Read as much as one request can bring (request_fn). */
static int
read_piece (struct connection *connection, struct attempt *attempt,
            void *opaque)
{
  struct cursor *cursor = opaque;
  size_t length = MIN (cursor->length, connection->max_read);
  int r;

  length -= length % connection->block_size;
  if (length == 0 || cursor->offset % connection->block_size != 0)
    return read_part_of_block (connection, attempt, cursor);
  r = read_over (connection, attempt, cursor->buf, length, cursor->offset);
  if (r == 0)
    move_on (cursor, length);
  return r;
}

int
remote_pread (struct remote *remote, void *buf, size_t length,
              uint64_t offset)
{
  const uint64_t left = remote->size - MIN (offset, remote->size);
  struct cursor cursor = { buf, MIN (length, left), offset };

  memset (cursor.buf + cursor.length, 0, length - cursor.length);
  while (cursor.length > 0) {
    const int r = try_until_answered (remote, read_piece, &cursor);

    if (r < 0)
      return r;
  }
  return 0;
}

/* ---- Holes ------------------------------------------------------------- */

static void
add_data (struct extents *extents, uint64_t start, uint64_t stop)
{
  const struct range range = { start, stop };

  if (start < stop)
    g_array_append_val (extents->data, range);
}

/* Called by libnbd with what the server says.  Only what it says reads as zeros
 * is left out: a hole alone (LIBNBD_STATE_HOLE) may read as anything.
 */
static int
on_extents (void *opaque, const char *context, uint64_t offset,
            uint32_t *entries, size_t nr_entries, int *error)
{
  struct extents *extents = opaque;

  (void) error;
  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0
      || offset != extents->stop)
    return 0;
  for (size_t i = 0; i + 1 < nr_entries; i += 2) {
    const uint64_t start = extents->stop;

    extents->stop += entries[i];
    if (!(entries[i + 1] & LIBNBD_STATE_ZERO))
      add_data (extents, start, extents->stop);
  }
  return 0;
}

static void
forget_extents (struct extents *extents, uint64_t start)
{
  extents->start = extents->stop = start;
  extents->next = 0;
  g_array_set_size (extents->data, 0);
}

struct question {
  uint64_t start;
  struct extents *extents;
};

/* Ask for the extents from START on (request_fn). */
static int
ask_for_extents (struct connection *connection, struct attempt *attempt,
                 void *opaque)
{
  const struct question *question = opaque;
  const uint64_t start =
    question->start - question->start % connection->block_size;
  const uint64_t length = MIN (attempt->remote->size - start, MAX_STATUS);
  int64_t cookie;

  forget_extents (question->extents, start);
  if (nbd_can_meta_context (connection->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION)
      != 1) {
    say_why (attempt, "the server does not tell holes");
    return -EIO;
  }
  cookie = nbd_aio_block_status (
    connection->nbd, length, start,
    (nbd_extent_callback) { .callback = on_extents,
                            .user_data = question->extents },
    NBD_NULL_COMPLETION, 0);
  return await_answer (connection->nbd, cookie, attempt);
}

/* Let the extents be known from START on.  Whatever fails once is not asked for
 * again: it would cost an open its time, range by range.
 */
static bool
learn_extents (struct remote *remote, uint64_t start)
{
  struct extents *extents = &remote->extents;
  struct question question = { start, extents };

  if (extents->unknown)
    return false;
  if (start >= extents->start && start < extents->stop)
    return true;
  if (try_until_answered (remote, ask_for_extents, &question) < 0
      || extents->stop <= start)
    extents->unknown = true;
  return !extents->unknown;
}

/* The first range of data in what is known that ends after START. */
static const struct range *
find_data (struct extents *extents, uint64_t start)
{
  /* What lies before is not known any more. */
  extents->start = start;
  for (; extents->next < extents->data->len; extents->next++) {
    const struct range *range =
      &g_array_index (extents->data, struct range, extents->next);

    if (range->stop > start)
      return range;
  }
  return NULL;
}

bool
remote_next_data (struct remote *remote, uint64_t end, uint64_t *start,
                  uint64_t *stop)
{
  uint64_t from = *start;

  end = MIN (end, remote->size);
  while (from < end) {
    const struct range *range;

    if (!learn_extents (remote, from)) {
      *start = from;
      *stop = end;
      return true;
    }
    range = find_data (&remote->extents, from);
    if (!range) {
      from = remote->extents.stop;
      continue;
    }
    *start = MAX (from, range->start);
    *stop = MIN (end, range->stop);
    return *start < end;
  }
  return false;
}

/* ---- Opening and closing ----------------------------------------------- */

static struct remote *
new_remote (const char *uri, const struct remote_options *options)
{
  struct remote *remote = g_new0 (struct remote, 1);
  pthread_condattr_t attr;

  remote->uri = g_strdup (uri);
  remote->log = options->log ? options->log : &no_log;
  remote->reply_time = SECONDS (options->reply_seconds != 0
                                  ? options->reply_seconds
                                  : DEFAULT_REPLY_SECONDS);
  remote->give_up = options->give_up;
  remote->give_up_opaque = options->give_up_opaque;
  remote->retry_time = SECONDS (options->retry_seconds != 0
                                  ? options->retry_seconds
                                  : DEFAULT_RETRY_SECONDS);
  remote->extents.data = g_array_new (FALSE, FALSE, sizeof (struct range));
  remote->stop_fd = eventfd (0, EFD_CLOEXEC);
  pthread_mutex_init (&remote->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&remote->changed, &attr);
  pthread_condattr_destroy (&attr);
  return remote;
}

/* The first connection: it says how large the export is. */
static int
connect_first (struct remote *remote, const struct remote_options *options,
               GError **error)
{
  struct attempt attempt = { .remote = remote };
  int r;

  if (remote->stop_fd == -1) {
    error_set_system (error, errno, "%s: eventfd", remote->uri);
    return -1;
  }
  attempt.deadline = deadline_of (&attempt, false);
  r = make_connection (&attempt, &remote->size, &remote->idle);
  if (r < 0) {
    g_set_error (error, PLOOP_ERROR,
                 r == -ESTALE ? PLOOP_ERROR_ARGUMENT : PLOOP_ERROR_SYSTEM,
                 "%s: cannot be used as a base: %s: see that the server runs "
                 "and what it exports (nbdinfo shows it)",
                 remote->uri, attempt.why);
    g_free (attempt.why);
    return -1;
  }
  remote->nr_made = 1;
  if (options->connections != 0)
    remote->max_connections = options->connections;
  else if (nbd_can_multi_conn (remote->idle->nbd) == 1)
    remote->max_connections = REMOTE_CONNECTIONS;
  else
    remote->max_connections = 1;
  return 0;
}

struct remote *
remote_open (const char *uri, const struct remote_options *options,
             GError **error)
{
  struct remote *remote = new_remote (uri, options);

  if (connect_first (remote, options, error) < 0) {
    remote_close (remote);
    return NULL;
  }
  return remote;
}

bool
remote_is_lost (struct remote *remote)
{
  bool lost_now;

  pthread_mutex_lock (&remote->lock);
  lost_now = remote->lost || remote->stopped;
  pthread_mutex_unlock (&remote->lock);
  return lost_now;
}

void
remote_stop (struct remote *remote)
{
  const uint64_t one = 1;

  pthread_mutex_lock (&remote->lock);
  remote->stopped = true;
  pthread_cond_broadcast (&remote->changed);
  pthread_mutex_unlock (&remote->lock);
  /* Never read: it stays readable, for all. */
  while (write (remote->stop_fd, &one, sizeof one) == -1 && errno == EINTR)
    continue;
}

void
remote_close (struct remote *remote)
{
  if (!remote)
    return;
  while (remote->idle) {
    struct connection *next = remote->idle->next;

    close_connection (remote->idle);
    remote->idle = next;
  }
  if (remote->stop_fd != -1)
    close (remote->stop_fd);
  pthread_cond_destroy (&remote->changed);
  pthread_mutex_destroy (&remote->lock);
  g_array_free (remote->extents.data, TRUE);
  g_free (remote->uri);
  g_free (remote);
}

uint64_t
remote_size (const struct remote *remote)
{
  return remote->size;
}
