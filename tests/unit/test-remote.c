/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* lib/remote.c against real servers: what is read is right or an error, however
 * the server ends, comes back, hangs, fails or changes; and nothing waits for
 * ever.
 *
 * Most serve the pattern plugin's disk, where each 8 bytes are their offset:
 * every read can be checked.  No test says how long something takes; where a
 * time has to pass, the options make it short.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "remote.h"
#include "run.h"

#define MIB (UINT64_C (1) << 20)
#define GIB (UINT64_C (1) << 30)
#define TIB (UINT64_C (1) << 40)

/* The pattern ends amid a word. */
#define ODD_SIZE "1048579"

extern char **environ;

/* Is CONDITION true before a generous deadline?  It is not looked at again when
 * it has been.
 */
#define comes_true(condition)                                                 \
  ({                                                                          \
    const gint64 limit = g_get_monotonic_time () + 120 * G_USEC_PER_SEC;      \
    bool is_true;                                                             \
    while (!(is_true = (condition)) && g_get_monotonic_time () < limit)       \
      g_usleep (1000);                                                        \
    is_true;                                                                  \
  })

/* ---- Servers ----------------------------------------------------------- */

#define MAX_ARGS 16

struct server {
  pid_t pid;
  char *socket, *pid_file, *uri;
};

/* Start nbdkit with ARGS (NULL at the end), on the same socket as before. */
static void
start_server (struct server *server, const char *const *args)
{
  const char *argv[MAX_ARGS + 10] = {
    "nbdkit", "--exit-with-parent", "--pidfile", server->pid_file, "-U",
    server->socket,
  };

  for (size_t i = 0; args[i]; i++) {
    ck_assert_uint_lt (i, MAX_ARGS);
    argv[6 + i] = args[i];
  }
  unlink (server->socket);
  unlink (server->pid_file);
  ck_assert_int_eq (posix_spawnp (&server->pid, "nbdkit", NULL, NULL,
                                  (char **) argv, environ), 0);
  /* Written when it listens. */
  ck_assert_msg (comes_true (access (server->pid_file, R_OK) == 0),
                 "nbdkit does not start");
}

static void
new_server (struct server *server, const char *const *args)
{
  server->socket = scratch_path ("socket");
  server->pid_file = scratch_path ("pid");
  server->uri = g_strdup_printf ("nbd+unix:///?socket=%s", server->socket);
  start_server (server, args);
}

#define ARGS(...) ((const char *const[]) { __VA_ARGS__, NULL })

/* As a machine that loses its power. */
static void
kill_server (struct server *server)
{
  kill (server->pid, SIGKILL);
  ck_assert_int_eq (waitpid (server->pid, NULL, 0), server->pid);
}

static void
free_server (struct server *server)
{
  g_free (server->socket);
  g_free (server->pid_file);
  g_free (server->uri);
}

static void
end_server (struct server *server)
{
  kill_server (server);
  free_server (server);
}

/* How often TEXT is in the file PATH. */
static unsigned
count_in_file (const char *path, const char *text)
{
  g_autofree char *content = NULL;
  unsigned nr = 0;

  ck_assert (g_file_get_contents (path, &content, NULL, NULL));
  for (const char *p = content; (p = strstr (p, text)) != NULL; p++)
    nr++;
  return nr;
}

/* ---- What is said ------------------------------------------------------ */

static _Atomic unsigned nr_lost, nr_changed, nr_back;
static char last_change[1000];

static void
count_lines (void *opaque, enum ploop_log_level level, const char *message)
{
  (void) opaque;
  if (level != PLOOP_LOG_WARNING)
    return;
  if (strstr (message, "connection lost"))
    nr_lost++;
  else if (strstr (message, "answers again"))
    nr_back++;
  else if (strstr (message, "not what was opened")) {
    g_strlcpy (last_change, message, sizeof last_change);
    nr_changed++;
  }
  else
    ck_abort_msg ("unknown: %s", message);
}

static void
forget_lines (void)
{
  nr_lost = nr_changed = nr_back = 0;
}

static const struct log test_log = { count_lines, NULL };

static const struct remote_options patient = { .retry_seconds = 250,
                                               .log = &test_log };
static const struct remote_options impatient = { .reply_seconds = 1,
                                                 .retry_seconds = 1,
                                                 .log = &test_log };

static struct remote *
open_with (const struct server *server, const struct remote_options *options)
{
  g_autoptr (GError) error = NULL;
  struct remote *remote = remote_open (server->uri, options, &error);

  ck_assert_msg (remote != NULL, "%s", error ? error->message : "");
  return remote;
}

/* ---- Reading ----------------------------------------------------------- */

static unsigned char
pattern_at (uint64_t offset)
{
  return (unsigned char) (offset / 8 * 8 >> (7 - offset % 8) * 8);
}

/* What remote_pread returns; fails when it returns 0 with wrong content. */
static int
read_pattern (struct remote *remote, size_t length, uint64_t offset)
{
  g_autofree unsigned char *buf = g_malloc (length + 1);
  int r;

  memset (buf, 'r', length + 1);
  r = remote_pread (remote, buf, length, offset);
  ck_assert_uint_eq (buf[length], 'r');
  if (r < 0)
    return r;
  for (size_t i = 0; i < length; i++) {
    const uint64_t at = offset + i;
    const unsigned char expected =
      at < remote_size (remote) ? pattern_at (at) : 0;

    if (buf[i] != expected)
      ck_abort_msg ("%#x instead of %#x at %" PRIu64, buf[i], expected, at);
  }
  return 0;
}

struct reader {
  struct remote *remote;
  pthread_t thread;
  uint64_t seed;
  unsigned nr_to_read;          /* 0: until the first error, or told */
  _Atomic unsigned nr_read;
  _Atomic bool is_to_end;
  int result;
};

static void *
read_at_random (void *opaque)
{
  struct reader *reader = opaque;
  uint64_t x = reader->seed;

  for (unsigned i = 0; reader->nr_to_read == 0 || i < reader->nr_to_read;
       i++) {
    size_t length;

    if (reader->is_to_end)
      break;
    x = x * UINT64_C (6364136223846793005) + UINT64_C (1442695040888963407);
    length = 1 + (x >> 20) % (i % 8 == 0 ? 300000 : 10000);
    reader->result =
      read_pattern (reader->remote, length,
                    (x >> 33) % (remote_size (reader->remote) + 1000));
    if (reader->result < 0)
      break;
    reader->nr_read++;
  }
  return NULL;
}

static void
start_readers (struct reader *readers, size_t nr, struct remote *remote,
               unsigned nr_to_read)
{
  for (size_t i = 0; i < nr; i++) {
    readers[i].remote = remote;
    readers[i].seed = i + 1;
    readers[i].nr_to_read = nr_to_read;
    readers[i].nr_read = 0;
    readers[i].is_to_end = false;
    readers[i].result = 0;
    ck_assert_int_eq (pthread_create (&readers[i].thread, NULL,
                                      read_at_random, &readers[i]), 0);
  }
}

static void
join_readers (struct reader *readers, size_t nr, int result)
{
  for (size_t i = 0; i < nr; i++) {
    pthread_join (readers[i].thread, NULL);
    ck_assert_int_eq (readers[i].result, result);
  }
}

static void
tell_readers (struct reader *readers, size_t nr)
{
  for (size_t i = 0; i < nr; i++)
    readers[i].is_to_end = true;
}

/* Has each of them read something since?  One more may be from before. */
static bool
all_have_read (struct reader *readers, size_t nr, const unsigned *before)
{
  for (size_t i = 0; i < nr; i++)
    if (readers[i].nr_read < before[i] + 2)
      return false;
  return true;
}

/* ---- Servers that work ------------------------------------------------- */

static const char *const kinds[][10] = {
  { "pattern", ODD_SIZE },
  { "pattern", "1M" },
  /* Blocks of its own, and what does not fit them is refused. */
  { "--filter=blocksize-policy", "pattern", "1M", "blocksize-minimum=4K",
    "blocksize-maximum=64K", "blocksize-error-policy=error" },
  { "--filter=blocksize-policy", "pattern", "1M", "blocksize-minimum=64K",
    "blocksize-preferred=64K", "blocksize-maximum=64K",
    "blocksize-error-policy=error" },
  { "--filter=blocksize-policy", "pattern", ODD_SIZE, "blocksize-minimum=1",
    "blocksize-maximum=4096", "blocksize-error-policy=error" },
  { "--no-sr", "pattern", "1M" },
  /* Slow. */
  { "--filter=delay", "pattern", "1M", "rdelay=10ms" },
  { "--filter=rate", "pattern", "1M", "connection-rate=100M" },
};

START_TEST (reads_of_any_alignment_bring_the_content)
{
  static const uint64_t edges[] = {
    0, 1, 7, 511, 512, 513, 4095, 4096, 65535, 65536, 65537, MIB - 65536,
    MIB - 1, MIB, MIB + 2, MIB + 3, MIB + 4, MIB + 70000,
  };
  struct server server;
  struct remote *remote;

  new_server (&server, kinds[_i]);
  remote = open_with (&server, &patient);
  ck_assert_uint_eq (remote_size (remote),
                     g_strv_contains (kinds[_i], ODD_SIZE) ? MIB + 3 : MIB);
  for (size_t from = 0; from < G_N_ELEMENTS (edges); from++)
    for (size_t to = from; to < G_N_ELEMENTS (edges); to++)
      ck_assert_int_eq (read_pattern (remote, edges[to] - edges[from],
                                      edges[from]), 0);
  ck_assert_int_eq (read_pattern (remote, 100, UINT64_MAX - 100), 0);
  remote_close (remote);
  ck_assert_uint_eq (nr_lost + nr_changed + nr_back, 0);
  end_server (&server);
}
END_TEST

START_TEST (many_threads_read_at_once)
{
  static const struct { const char *filter; unsigned asked, most; } cases[] = {
    { "multi-conn-mode=auto", 0, REMOTE_CONNECTIONS },
    { "multi-conn-mode=auto", 3, 3 },
    { "multi-conn-mode=auto", 1, 1 },
    /* A server that does not say that it takes several. */
    { "multi-conn-mode=disable", 0, 1 },
    { "multi-conn-mode=disable", 4, 4 },
  };
  const struct remote_options options = { .connections = cases[_i].asked,
                                          .log = &test_log };
  g_autofree char *log = scratch_path ("log");
  g_autofree char *log_option = g_strconcat ("logfile=", log, NULL);
  struct reader readers[24];
  struct server server;
  struct remote *remote;
  unsigned nr;

  new_server (&server, ARGS ("--filter=log", "--filter=multi-conn",
                             "--filter=delay", "pattern", "64M", log_option,
                             cases[_i].filter, "rdelay=2ms"));
  remote = open_with (&server, &options);
  start_readers (readers, G_N_ELEMENTS (readers), remote, 30);
  join_readers (readers, G_N_ELEMENTS (readers), 0);
  remote_close (remote);
  end_server (&server);
  nr = count_in_file (log, " Connect ");
  ck_assert_uint_le (nr, cases[_i].most);
  ck_assert_uint_ge (nr, MIN (cases[_i].most, 2));
  ck_assert_uint_eq (nr_lost + nr_changed + nr_back, 0);
}
END_TEST

/* One that turns away whoever is too many. */
START_TEST (server_that_takes_few_connections_is_not_lost)
{
  static const char *const limits[] = { "limit=1", "limit=3" };
  const struct remote_options options = { .connections = 8,
                                          .log = &test_log };
  struct reader readers[16];
  struct server server;
  struct remote *remote;

  new_server (&server, ARGS ("--filter=limit", "--filter=delay", "pattern",
                             "64M", "rdelay=2ms", limits[_i]));
  remote = open_with (&server, &options);
  start_readers (readers, G_N_ELEMENTS (readers), remote, 30);
  join_readers (readers, G_N_ELEMENTS (readers), 0);
  ck_assert_uint_eq (nr_lost + nr_changed + nr_back, 0);

  /* And when it has been away, all the same. */
  kill_server (&server);
  start_server (&server, ARGS ("--filter=limit", "--filter=delay", "pattern",
                               "64M", "rdelay=2ms", limits[_i]));
  start_readers (readers, G_N_ELEMENTS (readers), remote, 30);
  join_readers (readers, G_N_ELEMENTS (readers), 0);
  remote_close (remote);
  end_server (&server);
}
END_TEST

/* And one that takes them, but does not talk to them before others are gone. */
START_TEST (server_that_lets_connections_wait_is_not_lost)
{
  /* It would take too long for this test to wait for the others. */
  const struct remote_options options = { .connections = 8,
                                          .reply_seconds = 1000,
                                          .log = &test_log };
  g_autofree char *qemu_nbd = g_find_program_in_path ("qemu-nbd");
  g_autofree char *path = scratch_path ("disk");
  g_autofree unsigned char *content = g_malloc (MIB);
  struct server server = { .socket = scratch_path ("socket") };
  const char *argv[] = { "qemu-nbd", "-t", "-r", "-f", "raw", "-e", "2", "-k",
                         server.socket, path, NULL };
  struct reader readers[16];
  struct remote *remote;

  if (qemu_nbd) {
    for (size_t i = 0; i < MIB; i++)
      content[i] = pattern_at (i);
    ck_assert (g_file_set_contents (path, (char *) content, (gssize) MIB,
                                    NULL));
    server.uri = g_strdup_printf ("nbd+unix:///?socket=%s", server.socket);
    ck_assert_int_eq (posix_spawnp (&server.pid, argv[0], NULL, NULL,
                                    (char **) argv, environ), 0);
    ck_assert (comes_true ((remote = remote_open (server.uri, &options, NULL))
                           != NULL));
    start_readers (readers, G_N_ELEMENTS (readers), remote, 30);
    join_readers (readers, G_N_ELEMENTS (readers), 0);
    ck_assert_uint_eq (nr_lost + nr_changed + nr_back, 0);
    remote_close (remote);
    kill_server (&server);
  }
  free_server (&server);
}
END_TEST

START_TEST (large_reads_are_split)
{
  struct server server;
  struct remote *remote;

  new_server (&server, ARGS ("pattern", "100M"));
  remote = open_with (&server, &patient);
  ck_assert_int_eq (read_pattern (remote, 99 * MIB, 12345), 0);
  remote_close (remote);
  end_server (&server);
}
END_TEST

START_TEST (keys_may_come_from_a_file)
{
  static const char keys[] =
    "golden:000102030405060708090a0b0c0d0e0f\n";
  g_autofree char *path = scratch_path ("keys");
  g_autofree char *key_option = g_strconcat ("--tls-psk=", path, NULL);
  g_autoptr (GError) error = NULL;
  struct server server;
  struct remote *remote;

  ck_assert (g_file_set_contents (path, keys, -1, NULL));
  new_server (&server, ARGS ("--tls=require", key_option, "pattern", "1M"));
  ck_assert_ptr_null (remote_open (server.uri, &patient, &error));
  ck_assert_ptr_nonnull (strstr (error->message, server.uri));
  g_free (server.uri);
  server.uri =
    g_strdup_printf ("nbds+unix://golden@/?socket=%s&tls-psk-file=%s",
                     server.socket, path);
  remote = open_with (&server, &patient);
  ck_assert_int_eq (read_pattern (remote, MIB, 0), 0);
  kill_server (&server);
  start_server (&server, ARGS ("--tls=require", key_option, "pattern", "1M"));
  ck_assert_int_eq (read_pattern (remote, MIB, 0), 0);
  remote_close (remote);
  end_server (&server);
}
END_TEST

/* ---- Servers that go away ---------------------------------------------- */

START_TEST (reads_survive_a_server_that_is_killed)
{
  struct reader readers[12];
  unsigned before[G_N_ELEMENTS (readers)] = { 0 };
  struct server server;
  struct remote *remote;

  new_server (&server, ARGS ("pattern", "64M"));
  remote = open_with (&server, &patient);
  start_readers (readers, G_N_ELEMENTS (readers), remote, 0);
  for (int i = 0; i < 6; i++) {
    ck_assert (comes_true (all_have_read (readers, G_N_ELEMENTS (readers),
                                          before)));
    kill_server (&server);
    /* They are to find it gone, but for when it is back at once. */
    if (i % 2 == 0)
      g_usleep (150000);
    start_server (&server, ARGS ("pattern", "64M"));
    for (size_t j = 0; j < G_N_ELEMENTS (readers); j++)
      before[j] = readers[j].nr_read;
  }
  ck_assert (comes_true (all_have_read (readers, G_N_ELEMENTS (readers),
                                        before)));
  tell_readers (readers, G_N_ELEMENTS (readers));
  join_readers (readers, G_N_ELEMENTS (readers), 0);
  ck_assert_uint_ge (nr_lost, 1);
  ck_assert_uint_eq (nr_back, nr_lost);
  ck_assert_uint_eq (nr_changed, 0);
  remote_close (remote);
  end_server (&server);
}
END_TEST

START_TEST (server_may_be_restarted_while_nobody_reads)
{
  struct server server;
  struct remote *remote;

  new_server (&server, ARGS ("pattern", "1M"));
  remote = open_with (&server, &impatient);
  for (int i = 0; i < 5; i++) {
    ck_assert_int_eq (read_pattern (remote, MIB, 0), 0);
    kill_server (&server);
    start_server (&server, ARGS ("pattern", "1M"));
  }
  remote_close (remote);
  end_server (&server);
}
END_TEST

START_TEST (read_fails_when_the_server_stays_away)
{
  struct reader readers[20];
  struct server server;
  struct remote *remote;

  new_server (&server, ARGS ("pattern", "64M"));
  remote = open_with (&server, &impatient);
  start_readers (readers, G_N_ELEMENTS (readers), remote, 0);
  kill_server (&server);
  join_readers (readers, G_N_ELEMENTS (readers), -EIO);
  /* Some may still have had their answers when others had lost theirs; the loss
   * after that is not told so soon.
   */
  ck_assert_uint_ge (nr_lost, 1);
  ck_assert_uint_le (nr_back, nr_lost);
  ck_assert_int_eq (read_pattern (remote, 100, 0), -EIO);
  /* What needs no server. */
  ck_assert_int_eq (read_pattern (remote, 100, 64 * MIB), 0);

  start_server (&server, ARGS ("pattern", "64M"));
  start_readers (readers, G_N_ELEMENTS (readers), remote, 20);
  join_readers (readers, G_N_ELEMENTS (readers), 0);
  ck_assert_uint_eq (nr_lost, nr_back);
  remote_close (remote);
  end_server (&server);
}
END_TEST

/* As a host that has crashed: connections stay, nobody answers. */
START_TEST (read_ends_when_the_server_hangs)
{
  struct reader readers[20];
  struct server server;
  struct remote *remote;

  new_server (&server, ARGS ("pattern", "64M"));
  remote = open_with (&server, &impatient);
  start_readers (readers, G_N_ELEMENTS (readers), remote, 0);
  kill (server.pid, SIGSTOP);
  join_readers (readers, G_N_ELEMENTS (readers), -EIO);
  kill (server.pid, SIGCONT);
  /* It has to get through those that have come meanwhile. */
  ck_assert (comes_true (read_pattern (remote, MIB, 0) == 0));
  ck_assert_uint_ge (nr_lost, 1);
  remote_close (remote);
  end_server (&server);
}
END_TEST

/* They wait for each other, but do not hang one after the other: with a second
 * for each, that would be longer than this test may take.
 */
START_TEST (reads_end_when_only_reads_hang)
{
  const struct remote_options options = { .connections = 1,
                                          .reply_seconds = 1,
                                          .retry_seconds = 2,
                                          .log = &test_log };
  struct reader *readers = g_new0 (struct reader, 400);
  struct server server;
  struct remote *remote;

  new_server (&server, ARGS ("--filter=delay", "pattern", "8G",
                             "rdelay=3600"));
  remote = open_with (&server, &options);
  start_readers (readers, 400, remote, 1);
  join_readers (readers, 400, -EIO);
  g_free (readers);
  remote_close (remote);
  end_server (&server);
}
END_TEST

/* ---- Servers that answer something else -------------------------------- */

START_TEST (no_read_from_an_export_of_another_size)
{
  static const struct { const char *size, *text; } others[] = {
    { "1048064", "1048576 bytes large, and is 1048064 now" },
    { "1049088", "1048576 bytes large, and is 1049088 now" },
    { "1k", "1048576 bytes large, and is 1024 now" },
    { "0", "empty" },
    { "7E", "1048576 bytes large, and is 8070450532247928832 now" },
  };
  struct server server;
  struct remote *remote;

  new_server (&server, ARGS ("pattern", "1M"));
  remote = open_with (&server, &patient);
  ck_assert_int_eq (read_pattern (remote, 1000, 0), 0);
  kill_server (&server);
  start_server (&server, ARGS ("pattern", others[_i].size));
  for (int i = 0; i < 3; i++)
    ck_assert_int_eq (read_pattern (remote, 1000, 0), -EIO);
  ck_assert_uint_eq (nr_changed, 1);
  ck_assert_ptr_nonnull (strstr (last_change, server.uri));
  ck_assert_ptr_nonnull (strstr (last_change, others[_i].text));

  kill_server (&server);
  start_server (&server, ARGS ("pattern", "1M"));
  ck_assert_int_eq (read_pattern (remote, 1000, 0), 0);
  ck_assert_uint_eq (nr_changed, 1);
  ck_assert_uint_eq (nr_back, 1);
  remote_close (remote);
  end_server (&server);
}
END_TEST

/* Whatever it is called, it must not look like an error of local files. */
START_TEST (error_of_the_server_is_one_and_comes_at_once)
{
  static const char *const errors[] = { "error=EIO", "error=ENOSPC",
                                        "error=EPERM", "error=ENOMEM",
                                        "error=EINVAL" };
  g_autofree char *log = scratch_path ("log");
  g_autofree char *log_option = g_strconcat ("logfile=", log, NULL);
  g_autofree char *file = scratch_path ("fails");
  g_autofree char *file_option = g_strconcat ("error-file=", file, NULL);
  struct server server;
  struct remote *remote;

  new_server (&server, ARGS ("--filter=log", "--filter=error", "pattern", "1M",
                             log_option, file_option, "error-rate=100%",
                             errors[_i]));
  remote = open_with (&server, &patient);
  ck_assert (g_file_set_contents (file, "", -1, NULL));
  ck_assert_int_eq (read_pattern (remote, 1024, 512), -EIO);
  ck_assert_uint_eq (count_in_file (log, " Read "), 1);
  unlink (file);
  ck_assert_int_eq (read_pattern (remote, 1024, 512), 0);
  ck_assert_uint_eq (nr_lost + nr_changed + nr_back, 0);
  remote_close (remote);
  /* Over the same connection. */
  ck_assert_uint_eq (count_in_file (log, " Connect "), 1);
  end_server (&server);
}
END_TEST

START_TEST (server_that_shuts_down_is_asked_again)
{
  g_autofree char *file = scratch_path ("fails");
  g_autofree char *file_option = g_strconcat ("error-file=", file, NULL);
  struct reader reader;
  struct server server;
  struct remote *remote;

  new_server (&server, ARGS ("--filter=error", "pattern", "1M", file_option,
                             "error-pread-rate=100%", "error=ESHUTDOWN"));
  remote = open_with (&server, &patient);
  ck_assert (g_file_set_contents (file, "", -1, NULL));
  start_readers (&reader, 1, remote, 2);
  ck_assert (comes_true (nr_lost == 1));
  unlink (file);
  join_readers (&reader, 1, 0);
  ck_assert_uint_eq (nr_back, 1);
  remote_close (remote);
  end_server (&server);
}
END_TEST

/* ---- Holes ------------------------------------------------------------- */

/* Walk the ranges of data below END.  Returns how many bytes they have. */
static uint64_t
walk (struct remote *remote, uint64_t end, unsigned *nr)
{
  uint64_t start = 0, stop = 0, length = 0;

  *nr = 0;
  while (remote_next_data (remote, end, &start, &stop)) {
    ck_assert_uint_lt (start, stop);
    ck_assert_uint_le (stop, MIN (end, remote_size (remote)));
    length += stop - start;
    start = stop;
    ++*nr;
  }
  return length;
}

/* Is there data at OFFSET? */
static bool
has_data (struct remote *remote, uint64_t offset)
{
  uint64_t start = offset, stop;

  return remote_next_data (remote, offset + 1, &start, &stop);
}

START_TEST (holes_are_left_out)
{
  struct server server;
  struct remote *remote;
  uint64_t start = 0, stop;
  unsigned nr;

  new_server (&server, ARGS ("data", "1 @0x100000 2 @0x3000000000 3",
                             "size=1T"));
  remote = open_with (&server, &patient);
  ck_assert_uint_eq (remote_size (remote), TIB);
  ck_assert_uint_le (walk (remote, UINT64_MAX, &nr), MIB);
  ck_assert_uint_eq (nr, 3);
  ck_assert (has_data (remote, 0));
  ck_assert (has_data (remote, MIB));
  ck_assert (has_data (remote, UINT64_C (0x3000000000)));
  ck_assert (!has_data (remote, GIB));
  ck_assert (!has_data (remote, TIB - 1));
  ck_assert (!has_data (remote, TIB));
  /* Backwards, and no further than the end that is given. */
  ck_assert (remote_next_data (remote, 1, &start, &stop));
  ck_assert_uint_eq (start, 0);
  ck_assert_uint_eq (stop, 1);
  start = MIB - 1;
  ck_assert (remote_next_data (remote, MIB + 1, &start, &stop));
  ck_assert_uint_eq (start, MIB);
  ck_assert_uint_eq (stop, MIB + 1);
  start = 2 * MIB;
  ck_assert (!remote_next_data (remote, UINT64_C (0x3000000000), &start,
                                &stop));
  start = MIB;
  ck_assert (!remote_next_data (remote, MIB, &start, &stop));
  remote_close (remote);
  end_server (&server);
}
END_TEST

START_TEST (export_may_be_one_hole_or_none)
{
  const bool is_hole = _i == 0;
  struct server server;
  struct remote *remote;
  unsigned nr;

  new_server (&server, is_hole ? ARGS ("memory", "4T")
                               : ARGS ("pattern", "4T"));
  remote = open_with (&server, &patient);
  ck_assert_uint_eq (walk (remote, UINT64_MAX, &nr), is_hole ? 0 : 4 * TIB);
  remote_close (remote);
  end_server (&server);
}
END_TEST

START_TEST (sparse_file_in_large_blocks_keeps_its_data)
{
  g_autofree char *path = scratch_path ("sparse");
  struct server server;
  struct remote *remote;
  uint64_t length;
  unsigned nr;
  int fd = open (path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

  ck_assert_int_ge (fd, 0);
  ck_assert_int_eq (ftruncate (fd, (off_t) (256 * MIB)), 0);
  for (off_t at = 4096; at < (off_t) (256 * MIB); at += (off_t) MIB)
    ck_assert_int_eq (pwrite (fd, "x", 1, at), 1);
  close (fd);
  new_server (&server, ARGS ("--filter=blocksize-policy", "file", path,
                             "blocksize-minimum=64K",
                             "blocksize-preferred=64K",
                             "blocksize-error-policy=error"));
  remote = open_with (&server, &patient);
  length = walk (remote, UINT64_MAX, &nr);
  ck_assert_uint_ge (length, 256 * 512);
  for (uint64_t at = 4096; at < 256 * MIB; at += MIB) {
    char byte;

    ck_assert (has_data (remote, at));
    ck_assert_int_eq (remote_pread (remote, &byte, 1, at), 0);
    ck_assert_int_eq (byte, 'x');
  }
  remote_close (remote);
  end_server (&server);
}
END_TEST

START_TEST (all_is_data_when_holes_are_not_known)
{
  static const char *const servers[][6] = {
    { "--no-sr", "memory", "1T" },
    { "--filter=error", "memory", "1T", "error-extents-rate=100%" },
    { "--filter=noextents", "memory", "1T" },
    { "memory", "1T" },         /* killed */
  };
  struct server server;
  struct remote *remote;
  unsigned nr;

  new_server (&server, servers[_i]);
  remote = open_with (&server, &impatient);
  if (_i == 3)
    kill_server (&server);
  ck_assert_uint_eq (walk (remote, GIB + 1, &nr), GIB + 1);
  ck_assert_uint_eq (walk (remote, UINT64_MAX, &nr), TIB);
  remote_close (remote);
  if (_i == 3)
    start_server (&server, servers[_i]);
  end_server (&server);
}
END_TEST

/* ---- Stopping ---------------------------------------------------------- */

START_TEST (stop_ends_whoever_waits)
{
  const bool is_gone = _i == 0;
  const struct remote_options options = { .connections = 2,
                                          .reply_seconds = 100000,
                                          .retry_seconds = 100000,
                                          .log = &test_log };
  struct reader readers[6];
  struct server server;
  struct remote *remote;
  char byte;

  /* For an answer, for a connection, or for the time to try again. */
  new_server (&server, is_gone ? ARGS ("pattern", "1M")
                               : ARGS ("--filter=delay", "pattern", "1M",
                                       "rdelay=3600"));
  remote = open_with (&server, &options);
  start_readers (readers, G_N_ELEMENTS (readers), remote, 0);
  if (is_gone) {
    kill_server (&server);
    ck_assert (comes_true (nr_lost == 1));
  }
  g_usleep (300000);
  remote_stop (remote);
  join_readers (readers, G_N_ELEMENTS (readers), -ESHUTDOWN);
  ck_assert_int_eq (remote_pread (remote, &byte, 1, 0), -ESHUTDOWN);
  ck_assert_uint_eq (nr_lost, is_gone);
  ck_assert_uint_eq (nr_back, 0);
  remote_close (remote);
  if (!is_gone)
    kill_server (&server);
  free_server (&server);
}
END_TEST

/* ---- Opening ----------------------------------------------------------- */

static void
expect_refusal (const char *uri, const char *why)
{
  g_autoptr (GError) error = NULL;

  ck_assert_ptr_null (remote_open (uri, &impatient, &error));
  ck_assert_ptr_nonnull (error);
  ck_assert_msg (strstr (error->message, uri) && strstr (error->message, why),
                 "%s", error->message);
}

START_TEST (what_cannot_be_a_base_is_refused)
{
  g_autofree char *nobody = scratch_path ("nobody");
  g_autofree char *uri = g_strdup_printf ("nbd+unix:///?socket=%s", nobody);

  expect_refusal ("http://localhost/", "http");
  expect_refusal ("not a URI", "");
  expect_refusal ("nbd+unix:///", "");
  expect_refusal ("/some/file", "");
  expect_refusal (uri, g_strerror (ENOENT));
  expect_refusal ("nbd://127.0.0.1:1/", g_strerror (ECONNREFUSED));
  remote_close (NULL);
}
END_TEST

START_TEST (export_that_cannot_be_read_whole_is_refused)
{
  static const struct { const char *args[6]; const char *why; } cases[] = {
    { { "pattern", "0" }, "empty" },
    { { "--filter=blocksize-policy", "pattern", "5000",
        "blocksize-minimum=4K" }, "5000" },
    { { "--filter=exportname", "pattern", "1M", "exportname-strict=true",
        "exportname=other" }, "" },
  };
  struct server server;

  new_server (&server, cases[_i].args);
  expect_refusal (server.uri, cases[_i].why);
  end_server (&server);
}
END_TEST

START_TEST (server_that_never_answers_is_not_waited_for)
{
  g_autofree char *path = scratch_path ("silent");
  g_autofree char *uri = g_strdup_printf ("nbd+unix:///?socket=%s", path);
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  g_strlcpy (address.sun_path, path, sizeof address.sun_path);
  ck_assert_int_ge (fd, 0);
  ck_assert_int_eq (bind (fd, (struct sockaddr *) &address, sizeof address),
                    0);
  ck_assert_int_eq (listen (fd, 10), 0);
  expect_refusal (uri, "does not answer");
  close (fd);
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_checked_fixture (tcase, forget_lines, NULL);
  tcase_add_loop_test (tcase, reads_of_any_alignment_bring_the_content, 0,
                       G_N_ELEMENTS (kinds));
  tcase_add_loop_test (tcase, many_threads_read_at_once, 0, 5);
  tcase_add_loop_test (tcase, server_that_takes_few_connections_is_not_lost,
                       0, 2);
  tcase_add_test (tcase, server_that_lets_connections_wait_is_not_lost);
  tcase_add_test (tcase, large_reads_are_split);
  tcase_add_test (tcase, keys_may_come_from_a_file);
  tcase_add_test (tcase, reads_survive_a_server_that_is_killed);
  tcase_add_test (tcase, server_may_be_restarted_while_nobody_reads);
  tcase_add_test (tcase, read_fails_when_the_server_stays_away);
  tcase_add_test (tcase, read_ends_when_the_server_hangs);
  tcase_add_test (tcase, reads_end_when_only_reads_hang);
  tcase_add_loop_test (tcase, no_read_from_an_export_of_another_size, 0, 5);
  tcase_add_loop_test (tcase, error_of_the_server_is_one_and_comes_at_once, 0,
                       5);
  tcase_add_test (tcase, server_that_shuts_down_is_asked_again);
  tcase_add_test (tcase, holes_are_left_out);
  tcase_add_loop_test (tcase, export_may_be_one_hole_or_none, 0, 2);
  tcase_add_test (tcase, sparse_file_in_large_blocks_keeps_its_data);
  tcase_add_loop_test (tcase, all_is_data_when_holes_are_not_known, 0, 4);
  tcase_add_loop_test (tcase, stop_ends_whoever_waits, 0, 2);
  tcase_add_test (tcase, what_cannot_be_a_base_is_refused);
  tcase_add_loop_test (tcase, export_that_cannot_be_read_whole_is_refused, 0,
                       3);
  tcase_add_test (tcase, server_that_never_answers_is_not_waited_for);
}

int
main (void)
{
  g_autofree char *nbdkit = g_find_program_in_path ("nbdkit");

  if (!nbdkit) {
    fprintf (stderr, "skipped: nbdkit is not installed\n");
    return 77;
  }
  return run_tests ("remote", add_tests);
}
