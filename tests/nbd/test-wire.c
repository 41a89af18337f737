/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Proves that no client can bring the server out of step, whatever it sends:
 * handshakes of the old, the new and the fixed new style, options and export names
 * that nobody knows, lengths that are lies, requests of no bytes, of one byte, of
 * the most and of more, at the end of the disk and beyond it, commands and flags
 * that do not exist, and a header that is none.  Each is answered with the error
 * that the protocol names, or the connection is closed; every other client is
 * served on, and the disk is what it was.
 */

#include <config.h>

#include <errno.h>
#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk.h"
#include "harness.h"
#include "image.h"
#include "server.h"
#include "wire.h"

/* What the server says is the most that one request may have. */
#define MOST (64 * MIB)

/* The longest name of the protocol. */
#define LONGEST_NAME 4096u

#define FUA 1u                  /* NBD_CMD_FLAG_FUA */
#define UNKNOWN_FLAG 0x8000u

static const struct image_spec spec = {
  "wire", MADE_BY_PLOOP_IMG, 2, 64 * KIB, 66 * MIB + 512, NULL,
};

/* Whatever somebody did, another client has its disk. */
static void
expect_service (const struct server *server, const struct disk *disk,
                const char *after)
{
  struct nbd_handle *nbd = server_try_connect (server);

  if (nbd == NULL)
    fail ("after %s: %s", after, nbd_get_error ());
  disk_compare_nbd (disk, nbd, MIB, 0);
  disk_compare_nbd (disk, nbd, MIB, disk->size - MIB);
  server_disconnect (nbd);
}

/* ---- Handshakes -------------------------------------------------------- */

static void
expect_reply (uint32_t type, uint32_t expected, const char *what)
{
  if (type != expected)
    fail ("%s: the reply is 0x%08" PRIx32 ", must be 0x%08" PRIx32, what, type,
          expected);
}

/* That an export is named is all that there is, and all that comes back is its
 * size and flags.
 */
static void
test_export_name (const struct server *server, uint32_t flags)
{
  const int fd = wire_connect (server);
  uint8_t bytes[10 + 124];
  const size_t length = flags & WIRE_NO_ZEROES ? 10 : sizeof bytes;
  uint64_t size;

  wire_greet (fd);
  wire_client_flags (fd, flags);
  wire_option (fd, WIRE_OPT_EXPORT_NAME, NULL, 0);
  if (!wire_receive (fd, bytes, length))
    fail ("export name, flags %" PRIu32 ": no answer", flags);
  memcpy (&size, bytes, sizeof size);
  if (be64toh (size) != spec.size)
    fail ("export name, flags %" PRIu32 ": a disk of %" PRIu64, flags,
          be64toh (size));
  for (size_t i = 10; i < length; i++)
    if (bytes[i] != 0)
      fail ("export name: byte %zu of the padding is 0x%02x", i, bytes[i]);
  if (wire_try (fd, WIRE_FLUSH, 0, 0, 0) != 0)
    fail ("export name, flags %" PRIu32 ": a flush fails", flags);
  wire_close (fd);
}

static int
greeted (const struct server *server)
{
  const int fd = wire_connect (server);

  if (wire_greet (fd) != (WIRE_FIXED_NEWSTYLE | WIRE_NO_ZEROES))
    fail ("the server's handshake flags");
  wire_client_flags (fd, WIRE_FIXED_NEWSTYLE | WIRE_NO_ZEROES);
  return fd;
}

/* What is refused does not end the negotiation. */
static void
test_options (const struct server *server)
{
  const int fd = greeted (server);
  static const size_t lengths[] = { 1, 255, 256, 4095, LONGEST_NAME };
  uint8_t payload[LONGEST_NAME + 7] = { 0 };
  char name[LONGEST_NAME + 1];
  uint32_t length;

  wire_option (fd, 0x1234, payload, 100);
  expect_reply (wire_option_reply (fd, 0x1234, NULL, 0), WIRE_REP_ERR_UNSUP,
                "an option that nobody knows");
  wire_option (fd, WIRE_OPT_LIST, payload, 1);
  expect_reply (wire_option_reply (fd, WIRE_OPT_LIST, NULL, 0),
                WIRE_REP_ERR_INVALID, "a list with data");
  wire_option (fd, WIRE_OPT_LIST, NULL, 0);
  expect_reply (wire_option_reply (fd, WIRE_OPT_LIST, NULL, 0),
                WIRE_REP_SERVER, "a list");
  expect_reply (wire_option_reply (fd, WIRE_OPT_LIST, NULL, 0), WIRE_REP_ACK,
                "the end of a list");

  for (size_t i = 0; i < ARRAY_SIZE (lengths); i++) {
    memset (name, 'x', lengths[i]);
    name[lengths[i]] = '\0';
    length = wire_go_payload (payload, name);
    wire_option (fd, WIRE_OPT_GO, payload, length);
    expect_reply (wire_option_reply (fd, WIRE_OPT_GO, NULL, 0),
                  WIRE_REP_ERR_UNKNOWN, "a name that no export has");
    wire_option (fd, WIRE_OPT_INFO, payload, length);
    expect_reply (wire_option_reply (fd, WIRE_OPT_INFO, NULL, 0),
                  WIRE_REP_ERR_UNKNOWN, "a name that no export has");
  }
  /* A name that is said to be longer than what was sent. */
  length = wire_go_payload (payload, "");
  payload[2] = 1;
  wire_option (fd, WIRE_OPT_GO, payload, length);
  expect_reply (wire_option_reply (fd, WIRE_OPT_GO, NULL, 0),
                WIRE_REP_ERR_INVALID, "a name that is not there");

  length = wire_go_payload (payload, "");
  wire_option (fd, WIRE_OPT_INFO, payload, length);
  expect_reply (wire_option_reply (fd, WIRE_OPT_INFO, NULL, 0), WIRE_REP_INFO,
                "information");
  expect_reply (wire_option_reply (fd, WIRE_OPT_INFO, NULL, 0), WIRE_REP_ACK,
                "the end of information");
  wire_option (fd, WIRE_OPT_ABORT, NULL, 0);
  expect_reply (wire_option_reply (fd, WIRE_OPT_ABORT, NULL, 0), WIRE_REP_ACK,
                "an abort");
  wire_expect_end (fd, "an abort");
  close (fd);
}

/* After these there is nothing to say to each other. */
static void
test_broken_handshakes (const struct server *server)
{
  static const uint8_t junk[64] = "GET / HTTP/1.1\r\nHost: example\r\n\r\n";
  char name[LONGEST_NAME + 1];
  int fd = wire_connect (server);

  wire_greet (fd);
  wire_client_flags (fd, UINT32_C (0x80000000));
  wire_expect_end (fd, "flags that nobody knows");
  close (fd);

  fd = wire_connect (server);
  wire_greet (fd);
  wire_send (fd, junk, sizeof junk);
  wire_expect_end (fd, "another protocol");
  close (fd);

  fd = greeted (server);
  wire_send (fd, junk, sizeof junk);
  wire_expect_end (fd, "an option without its number");
  close (fd);

  fd = greeted (server);
  wire_option_lying (fd, WIRE_OPT_GO, NULL, 0, UINT32_MAX);
  wire_expect_end (fd, "an option of 4 GiB");
  close (fd);

  fd = greeted (server);
  memset (name, 'x', sizeof name);
  wire_option (fd, WIRE_OPT_EXPORT_NAME, name, LONGEST_NAME);
  wire_expect_end (fd, "a name that no export has, where no error can be sent");
  close (fd);
}

static void
test_handshakes (const struct server *server, const struct disk *disk)
{
  say ("handshakes");
  test_export_name (server, 0);
  test_export_name (server, WIRE_FIXED_NEWSTYLE);
  test_export_name (server, WIRE_FIXED_NEWSTYLE | WIRE_NO_ZEROES);
  test_options (server);
  test_broken_handshakes (server);
  expect_service (server, disk, "odd handshakes");
}

/* nbdkit -o: no options; the first that comes is the disk.  nbdkit 1.32 announces
 * flush and FUA there, and refuses them, whatever the plugin.
 */
static void
test_oldstyle (const char *path, const struct disk *disk)
{
  struct server *server = server_start_with (path, 0, "--oldstyle");
  const int fd = wire_connect (server);
  uint8_t greeting[8 + 8 + 8 + 4 + 124], byte = 0;
  uint64_t size, cookie;

  say ("the old style");
  if (!wire_receive (fd, greeting, sizeof greeting))
    fail ("old style: no greeting");
  memcpy (&size, greeting + 16, sizeof size);
  if (be64toh (size) != disk->size)
    fail ("old style: a disk of %" PRIu64, be64toh (size));
  wire_request (fd, WIRE_READ, 0, 1, disk->size - 1, 1);
  if (wire_reply (fd, &cookie) != 0 || !wire_receive (fd, &byte, 1))
    fail ("old style: a read fails");
  disk_compare (disk, &byte, 1, disk->size - 1, "old style");
  wire_close (fd);
  expect_service (server, disk, "an old client");
  server_stop (server);
}

/* nbdkit -s: a server of one client, on its own standard input and output. */
static void
test_single (const char *path, const struct disk *disk)
{
  const char *nbdkit = getenv ("NBDKIT");
  const char *preload = getenv ("NBDKIT_PRELOAD");
  char *command = format_string (
    "%s%s exec %s -s %s file=%s", preload && *preload ? "LD_PRELOAD=" : "",
    preload ? preload : "", nbdkit && *nbdkit ? nbdkit : "nbdkit",
    test_env ("PLUGIN"), path);
  char *argv[] = { (char *) "sh", (char *) "-c", command, NULL };
  struct nbd_handle *nbd = nbd_create ();

  say ("a server of one client");
  if (nbd == NULL || nbd_connect_command (nbd, argv) == -1)
    fail_nbd ("--single");
  disk_compare_nbd (disk, nbd, disk->size, 0);
  if (nbd_pwrite (nbd, disk->answered, 512, 0, LIBNBD_CMD_FLAG_FUA) == -1)
    fail_nbd ("--single: write");
  server_disconnect (nbd);
  free (command);
}

/* A server that pretends to be older, to which clients fall back. */
static void
test_masked (const char *path, const struct disk *disk, const char *option,
             uint16_t flags)
{
  struct server *server = server_start_with (path, 0, option);
  const int fd = wire_connect (server);

  say ("%s", option);
  if (wire_greet (fd) != flags)
    fail ("%s: other flags", option);
  close (fd);
  test_export_name (server, 0);
  expect_service (server, disk, option);
  server_stop (server);
}

/* ---- Requests ---------------------------------------------------------- */

static const char *const command_names[] = {
  "read", "write", "disconnect", "flush", "trim", "cache", "zero",
  "block status", "resize",
};

static void
expect_error (uint32_t error, uint32_t expected, uint16_t command,
              const char *what)
{
  if (error != expected)
    fail ("%s, %s: the error is %" PRIu32 ", must be %" PRIu32,
          command_names[command], what, error, expected);
}

/* No bytes: the protocol leaves open what that means, so it is an error (nbdkit
 * 1.32 takes it for one that is out of range) or nothing; but always an answer.
 */
static void
test_no_bytes (int fd)
{
  static const uint16_t commands[] = {
    WIRE_READ, WIRE_WRITE, WIRE_TRIM, WIRE_CACHE, WIRE_WRITE_ZEROES,
  };
  const uint64_t offsets[] = { 0, 1, spec.size - 1, spec.size };

  for (size_t i = 0; i < ARRAY_SIZE (commands); i++)
    for (size_t n = 0; n < ARRAY_SIZE (offsets); n++) {
      const uint32_t error =
        wire_try (fd, commands[i], 0, offsets[n], 0);

      if (error != 0 && error != WIRE_EINVAL && error != WIRE_ENOSPC)
        fail ("%s of no bytes at %" PRIu64 ": error %" PRIu32,
              command_names[commands[i]], offsets[n], error);
    }
}

/* Those without a payload; what is beyond the disk has the error of the
 * protocol, with or without space in the name.
 */
static void
test_beyond_the_end (int fd)
{
  static const uint16_t commands[] = {
    WIRE_READ, WIRE_TRIM, WIRE_CACHE, WIRE_WRITE_ZEROES,
  };
  static const struct { uint64_t from_end; uint32_t length; } ranges[] = {
    { 0, 1 }, { 1, 2 }, { 512, 513 }, { 0, 65536 },
    { UINT64_MAX, 1 },          /* one byte after the end */
  };
  const uint64_t far[] = {
    UINT64_C (1) << 41, INT64_MAX, UINT64_C (1) << 63, UINT64_MAX - 511,
    UINT64_MAX,
  };

  for (size_t i = 0; i < ARRAY_SIZE (commands); i++) {
    const uint16_t command = commands[i];
    const bool writes = command == WIRE_WRITE_ZEROES;

    for (size_t n = 0; n < ARRAY_SIZE (ranges) + ARRAY_SIZE (far); n++) {
      const bool is_near = n < ARRAY_SIZE (ranges);
      const uint64_t offset = is_near ? spec.size - ranges[n].from_end
                                      : far[n - ARRAY_SIZE (ranges)];
      const uint32_t length = is_near ? ranges[n].length : 512;

      expect_error (wire_try (fd, command, 0, offset, length),
                    writes ? WIRE_ENOSPC : WIRE_EINVAL, command,
                    "beyond the end");
    }
    expect_error (wire_try (fd, command, 0, 0, UINT32_MAX),
                  writes ? WIRE_ENOSPC : WIRE_EINVAL, command,
                  "of 4 GiB - 1");
  }
}

/* The last byte, and one in the middle of nothing. */
static void
test_one_byte (int fd, struct disk *disk)
{
  const uint64_t offsets[] = { 0, 511, 65535, 65536, 70001, spec.size - 1 };
  uint64_t cookie;
  uint8_t byte;

  for (size_t i = 0; i < ARRAY_SIZE (offsets); i++) {
    byte = (uint8_t) (0xA0 + i);
    disk_submit (disk, &byte, 1, offsets[i]);
    wire_request (fd, WIRE_WRITE, FUA, 77, offsets[i], 1);
    if (!wire_send (fd, &byte, 1) || wire_reply (fd, &cookie) != 0)
      fail ("a byte cannot be written at %" PRIu64, offsets[i]);
    disk_answer (disk, 1, offsets[i]);
    wire_request (fd, WIRE_READ, 0, 78, offsets[i], 1);
    if (wire_reply (fd, &cookie) != 0 || !wire_receive (fd, &byte, 1))
      fail ("a byte cannot be read at %" PRIu64, offsets[i]);
    disk_compare (disk, &byte, 1, offsets[i], "a byte");
  }
}

static void
test_unknown (int fd)
{
  static const uint16_t commands[] = { WIRE_RESIZE, 9, 255, 256, UINT16_MAX };
  static const uint16_t known[] = {
    WIRE_READ, WIRE_FLUSH, WIRE_TRIM, WIRE_CACHE, WIRE_WRITE_ZEROES,
  };

  for (size_t i = 0; i < ARRAY_SIZE (commands); i++)
    if (wire_try (fd, commands[i], 0, 0, 512) != WIRE_EINVAL)
      fail ("command %u is not refused with EINVAL", commands[i]);
  for (size_t i = 0; i < ARRAY_SIZE (known); i++)
    expect_error (wire_try (fd, known[i], UNKNOWN_FLAG, 0,
                            known[i] == WIRE_FLUSH ? 0 : 512),
                  WIRE_EINVAL, known[i], "with a flag that nobody knows");
  expect_error (wire_try (fd, WIRE_FLUSH, 0, 1, 0), WIRE_EINVAL, WIRE_FLUSH,
                "with an offset");
  expect_error (wire_try (fd, WIRE_FLUSH, 0, 0, 1), WIRE_EINVAL, WIRE_FLUSH,
                "with a length");
  /* Nobody has asked for structured replies, in which the answer would be. */
  expect_error (wire_try (fd, WIRE_BLOCK_STATUS, 0, 0, 512), WIRE_EINVAL,
                WIRE_BLOCK_STATUS, "that was not negotiated");
}

/* The most is served; one byte more is an error, and its payload is not taken
 * for requests.
 */
static void
test_most (int fd, struct disk *disk)
{
  uint8_t *buf = malloc (MOST + 1);
  uint64_t cookie;

  if (buf == NULL)
    abort ();
  memset (buf, 0x5A, MOST + 1);
  disk_submit (disk, buf, MOST, 7);
  wire_request (fd, WIRE_WRITE, 0, 1, 7, MOST);
  if (!wire_send (fd, buf, MOST) || wire_reply (fd, &cookie) != 0)
    fail ("a write of the most bytes fails");
  disk_answer (disk, MOST, 7);
  wire_request (fd, WIRE_READ, 0, 2, 7, MOST);
  if (wire_reply (fd, &cookie) != 0 || !wire_receive (fd, buf, MOST))
    fail ("a read of the most bytes fails");
  disk_compare (disk, buf, MOST, 7, "the most");

  if (wire_try (fd, WIRE_READ, 0, 0, MOST + 1) == 0)
    fail ("a read of more than the most is answered without an error");
  memset (buf, 0xBB, MOST + 1);
  wire_request (fd, WIRE_WRITE, 0, 3, 0, MOST + 1);
  if (!wire_send (fd, buf, MOST + 1) || wire_reply (fd, &cookie) == 0 ||
      cookie != 3)
    fail ("a write of more than the most is answered without an error");
  if (wire_try (fd, WIRE_FLUSH, 0, 0, 0) != 0)
    fail ("after a write of more than the most the connection is out of step");
  free (buf);
}

/* What cannot be skipped ends the connection. */
static void
test_broken_requests (const struct server *server)
{
  uint8_t bytes[WIRE_REQUEST_SIZE];
  int fd = wire_open (server, "", NULL);

  wire_request (fd, WIRE_WRITE, 0, 1, 0, UINT32_MAX);
  wire_expect_end (fd, "a write of 4 GiB - 1");
  close (fd);

  fd = wire_open (server, "", NULL);
  wire_build_request (bytes, WIRE_READ, 0, 1, 0, 512);
  bytes[0] ^= 1;
  wire_send (fd, bytes, sizeof bytes);
  wire_expect_end (fd, "a request without its number");
  close (fd);
}

static void
test_requests (const struct server *server, struct disk *disk)
{
  uint64_t size = 0;
  const int fd = wire_open (server, "", &size);

  say ("requests");
  if (size != disk->size)
    fail ("a disk of %" PRIu64, size);
  test_no_bytes (fd);
  test_beyond_the_end (fd);
  test_unknown (fd);
  test_one_byte (fd, disk);
  expect_service (server, disk, "odd requests");
  test_most (fd, disk);
  test_broken_requests (server);
  expect_service (server, disk, "requests that end the connection");
  /* Its connection is still in step after all that. */
  expect_error (wire_try (fd, WIRE_FLUSH, 0, 0, 0), 0, WIRE_FLUSH, "the last");
  wire_close (fd);
}

int
main (void)
{
  struct image_state state;
  struct server *server;
  struct disk *disk;
  char *path;

  test_begin ("test-wire");
  test_requires ("qemu-img");
  path = image_make (&spec);
  disk = disk_new (spec.size, spec.cluster_size);
  server = server_start (path, 0);
  test_handshakes (server, disk);
  test_requests (server, disk);
  server_stop (server);
  test_oldstyle (path, disk);
  test_single (path, disk);
  test_masked (path, disk, "--mask-handshake=0", 0);
  test_masked (path, disk, "--mask-handshake=1", WIRE_FIXED_NEWSTYLE);
  test_masked (path, disk, "--no-sr", WIRE_FIXED_NEWSTYLE | WIRE_NO_ZEROES);
  image_expect_clean (path, 0, &state);
  disk_compare_qemu (disk, path);
  disk_free (disk);
  free (path);
  return test_end ();
}
