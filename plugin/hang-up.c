/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Hanging up clients when the server ends: see hang-up.h.
 *
 * nbdkit tells its plugins nothing of a signal, nor which sockets are its clients'.  So
 * its handlers of signals are called from one of ours, which wakes a thread; and that
 * looks through the open files for connections to the sockets that the server listens
 * on.  What is hard about it is to lose no answer.  nbdkit itself ends the connections of
 * clients that are at work, and a client that is hung up while it sends something may
 * not look for its answers any more: so only those who are still there after a while are.
 * Their connections are first closed for reading only: nbdkit takes that for a client
 * that has sent its last request, and answers what is under way.  Those who do not take
 * their answers are cut off later.
 */

#include <config.h>

#include <errno.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hang-up.h"

/* How long clients have that are at work. */
#define GRACE_MS 1000

/* How long answers may take that are under way then. */
#define PATIENCE_SECONDS 30

/* Clients that were just being accepted are found when it is looked again. */
#define AGAIN_MS 100

/* Those that end nbdkit. */
static const int ending_signals[] = { SIGINT, SIGQUIT, SIGTERM, SIGHUP };
static struct sigaction of_nbdkit[G_N_ELEMENTS (ending_signals)];

static int wake_fd = -1;        /* an eventfd */
static GThread *thread;         /* NULL: the server listens on no socket */
static GDir *open_files;        /* stays open: at the end there may be none left */
static atomic_bool stopped;

/* ---- Sockets ----------------------------------------------------------- */

/* Large enough for every family. */
union address {
  struct sockaddr any;
  struct sockaddr_in in;
  struct sockaddr_in6 in6;
  struct sockaddr_vm vm;
  struct sockaddr_storage storage;
};

struct listener {
  union address address;
  socklen_t length;
};

static bool
is_ip (const union address *address)
{
  return address->any.sa_family == AF_INET || address->any.sa_family == AF_INET6;
}

/* A server may listen on all addresses, of both versions of IP: what counts is the
 * port.  Unix sockets have the name of the one that was listened on.
 */
static bool
address_is_of (const union address *address, socklen_t length,
               const struct listener *listener)
{
  const union address *listening = &listener->address;

  /* The port is at the same place in both. */
  G_STATIC_ASSERT (G_STRUCT_OFFSET (struct sockaddr_in, sin_port)
                   == G_STRUCT_OFFSET (struct sockaddr_in6, sin6_port));
  if (is_ip (address))
    return is_ip (listening) && address->in.sin_port == listening->in.sin_port;
  if (address->any.sa_family == AF_VSOCK)
    return listening->any.sa_family == AF_VSOCK
           && address->vm.svm_port == listening->vm.svm_port;
  /* Our connections to other servers have no name. */
  return length > sizeof address->any.sa_family && length == listener->length
         && memcmp (address, listening, length) == 0;
}

/* The local address of the socket FD.  Returns false if it is no stream socket. */
static bool
find_address (int fd, union address *address, socklen_t *length)
{
  int type;
  socklen_t type_length = sizeof type;

  memset (address, 0, sizeof *address);
  *length = sizeof *address;
  return getsockopt (fd, SOL_SOCKET, SO_TYPE, &type, &type_length) == 0
         && type == SOCK_STREAM
         && getsockname (fd, &address->any, length) == 0;
}

static bool
is_listening (int fd)
{
  int listening = 0;
  socklen_t length = sizeof listening;

  return getsockopt (fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) == 0
         && listening;
}

/* The file descriptors of this process. */
static GArray *
list_open_files (void)
{
  GArray *fds = g_array_new (FALSE, FALSE, sizeof (int));
  const char *name;

  g_dir_rewind (open_files);
  while ((name = g_dir_read_name (open_files))) {
    const int fd = atoi (name);

    g_array_append_val (fds, fd);
  }
  return fds;
}

/* What is listened on, of FDS. */
static GArray *
find_listeners (const GArray *fds)
{
  GArray *listeners = g_array_new (FALSE, FALSE, sizeof (struct listener));

  for (guint i = 0; i < fds->len; i++) {
    const int fd = g_array_index (fds, int, i);
    struct listener listener;

    if (find_address (fd, &listener.address, &listener.length)
        && is_listening (fd))
      g_array_append_val (listeners, listener);
  }
  return listeners;
}

static bool
is_client (int fd, const GArray *listeners)
{
  union address address;
  socklen_t length;

  if (!find_address (fd, &address, &length) || is_listening (fd))
    return false;
  for (guint i = 0; i < listeners->len; i++)
    if (address_is_of (&address, length,
                       &g_array_index (listeners, struct listener, i)))
      return true;
  return false;
}

/* HOW: as of shutdown(2). */
static void
hang_up_clients (int how)
{
  g_autoptr (GArray) fds = list_open_files ();
  g_autoptr (GArray) listeners = find_listeners (fds);

  for (guint i = 0; i < fds->len; i++) {
    const int fd = g_array_index (fds, int, i);

    if (is_client (fd, listeners))
      shutdown (fd, how);
  }
}

/* ---- The thread -------------------------------------------------------- */

/* Until wake_up is called, or TIMEOUT_MS have passed if that is not -1. */
static void
wait_for_wake_up (int timeout_ms)
{
  struct pollfd wake = { .fd = wake_fd, .events = POLLIN };
  uint64_t count;

  while (poll (&wake, 1, timeout_ms) == -1 && errno == EINTR)
    ;
  if (wake.revents && read (wake_fd, &count, sizeof count) == -1)
    return;                     /* somebody has read it: as good */
}

/* Until hang_up_stop is called, or the monotonic time is END, in microseconds. */
static void
wait_for_stop (gint64 end)
{
  gint64 now;

  while (!atomic_load (&stopped) && (now = g_get_monotonic_time ()) < end)
    wait_for_wake_up ((int) ((end - now) / 1000 + 1));
}

/* Also in a signal handler. */
static void
wake_up (void)
{
  const uint64_t one = 1;

  /* It only fails when the count is at its limit, which wakes as well. */
  if (write (wake_fd, &one, sizeof one) == -1)
    return;
}

static void *
hang_up (void *opaque)
{
  gint64 begin;

  (void) opaque;
  wait_for_wake_up (-1);
  begin = g_get_monotonic_time ();
  wait_for_stop (begin + GRACE_MS * 1000);
  while (!atomic_load (&stopped)) {
    const gint64 now = g_get_monotonic_time ();
    const bool is_late = now >= begin + PATIENCE_SECONDS * G_TIME_SPAN_SECOND;

    hang_up_clients (is_late ? SHUT_RDWR : SHUT_RD);
    wait_for_stop (now + AGAIN_MS * 1000);
  }
  return NULL;
}

static void
on_signal (int number)
{
  const int saved = errno;

  wake_up ();
  for (size_t i = 0; i < G_N_ELEMENTS (ending_signals); i++)
    if (ending_signals[i] == number)
      of_nbdkit[i].sa_handler (number);
  errno = saved;
}

/* What nbdkit ignores, or leaves to kill it, stays so. */
static void
take_signals (void)
{
  for (size_t i = 0; i < G_N_ELEMENTS (ending_signals); i++) {
    struct sigaction action;

    if (sigaction (ending_signals[i], NULL, &of_nbdkit[i]) == -1
        || (of_nbdkit[i].sa_flags & SA_SIGINFO)
        || of_nbdkit[i].sa_handler == SIG_DFL
        || of_nbdkit[i].sa_handler == SIG_IGN)
      continue;
    action = of_nbdkit[i];
    action.sa_handler = on_signal;
    sigaction (ending_signals[i], &action, NULL);
  }
}

static GThread *
start_thread (GError **error)
{
  sigset_t all, before;
  GThread *started;

  /* It must not be the one that is interrupted. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  started = g_thread_try_new ("plugin-hang-up", hang_up, NULL, error);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  return started;
}

static bool
listens (void)
{
  g_autoptr (GArray) fds = list_open_files ();
  g_autoptr (GArray) listeners = find_listeners (fds);

  return listeners->len > 0;
}

bool
hang_up_start (GError **error)
{
  open_files = g_dir_open ("/proc/self/fd", 0, error);
  if (!open_files)
    return false;
  /* nbdkit -s: the one client ends the server. */
  if (!listens ())
    return true;
  wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_fd == -1) {
    g_set_error (error, G_FILE_ERROR,
                 (gint) g_file_error_from_errno (errno), "eventfd: %s",
                 g_strerror (errno));
    return false;
  }
  thread = start_thread (error);
  if (!thread)
    return false;
  take_signals ();
  return true;
}

/* The eventfd stays: a signal may still come. */
void
hang_up_stop (void)
{
  if (!thread)
    return;
  atomic_store (&stopped, true);
  wake_up ();
  g_thread_join (g_steal_pointer (&thread));
  g_clear_pointer (&open_files, g_dir_close);
}
