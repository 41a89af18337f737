/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* One nbdkit for each struct server, in the foreground, on a Unix socket in
 * the test's directory; see server.h.  The environment says which: PLUGIN,
 * NBDKIT (may be a prefix such as valgrind with its options), NBDKIT_PRELOAD.
 * The hard thing is that nothing may outlive the test: the kernel kills a
 * server whose test is gone, and the clean-up kills the others.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "server.h"

#define UNPRIVILEGED_ID 65534

struct server {
  pid_t pid;                    /* 0: not running */
  char *directory;              /* of the files below */
  char *socket;
  char *pid_file;
  char *log;
  char *plugin;
  struct server *next;
};

/* All servers that were not freed.  Only the main thread starts and ends
 * servers.
 */
static struct server *servers;
static unsigned nr_started;

static void
show_logs (void)
{
  struct server *server;
  char line[512];
  FILE *f;

  for (server = servers; server != NULL; server = server->next) {
    printf ("---- log of the server with pid %d\n", (int) server->pid);
    f = fopen (server->log, "r");
    while (f != NULL && fgets (line, sizeof line, f) != NULL)
      fputs (line, stdout);
    if (f != NULL)
      fclose (f);
    printf ("----\n");
  }
}

static void
kill_all (void)
{
  struct server *server;

  for (server = servers; server != NULL; server = server->next) {
    if (server->pid > 0) {
      kill (server->pid, SIGKILL);
      waitpid (server->pid, NULL, 0);
      server->pid = 0;
    }
  }
}

static void
server_free (struct server *server)
{
  struct server **link = &servers;

  while (*link != server)
    link = &(*link)->next;
  *link = server->next;
  free (server->directory);
  free (server->socket);
  free (server->pid_file);
  free (server->log);
  free (server->plugin);
  free (server);
}

/* Split what the environment gives at its blanks. */
static void
append_words (const char **argv, size_t *argc, size_t limit, char *words)
{
  char *save = NULL;
  char *word;

  for (word = strtok_r (words, " \t", &save); word != NULL;
       word = strtok_r (NULL, " \t", &save)) {
    if (*argc == limit)
      fail ("NBDKIT or PLOOP_PARAMETERS has too many words");
    argv[(*argc)++] = word;
  }
}

/* In the child: become the server. */
static _Noreturn void
become_server (const struct server *server, const char *image,
               unsigned flags, const char *own_parameters, pid_t parent)
{
  const char *argv[64];
  size_t argc = 0;
  const char *nbdkit = getenv ("NBDKIT");
  const char *preload = getenv ("NBDKIT_PRELOAD");
  const char *parameters = getenv ("PLOOP_PARAMETERS");
  int fd;

  prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (getppid () != parent)
    _exit (126);
  signal (SIGPIPE, SIG_DFL);

  fd = open (server->log, O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (fd == -1 || dup2 (fd, 1) == -1 || dup2 (fd, 2) == -1)
    _exit (126);
  fd = open ("/dev/null", O_RDONLY);
  if (fd == -1 || dup2 (fd, 0) == -1)
    _exit (126);

  if ((flags & SERVER_UNPRIVILEGED) && geteuid () == 0) {
    argv[argc++] = "setpriv";
    argv[argc++] = "--reuid=65534";
    argv[argc++] = "--regid=65534";
    argv[argc++] = "--clear-groups";
    argv[argc++] = "--pdeathsig";
    argv[argc++] = "KILL";
  }
  if (nbdkit == NULL || *nbdkit == '\0')
    nbdkit = "nbdkit";
  append_words (argv, &argc, 40, strdup (nbdkit));
  argv[argc++] = "-f";
  argv[argc++] = "-U";
  argv[argc++] = server->socket;
  argv[argc++] = "-P";
  argv[argc++] = server->pid_file;
  if (flags & SERVER_READ_ONLY)
    argv[argc++] = "-r";
  argv[argc++] = server->plugin;
  argv[argc++] = format_string ("%s=%s", flags & SERVER_DIRECTORY ? "dir" : "file",
                                image);
  append_words (argv, &argc, 50, strdup (own_parameters));
  if (parameters != NULL)
    append_words (argv, &argc, 60, strdup (parameters));
  argv[argc] = NULL;

  if (preload != NULL && *preload != '\0')
    setenv ("LD_PRELOAD", preload, 1);
  execvp (argv[0], (char *const *) argv);
  fprintf (stderr, "exec %s: %m\n", argv[0]);
  _exit (127);
}

static bool
log_contains (const struct server *server, const char *text)
{
  char line[4096];
  bool found = false;
  FILE *f = fopen (server->log, "r");

  if (f == NULL)
    return false;
  while (!found && fgets (line, sizeof line, f) != NULL)
    found = strstr (line, text) != NULL;
  fclose (f);
  return found;
}

/* Lines of valgrind begin with ==PID==; with --quiet all are errors. */
static bool
log_has_valgrind_error (const struct server *server)
{
  char line[4096];
  bool found = false;
  FILE *f = fopen (server->log, "r");
  int pid, end;

  if (f == NULL)
    return false;
  while (!found && fgets (line, sizeof line, f) != NULL) {
    end = 0;
    found = sscanf (line, "==%d==%n", &pid, &end) == 1 && end > 0 &&
            strstr (line, "Warning: set address range perms") == NULL;
  }
  fclose (f);
  return found;
}

static void
scan_log (const struct server *server)
{
  static const char *const bad[] = {
    "ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error:",
    "ThreadSanitizer", "SUMMARY: ",
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (bad); i++)
    if (log_contains (server, bad[i]))
      fail ("the server's log has: %s", bad[i]);
  if (log_has_valgrind_error (server))
    fail ("the server's log has an error found by valgrind");
}

/* Has the server ended?  Then its status is in *STATUS and its pid 0. */
static bool
reap (struct server *server, int *status)
{
  pid_t pid = waitpid (server->pid, status, WNOHANG);

  if (pid == -1)
    fail ("waitpid: %m");
  if (pid == 0)
    return false;
  server->pid = 0;
  return true;
}

static int
wait_for_end (struct server *server)
{
  double limit = now_seconds () + HANG_SECONDS;
  int status;

  while (!reap (server, &status)) {
    if (now_seconds () > limit)
      fail ("the server does not end");
    poll_pause ();
  }
  return status;
}

static void
fail_status (const char *when, int status)
{
  if (WIFSIGNALED (status))
    fail ("%s: the server died of signal %d (%s)", when, WTERMSIG (status),
          strsignal (WTERMSIG (status)));
  fail ("%s: the server's exit status is %d", when, WEXITSTATUS (status));
}

/* Let somebody else reach the directory, and the plugin, which may lie where
 * only its owner can go.
 */
static void
open_to_nobody (struct server *server)
{
  char *copy = format_string ("%s/plugin.so", server->directory);

  run_ok ("cp %s %s", server->plugin, copy);
  free (server->plugin);
  server->plugin = copy;
  if (chmod (copy, 0755) == -1 || chmod (test_dir (), 0755) == -1 ||
      chown (server->directory, UNPRIVILEGED_ID, UNPRIVILEGED_ID) == -1)
    fail ("cannot open %s to others: %m", server->directory);
}

struct server *
server_start (const char *image, unsigned flags)
{
  return server_start_with (image, flags, "");
}

struct server *
server_start_with (const char *image, unsigned flags, const char *parameters)
{
  struct server *server = calloc (1, sizeof *server);
  pid_t parent = getpid ();
  double limit;
  int status;

  if (server == NULL)
    abort ();
  if (nr_started == 0) {
    at_cleanup (kill_all);
    at_failure (show_logs);
  }
  nr_started++;
  server->directory = format_string ("%s/s%u", test_dir (), nr_started);
  if (mkdir (server->directory, 0755) == -1)
    fail ("mkdir %s: %m", server->directory);
  server->socket = format_string ("%s/sock", server->directory);
  server->pid_file = format_string ("%s/pid", server->directory);
  server->log = format_string ("%s/log", server->directory);
  server->plugin = format_string ("%s", test_env ("PLUGIN"));
  server->next = servers;
  servers = server;
  if ((flags & SERVER_UNPRIVILEGED) && geteuid () == 0)
    open_to_nobody (server);

  server->pid = fork ();
  if (server->pid == -1)
    fail ("fork: %m");
  if (server->pid == 0)
    become_server (server, image, flags, parameters, parent);

  limit = now_seconds () + HANG_SECONDS;
  while (access (server->pid_file, F_OK) == -1) {
    if (reap (server, &status))
      fail_status ("at its start", status);
    if (now_seconds () > limit)
      fail ("the server does not come up");
    poll_pause ();
  }
  return server;
}

const char *
server_log (const struct server *server)
{
  return server->log;
}

const char *
server_socket (const struct server *server)
{
  return server->socket;
}

pid_t
server_pid (const struct server *server)
{
  return server->pid;
}

void
server_terminate (struct server *server)
{
  if (kill (server->pid, SIGTERM) == -1)
    fail ("kill %d: %m", (int) server->pid);
}

void
server_stop (struct server *server)
{
  int status;

  if (reap (server, &status))
    fail_status ("before it was stopped", status);
  server_terminate (server);
  status = wait_for_end (server);
  scan_log (server);
  if (!WIFEXITED (status) || WEXITSTATUS (status) != 0)
    fail_status ("after SIGTERM", status);
  server_free (server);
}

void
server_kill (struct server *server)
{
  int status;

  if (reap (server, &status))
    fail_status ("before it was killed", status);
  kill (server->pid, SIGKILL);
  wait_for_end (server);
  scan_log (server);
  server_free (server);
}

void
server_kill_ending (struct server *server)
{
  int status;

  kill (server->pid, SIGKILL);
  status = wait_for_end (server);
  scan_log (server);
  if (WIFSIGNALED (status) ? WTERMSIG (status) != SIGKILL
                           : WEXITSTATUS (status) != 0)
    fail_status ("while it was closing", status);
  server_free (server);
}

/* nbdkit's own sources are named in its assertions; ours must not be. */
static bool
is_nbdkit_assertion (const struct server *server, int status)
{
  return WIFSIGNALED (status) && WTERMSIG (status) == SIGABRT &&
         log_contains (server, "Assertion") &&
         (log_contains (server, "protocol.c") ||
          log_contains (server, "connections.c") ||
          log_contains (server, "backend.c"));
}

bool
server_was_aborted_by_nbdkit (struct server *server)
{
  int status;

  if (!reap (server, &status))
    return false;
  scan_log (server);
  if (!is_nbdkit_assertion (server, status))
    fail_status ("after a client died", status);
  server_free (server);
  return true;
}

bool
server_stop_or_aborted (struct server *server)
{
  bool aborted;
  int status;

  if (server_was_aborted_by_nbdkit (server))
    return true;
  server_terminate (server);
  status = wait_for_end (server);
  scan_log (server);
  aborted = is_nbdkit_assertion (server, status);
  if (!aborted && (!WIFEXITED (status) || WEXITSTATUS (status) != 0))
    fail_status ("after SIGTERM", status);
  server_free (server);
  return aborted;
}

/* A handle, not connected yet. */
static struct nbd_handle *
new_handle (void)
{
  struct nbd_handle *nbd = nbd_create ();

  if (nbd == NULL)
    fail_nbd ("nbd_create");
  /* Buffers are poisoned by who reads, to see what was not filled. */
  if (nbd_set_pread_initialize (nbd, false) == -1)
    fail_nbd ("nbd_set_pread_initialize");
  /* The server is to judge what it can take, not libnbd. */
  if (nbd_set_strict_mode (nbd, nbd_get_strict_mode (nbd) &
                                (uint32_t) ~LIBNBD_STRICT_ALIGN) == -1)
    fail_nbd ("nbd_set_strict_mode");
  if (nbd_set_full_info (nbd, true) == -1)
    fail_nbd ("nbd_set_full_info");
  if (nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1)
    fail_nbd ("nbd_add_meta_context");
  return nbd;
}

struct nbd_handle *
server_connect_uri (const char *uri)
{
  struct nbd_handle *nbd = new_handle ();

  if (nbd_connect_uri (nbd, uri) == -1)
    fail_nbd (uri);
  return nbd;
}

struct nbd_handle *
server_try_connect_to (const struct server *server, const char *export)
{
  struct nbd_handle *nbd = new_handle ();

  if (nbd_set_export_name (nbd, export) == -1)
    fail_nbd ("nbd_set_export_name");
  if (nbd_connect_unix (nbd, server->socket) == -1) {
    nbd_close (nbd);
    return NULL;
  }
  return nbd;
}

struct nbd_handle *
server_try_connect (const struct server *server)
{
  return server_try_connect_to (server, "");
}

struct nbd_handle *
server_connect_to (const struct server *server, const char *export)
{
  struct nbd_handle *nbd = server_try_connect_to (server, export);

  if (nbd == NULL)
    fail_nbd (*export ? export : "connect");
  return nbd;
}

struct nbd_handle *
server_connect (const struct server *server)
{
  return server_connect_to (server, "");
}

void
server_disconnect (struct nbd_handle *nbd)
{
  if (nbd_shutdown (nbd, 0) == -1)
    fail_nbd ("nbd_shutdown");
  nbd_close (nbd);
}
