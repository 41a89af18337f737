/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A client that sends what it is told to, also what no library would: half a
 * handshake, unknown options and commands, lengths that nobody may ask for, and
 * the first bytes of a write's payload.  Names and numbers are those of the NBD
 * protocol's text; all is big-endian on the wire, and in the host's order here.
 */

#ifndef PLOOP_TEST_WIRE_H
#define PLOOP_TEST_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server.h"

/* Handshake flags: the server's, and those that a client answers with. */
enum { WIRE_FIXED_NEWSTYLE = 1, WIRE_NO_ZEROES = 2 };

enum wire_option_type {
  WIRE_OPT_EXPORT_NAME = 1, WIRE_OPT_ABORT = 2, WIRE_OPT_LIST = 3,
  WIRE_OPT_INFO = 6, WIRE_OPT_GO = 7,
};

enum wire_option_reply {
  WIRE_REP_ACK = 1, WIRE_REP_SERVER = 2, WIRE_REP_INFO = 3,
};
#define WIRE_REP_ERR UINT32_C (0x80000000)
#define WIRE_REP_ERR_UNSUP (WIRE_REP_ERR | 1)
#define WIRE_REP_ERR_INVALID (WIRE_REP_ERR | 3)
#define WIRE_REP_ERR_UNKNOWN (WIRE_REP_ERR | 6)

enum wire_command {
  WIRE_READ, WIRE_WRITE, WIRE_DISC, WIRE_FLUSH, WIRE_TRIM, WIRE_CACHE,
  WIRE_WRITE_ZEROES, WIRE_BLOCK_STATUS, WIRE_RESIZE,
};

/* Of the protocol, not of the host. */
enum {
  WIRE_EPERM = 1, WIRE_EIO = 5, WIRE_ENOMEM = 12, WIRE_EINVAL = 22,
  WIRE_ENOSPC = 28, WIRE_EOVERFLOW = 75, WIRE_ENOTSUP = 95,
};

#define WIRE_REQUEST_SIZE 28u

/* A socket that is connected to SERVER, and nothing sent. */
int wire_connect (const struct server *server);

/* False when the server has closed the connection.  Hanging fails. */
bool wire_send (int fd, const void *data, size_t length);
bool wire_receive (int fd, void *data, size_t length);

/* Read on, whatever it is, until the server closes the connection. */
void wire_expect_end (int fd, const char *what);

/* Read the server's greeting; returns its handshake flags. */
uint16_t wire_greet (int fd);

/* Answer it. */
void wire_client_flags (int fd, uint32_t flags);

/* An option with LENGTH bytes of DATA; its length may be said to be another. */
void wire_option (int fd, uint32_t option, const void *data, uint32_t length);
void wire_option_lying (int fd, uint32_t option, const void *data,
                        uint32_t length, uint32_t said);

/* The type of the next reply, which must be to OPTION, and in DATA (if not NULL)
 * what it carries, LENGTH bytes at most; the rest is dropped.
 */
uint32_t wire_option_reply (int fd, uint32_t option, void *data,
                            uint32_t length);

/* The payload of OPT_GO and OPT_INFO for the export NAME, without requests for
 * information.  Returns its length; DATA has room for 6 bytes more than NAME.
 */
uint32_t wire_go_payload (uint8_t *data, const char *name);

/* All of the above: ready for requests on the export NAME.  SIZE is the disk's. */
int wire_open (const struct server *server, const char *name, uint64_t *size);

/* The header of a request, in WIRE_REQUEST_SIZE bytes. */
void wire_build_request (uint8_t *bytes, uint16_t command, uint16_t flags,
                         uint64_t cookie, uint64_t offset, uint32_t length);
void wire_request (int fd, uint16_t command, uint16_t flags, uint64_t cookie,
                   uint64_t offset, uint32_t length);

/* The next simple reply: its error, and in *COOKIE which request it is for. */
uint32_t wire_reply (int fd, uint64_t *cookie);

/* A request without payload either way, and its error. */
uint32_t wire_try (int fd, uint16_t command, uint16_t flags, uint64_t offset,
                   uint32_t length);

/* Disconnect in the protocol's way and close. */
void wire_close (int fd);

#endif /* PLOOP_TEST_WIRE_H */
