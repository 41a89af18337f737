/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The client of wire.h.  Nothing is kept beside the socket, so that a test can
 * leave the protocol's path wherever it wants.  A server that neither answers
 * nor closes the connection fails the test.
 */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "harness.h"
#include "wire.h"

#define NBDMAGIC UINT64_C (0x4e42444d41474943)
#define IHAVEOPT UINT64_C (0x49484156454f5054)
#define REPLY_TO_OPTION UINT64_C (0x3e889045565a9)
#define REQUEST UINT32_C (0x25609513)
#define SIMPLE_REPLY UINT32_C (0x67446698)

/* NBD_INFO_EXPORT, the information that every server gives. */
#define INFO_EXPORT 0

int
wire_connect (const struct server *server)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  const char *path = server_socket (server);
  const int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (strlen (path) >= sizeof address.sun_path)
    fail ("%s: too long for a socket", path);
  strcpy (address.sun_path, path);
  if (fd == -1 ||
      connect (fd, (struct sockaddr *) &address, sizeof address) == -1)
    fail ("%s: %m", path);
  return fd;
}

static void
wait_for (int fd, short events, const char *what)
{
  struct pollfd poll_fd = { .fd = fd, .events = events };
  int r;

  do
    r = poll (&poll_fd, 1, HANG_SECONDS * 1000);
  while (r == -1 && errno == EINTR);
  if (r != 1)
    fail ("the server neither %s nor closes the connection", what);
}

bool
wire_send (int fd, const void *data, size_t length)
{
  const uint8_t *p = data;
  ssize_t n;

  while (length > 0) {
    wait_for (fd, POLLOUT, "reads");
    n = send (fd, p, length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n == -1 && (errno == EINTR || errno == EAGAIN))
      continue;
    if (n == -1)
      return false;
    p += n;
    length -= (size_t) n;
  }
  return true;
}

bool
wire_receive (int fd, void *data, size_t length)
{
  uint8_t *p = data;
  ssize_t n;

  while (length > 0) {
    wait_for (fd, POLLIN, "answers");
    n = recv (fd, p, length, 0);
    if (n == -1 && errno == EINTR)
      continue;
    if (n <= 0)
      return false;
    p += n;
    length -= (size_t) n;
  }
  return true;
}

void
wire_expect_end (int fd, const char *what)
{
  const double limit = now_seconds () + HANG_SECONDS;
  uint8_t byte;

  while (wire_receive (fd, &byte, 1))
    if (now_seconds () > limit)
      fail ("%s: the server goes on sending", what);
}

static void
must_send (int fd, const void *data, size_t length, const char *what)
{
  if (!wire_send (fd, data, length))
    fail ("the server has closed the connection before %s", what);
}

static void
must_receive (int fd, void *data, size_t length, const char *what)
{
  if (!wire_receive (fd, data, length))
    fail ("the server has closed the connection instead of sending %s", what);
}

/* ---- Numbers ----------------------------------------------------------- */

static void
put16 (uint8_t *bytes, uint16_t value)
{
  value = htobe16 (value);
  memcpy (bytes, &value, sizeof value);
}

static void
put32 (uint8_t *bytes, uint32_t value)
{
  value = htobe32 (value);
  memcpy (bytes, &value, sizeof value);
}

static void
put64 (uint8_t *bytes, uint64_t value)
{
  value = htobe64 (value);
  memcpy (bytes, &value, sizeof value);
}

static uint16_t
get16 (const uint8_t *bytes)
{
  uint16_t value;

  memcpy (&value, bytes, sizeof value);
  return be16toh (value);
}

static uint32_t
get32 (const uint8_t *bytes)
{
  uint32_t value;

  memcpy (&value, bytes, sizeof value);
  return be32toh (value);
}

static uint64_t
get64 (const uint8_t *bytes)
{
  uint64_t value;

  memcpy (&value, bytes, sizeof value);
  return be64toh (value);
}

/* ---- The handshake ----------------------------------------------------- */

uint16_t
wire_greet (int fd)
{
  uint8_t bytes[18];

  must_receive (fd, bytes, sizeof bytes, "its greeting");
  if (get64 (bytes) != NBDMAGIC || get64 (bytes + 8) != IHAVEOPT)
    fail ("the greeting is not that of the new style");
  return get16 (bytes + 16);
}

void
wire_client_flags (int fd, uint32_t flags)
{
  uint8_t bytes[4];

  put32 (bytes, flags);
  must_send (fd, bytes, sizeof bytes, "the client's flags");
}

void
wire_option_lying (int fd, uint32_t option, const void *data, uint32_t length,
                   uint32_t said)
{
  uint8_t header[16];

  put64 (header, IHAVEOPT);
  put32 (header + 8, option);
  put32 (header + 12, said);
  must_send (fd, header, sizeof header, "an option");
  /* It may refuse the length before it has the data. */
  if (length > 0)
    wire_send (fd, data, length);
}

void
wire_option (int fd, uint32_t option, const void *data, uint32_t length)
{
  wire_option_lying (fd, option, data, length, length);
}

uint32_t
wire_option_reply (int fd, uint32_t option, void *data, uint32_t length)
{
  uint8_t header[20], rest;
  uint32_t carried, taken;

  must_receive (fd, header, sizeof header, "a reply to an option");
  if (get64 (header) != REPLY_TO_OPTION || get32 (header + 8) != option)
    fail ("not a reply to the option %" PRIu32, option);
  carried = get32 (header + 16);
  taken = data == NULL ? 0 : carried < length ? carried : length;
  if (taken > 0)
    must_receive (fd, data, taken, "what the reply carries");
  for (; taken < carried; taken++)
    must_receive (fd, &rest, 1, "the rest of a reply");
  return get32 (header + 12);
}

uint32_t
wire_go_payload (uint8_t *data, const char *name)
{
  const uint32_t length = (uint32_t) strlen (name);

  put32 (data, length);
  memcpy (data + 4, name, length);
  put16 (data + 4 + length, 0);
  return length + 6;
}

int
wire_open (const struct server *server, const char *name, uint64_t *size)
{
  const int fd = wire_connect (server);
  uint8_t *payload = malloc (strlen (name) + 6);
  uint8_t info[12];
  uint32_t type;

  if (payload == NULL)
    abort ();
  wire_greet (fd);
  wire_client_flags (fd, WIRE_FIXED_NEWSTYLE | WIRE_NO_ZEROES);
  wire_option (fd, WIRE_OPT_GO, payload, wire_go_payload (payload, name));
  free (payload);
  while ((type = wire_option_reply (fd, WIRE_OPT_GO, info, sizeof info))
         == WIRE_REP_INFO)
    if (get16 (info) == INFO_EXPORT && size != NULL)
      *size = get64 (info + 2);
  if (type != WIRE_REP_ACK)
    fail ("export '%s' was refused: 0x%" PRIx32, name, type);
  return fd;
}

/* ---- Requests ---------------------------------------------------------- */

void
wire_build_request (uint8_t *bytes, uint16_t command, uint16_t flags,
                    uint64_t cookie, uint64_t offset, uint32_t length)
{
  put32 (bytes, REQUEST);
  put16 (bytes + 4, flags);
  put16 (bytes + 6, command);
  put64 (bytes + 8, cookie);
  put64 (bytes + 16, offset);
  put32 (bytes + 24, length);
}

void
wire_request (int fd, uint16_t command, uint16_t flags, uint64_t cookie,
              uint64_t offset, uint32_t length)
{
  uint8_t bytes[WIRE_REQUEST_SIZE];

  wire_build_request (bytes, command, flags, cookie, offset, length);
  must_send (fd, bytes, sizeof bytes, "a request");
}

uint32_t
wire_reply (int fd, uint64_t *cookie)
{
  uint8_t bytes[16];

  must_receive (fd, bytes, sizeof bytes, "a reply");
  if (get32 (bytes) != SIMPLE_REPLY)
    fail ("not a reply: 0x%08" PRIx32, get32 (bytes));
  *cookie = get64 (bytes + 8);
  return get32 (bytes + 4);
}

uint32_t
wire_try (int fd, uint16_t command, uint16_t flags, uint64_t offset,
          uint32_t length)
{
  static uint64_t last;
  uint64_t cookie;
  uint32_t error;

  wire_request (fd, command, flags, ++last, offset, length);
  error = wire_reply (fd, &cookie);
  if (cookie != last)
    fail ("a reply to request %" PRIu64 " instead of %" PRIu64, cookie, last);
  return error;
}

void
wire_close (int fd)
{
  wire_request (fd, WIRE_DISC, 0, 0, 0, 0);
  wire_expect_end (fd, "disconnected");
  close (fd);
}
