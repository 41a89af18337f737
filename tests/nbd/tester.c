/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A tester for any NBD server, by hand or from test-tester.sh: see `usage' below, and
 * TESTING.md.  It is what the tests of this directory are made of (load.h, disk.h),
 * behind a command line, and a URI in the place of a server of theirs.
 *
 * All that is random follows from PLOOP_TEST_SEED, which is printed.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libnbd.h>

#include "disk.h"
#include "harness.h"
#include "load.h"
#include "rate.h"
#include "replay.h"
#include "server.h"
#include "trace.h"

#define SECTOR 512u

static const char usage[] =
  "Usage: tester MODE [OPTION...] URI\n"
  "\n"
  "integrity   random requests, each answer checked: what is read is what was\n"
  "            written, at once, on other connections, and after each round\n"
  "throughput  requests of one size: MB/s, IOPS, and how long they take\n"
  "replay      the requests of a trace, what is read checked\n"
  "trace       write a trace that is like mkfs or boot to the file URI\n"
  "\n"
  "All but throughput --write=0 and trace destroy what is on the disk.\n"
  "\n"
  "  --connections=N   at the same time (1; integrity: up to 8)\n"
  "  --depth=N         requests in flight of each (16; integrity: up to 32)\n"
  "  --size=BYTES      of the disk, from its start (integrity: at most 256M;\n"
  "                    trace: must be given)\n"
  "  --between=COMMAND integrity, replay: run by a shell after each round, and then\n"
  "                    all is compared: to restart the server\n"
  "  --requests=N      integrity: in each round (2000)\n"
  "  --rounds=N        integrity (1)\n"
  "  --block=BYTES     throughput: of a request (4K)\n"
  "  --seconds=N       throughput (5)\n"
  "  --write=PERCENT   throughput: of the requests (0)\n"
  "  --sequential      throughput: not at random\n"
  "  --trace=FILE      replay: what is sent\n"
  "  --like=mkfs|boot  trace: what it looks like\n";

struct arguments {
  const char *mode, *uri;
  const char *between, *trace, *like;
  uint64_t size, block;
  uint64_t connections, depth, requests, rounds, seconds, write_percent;
  bool sequential;
};

/* ---- The command line -------------------------------------------------- */

static _Noreturn void
misused (const char *format, ...) PRINTF_LIKE (1, 2);

static _Noreturn void
misused (const char *format, ...)
{
  va_list args;

  va_start (args, format);
  fprintf (stderr, "tester: ");
  vfprintf (stderr, format, args);
  fprintf (stderr, "\n\n%s", usage);
  va_end (args);
  exit (2);
}

static uint64_t
parse_number (const char *option, const char *text, uint64_t least,
              uint64_t most)
{
  uint64_t value;

  if (!trace_parse_bytes (text, &value) || value < least || value > most)
    misused ("--%s=%s: must be from %" PRIu64 " to %" PRIu64, option, text,
             least, most);
  return value;
}

static void
parse (struct arguments *a, int argc, char **argv)
{
  enum { CONNECTIONS = 1, DEPTH, SIZE, BETWEEN, REQUESTS, ROUNDS, BLOCK,
         SECONDS, WRITE, SEQUENTIAL, TRACE, LIKE };
  static const struct option options[] = {
    { "connections", required_argument, NULL, CONNECTIONS },
    { "depth", required_argument, NULL, DEPTH },
    { "size", required_argument, NULL, SIZE },
    { "between", required_argument, NULL, BETWEEN },
    { "requests", required_argument, NULL, REQUESTS },
    { "rounds", required_argument, NULL, ROUNDS },
    { "block", required_argument, NULL, BLOCK },
    { "seconds", required_argument, NULL, SECONDS },
    { "write", required_argument, NULL, WRITE },
    { "sequential", no_argument, NULL, SEQUENTIAL },
    { "trace", required_argument, NULL, TRACE },
    { "like", required_argument, NULL, LIKE },
    { NULL, 0, NULL, 0 },
  };
  int option, index;

  while ((option = getopt_long (argc, argv, "", options, &index)) != -1) {
    const char *name = option == '?' ? "" : options[index].name;

    switch (option) {
    case CONNECTIONS:
      a->connections = parse_number (name, optarg, 1, RATE_MAX_CONNECTIONS);
      break;
    case DEPTH: a->depth = parse_number (name, optarg, 1, RATE_MAX_DEPTH); break;
    case SIZE: a->size = parse_number (name, optarg, MIB, INT64_MAX); break;
    case BETWEEN: a->between = optarg; break;
    case REQUESTS:
      a->requests = parse_number (name, optarg, 1, INT64_MAX);
      break;
    case ROUNDS: a->rounds = parse_number (name, optarg, 1, UINT32_MAX); break;
    case BLOCK: a->block = parse_number (name, optarg, 1, 32 * MIB); break;
    case SECONDS: a->seconds = parse_number (name, optarg, 1, 86400); break;
    case WRITE: a->write_percent = parse_number (name, optarg, 0, 100); break;
    case SEQUENTIAL: a->sequential = true; break;
    case TRACE: a->trace = optarg; break;
    case LIKE: a->like = optarg; break;
    default: misused ("an option that is not known, or has no value");
    }
  }
  if (argc - optind != 2)
    misused ("MODE and URI are needed, and no more");
  a->mode = argv[optind];
  a->uri = argv[optind + 1];
}

/* ---- The server -------------------------------------------------------- */

/* What a server can do that we do not know. */
struct abilities {
  uint64_t size;
  bool small_blocks;            /* of one byte */
  bool space;                   /* trims, zeroes and block status */
};

static struct abilities
ask_server (const struct arguments *a)
{
  struct nbd_handle *nbd = server_connect_uri (a->uri);
  const int64_t minimum = nbd_get_block_size (nbd, LIBNBD_SIZE_MINIMUM);
  const struct abilities abilities = {
    .size = (uint64_t) nbd_get_size (nbd),
    .small_blocks = minimum <= 1,
    .space = nbd_can_trim (nbd) == 1 && nbd_can_zero (nbd) == 1 && minimum <= 1 &&
             nbd_can_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1,
  };

  if (minimum > (int64_t) SECTOR)
    fail ("%s: its blocks are of %" PRIi64 " bytes, must be of %u at most",
          a->uri, minimum, SECTOR);
  if (nbd_is_read_only (nbd) == 1)
    fail ("%s: is read-only", a->uri);
  if (a->connections > 1 && nbd_can_multi_conn (nbd) != 1)
    fail ("%s: does not allow several connections (multi-conn)", a->uri);
  server_disconnect (nbd);
  return abilities;
}

static void
run_between (const struct arguments *a)
{
  int status;

  if (a->between == NULL)
    return;
  fflush (stdout);
  status = system (a->between);
  if (status != 0)
    fail ("--between: '%s' ends with status 0x%x", a->between, status);
}

/* ---- Modes ------------------------------------------------------------- */

static void
compare_all (const struct arguments *a, struct disk *disk, bool extents)
{
  struct nbd_handle *nbd = server_connect_uri (a->uri);

  disk_compare_nbd (disk, nbd, disk->size, 0);
  if (extents && (uint64_t) nbd_get_size (nbd) == disk->size)
    disk_compare_extents (disk, nbd);
  server_disconnect (nbd);
}

static void
test_integrity (const struct arguments *a)
{
  const struct abilities abilities = ask_server (a);
  const uint64_t wanted = a->size != 0 ? a->size : 256 * MIB;
  const uint64_t size = wanted < abilities.size ? wanted : abilities.size;
  struct disk *disk = disk_new (size, 64 * KIB);
  struct load load = {
    .disk = disk, .uri = a->uri, .length = size, .stripe = 4096,
    .nr_connections = (unsigned) a->connections, .depth = (unsigned) a->depth,
    .nr_requests = a->requests, .max_length = MIB, .read_percent = 50,
    .aligned = !abilities.small_blocks, .space = abilities.space,
  };
  struct nbd_handle *nbd = server_connect_uri (a->uri);

  if (a->connections > LOAD_MAX_CONNECTIONS || a->depth > 32)
    fail ("integrity: %u connections and 32 requests in flight are the most",
          LOAD_MAX_CONNECTIONS);
  disk_expect_trims (disk);
  disk->long_extents = true;
  disk_load_nbd (disk, nbd, size, 0);
  server_disconnect (nbd);
  for (uint64_t round = 0; round < a->rounds; round++) {
    load.stream = round;
    load_run (&load);
    compare_all (a, disk, abilities.space);
    run_between (a);
    compare_all (a, disk, abilities.space);
    say ("round %" PRIu64 ": all is as it must be", round + 1);
  }
  disk_free (disk);
}

static void
test_throughput (const struct arguments *a)
{
  struct nbd_handle *nbd = server_connect_uri (a->uri);
  const uint64_t size = (uint64_t) nbd_get_size (nbd);
  const struct rate rate = {
    .uri = a->uri, .nr_connections = (unsigned) a->connections,
    .depth = (unsigned) a->depth, .block = a->block,
    .length = a->size != 0 && a->size < size ? a->size : size,
    .seconds = (double) a->seconds,
    .write_percent = (unsigned) a->write_percent,
    .sequential = a->sequential,
  };

  if (rate.length / rate.block < rate.nr_connections)
    fail ("%s: has no %u blocks of %" PRIu64 " bytes", a->uri,
          rate.nr_connections, rate.block);
  server_disconnect (nbd);
  rate_run (&rate);
}

static void
test_replay (const struct arguments *a)
{
  struct trace trace;
  FILE *file = a->trace == NULL ? NULL : fopen (a->trace, "r");
  const struct replay replay = {
    .uri = a->uri, .nr_connections = (unsigned) a->connections,
    .depth = (unsigned) a->depth, .trace = &trace,
  };
  struct disk *disk;
  double begin;

  if (a->trace == NULL)
    misused ("replay needs --trace=FILE");
  if (file == NULL)
    fail ("%s: %m", a->trace);
  if (a->connections > REPLAY_MAX_CONNECTIONS || a->depth > REPLAY_MAX_DEPTH)
    fail ("replay: %u connections and %u requests in flight are the most",
          REPLAY_MAX_CONNECTIONS, REPLAY_MAX_DEPTH);
  trace_read (&trace, file, a->trace);
  fclose (file);
  ask_server (a);
  begin = now_seconds ();
  disk = replay_run (&replay);
  say ("%zu requests of %s in %.2f s", trace.nr_requests, a->trace,
       now_seconds () - begin);
  run_between (a);
  replay_compare (&replay, disk);
  disk_free (disk);
  trace_free (&trace);
}

static void
make_trace (const struct arguments *a)
{
  const bool is_mkfs = a->like != NULL && strcmp (a->like, "mkfs") == 0;
  FILE *file;

  if (!is_mkfs && (a->like == NULL || strcmp (a->like, "boot") != 0))
    misused ("trace needs --like=mkfs or --like=boot");
  if (a->size < 32 * MIB)
    misused ("trace needs --size, of 32M at least");
  file = fopen (a->uri, "w");
  if (file == NULL)
    fail ("%s: %m", a->uri);
  if (is_mkfs)
    trace_write_mkfs (file, a->size);
  else
    trace_write_boot (file, a->size);
  if (ferror (file) || fclose (file) != 0)
    fail ("%s: %m", a->uri);
}

int
main (int argc, char **argv)
{
  static const struct {
    const char *name;
    void (*run) (const struct arguments *);
  } modes[] = {
    { "integrity", test_integrity },
    { "throughput", test_throughput },
    { "replay", test_replay },
    { "trace", make_trace },
  };
  struct arguments arguments = {
    .connections = 1, .depth = 16, .requests = 2000, .rounds = 1,
    .block = 4 * KIB, .seconds = 5,
  };

  parse (&arguments, argc, argv);
  for (size_t i = 0; i < ARRAY_SIZE (modes); i++)
    if (strcmp (arguments.mode, modes[i].name) == 0) {
      test_begin ("tester");
      alarm (0);                /* by hand it may take as long as it likes */
      modes[i].run (&arguments);
      return test_end ();
    }
  misused ("%s: there is no such mode", arguments.mode);
}
