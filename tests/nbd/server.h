/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* An nbdkit that serves one image for a test: started, connected to, stopped,
 * killed, and its log read.
 *
 * Whatever way a server ends, its log is scanned for what a sanitizer or
 * valgrind has to say; a server that is stopped must exit with 0.  Those that
 * still run when the test ends are killed.
 */

#ifndef PLOOP_TEST_SERVER_H
#define PLOOP_TEST_SERVER_H

#include <stdbool.h>
#include <sys/types.h>

#include <libnbd.h>

struct server;

enum {
  SERVER_READ_ONLY = 1,         /* nbdkit -r */
  SERVER_UNPRIVILEGED = 2,      /* as nobody, when the test is root */
  SERVER_DIRECTORY = 4,         /* all disks below IMAGE, which is a directory */
};

/* Serve IMAGE.  Fails when the server does not come up. */
struct server *server_start (const char *image, unsigned flags);

/* The same with PARAMETERS of the plugin, separated by blanks; those that come
 * from outside follow them.
 */
struct server *server_start_with (const char *image, unsigned flags,
                                  const char *parameters);

/* Send SIGTERM, wait, check the exit status, free. */
void server_stop (struct server *server);

/* Send SIGTERM and go on; server_stop must follow. */
void server_terminate (struct server *server);

/* Send SIGKILL, wait, free. */
void server_kill (struct server *server);

/* As server_kill, for a server that may be ending in the orderly way. */
void server_kill_ending (struct server *server);

/* A client that dies may make nbdkit 1.32 abort on an assertion of its own.
 * True, and the server is gone and freed, when that happened; any other death
 * fails the test.
 */
bool server_was_aborted_by_nbdkit (struct server *server);

/* As server_stop, for a server that was bereft of a client: true when nbdkit
 * aborted on an assertion of its own instead of ending.
 */
bool server_stop_or_aborted (struct server *server);

/* The path of the log, to grep in. */
const char *server_log (const struct server *server);

/* The path of its socket, for clients of another kind. */
const char *server_socket (const struct server *server);

/* Its process, to look at. */
pid_t server_pid (const struct server *server);

/* A new connection, ready for requests, base:allocation among them. */
struct nbd_handle *server_connect (const struct server *server);

/* As server_connect, but NULL when the server goes away meanwhile. */
struct nbd_handle *server_try_connect (const struct server *server);

/* The same to an export that has a name. */
struct nbd_handle *server_connect_to (const struct server *server,
                                      const char *export);
struct nbd_handle *server_try_connect_to (const struct server *server,
                                          const char *export);

/* The same to a server that is not ours, which URI names. */
struct nbd_handle *server_connect_uri (const char *uri);

/* Disconnect in the protocol's way and close. */
void server_disconnect (struct nbd_handle *nbd);

#endif /* PLOOP_TEST_SERVER_H */
