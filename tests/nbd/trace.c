/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Traces, read and made up; see trace.h.  Those that are made up are not recorded:
 * they have the sizes, the order and the flushes that file systems are known for, and
 * the seed decides about the rest.
 */

#include <config.h>

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "trace.h"

#define BLOCK (4 * KIB)
#define GROUP (128 * MIB)       /* ext4's block group, of 4 KiB blocks */

/* ---- Reading ----------------------------------------------------------- */

bool
trace_parse_bytes (const char *text, uint64_t *bytes)
{
  static const char units[] = "KMGT";
  const char *unit;
  char *end;
  unsigned shift = 0;

  if (!isdigit ((unsigned char) *text))
    return false;
  *bytes = strtoull (text, &end, 10);
  if (*end != '\0') {
    unit = strchr (units, *end);
    if (unit == NULL || end[1] != '\0')
      return false;
    shift = 10 * (unsigned) (unit - units + 1);
  }
  if (*bytes > (uint64_t) INT64_MAX >> shift)
    return false;
  *bytes <<= shift;
  return true;
}

static bool
has_range (enum trace_kind kind)
{
  return kind != TRACE_FLUSH && kind != TRACE_BARRIER;
}

static bool
parse_request (char *line, struct trace_request *request)
{
  char *save = NULL;
  const char *kind = strtok_r (line, " \t\n", &save);
  const char *offset, *length, *flag;

  if (strlen (kind) != 1 || strchr ("rwztfb", *kind) == NULL)
    return false;
  *request = (struct trace_request) { .kind = (enum trace_kind) *kind };
  if (has_range (request->kind)) {
    offset = strtok_r (NULL, " \t\n", &save);
    length = strtok_r (NULL, " \t\n", &save);
    if (offset == NULL || length == NULL ||
        !trace_parse_bytes (offset, &request->offset) ||
        !trace_parse_bytes (length, &request->length) || request->length == 0)
      return false;
  }
  flag = strtok_r (NULL, " \t\n", &save);
  if (flag == NULL)
    return true;
  request->fua = strcmp (flag, "fua") == 0 &&
                 (request->kind == TRACE_WRITE || request->kind == TRACE_ZERO);
  return request->fua && strtok_r (NULL, " \t\n", &save) == NULL;
}

void
trace_read (struct trace *trace, FILE *file, const char *name)
{
  char line[256];
  size_t number = 0, room = 0;

  *trace = (struct trace) { .requests = NULL };
  while (fgets (line, sizeof line, file) != NULL) {
    number++;
    line[strcspn (line, "#\n")] = '\0';
    if (line[strspn (line, " \t")] == '\0')
      continue;
    if (trace->nr_requests == room) {
      room = room == 0 ? 256 : 2 * room;
      trace->requests =
        realloc (trace->requests, room * sizeof *trace->requests);
      if (trace->requests == NULL)
        abort ();
    }
    if (!parse_request (line, &trace->requests[trace->nr_requests++]))
      fail ("%s: line %zu is no request: r, w, z or t OFFSET LENGTH, f or b",
            name, number);
  }
  if (ferror (file))
    fail ("%s: %m", name);
}

void
trace_free (struct trace *trace)
{
  free (trace->requests);
}

/* ---- Making up --------------------------------------------------------- */

static void
put (FILE *file, enum trace_kind kind, uint64_t offset, uint64_t length)
{
  fprintf (file, "%c %" PRIu64 " %" PRIu64 "\n", kind, offset, length);
}

static void
put_flush (FILE *file)
{
  fprintf (file, "b\nf\n");
}

static uint64_t
at_most (uint64_t value, uint64_t most)
{
  return value < most ? value : most;
}

/* In pieces of PIECE bytes, as a kernel cuts long requests. */
static void
put_range (FILE *file, enum trace_kind kind, uint64_t offset, uint64_t length,
           uint64_t piece)
{
  for (uint64_t done = 0; done < length; done += piece)
    put (file, kind, offset + done, at_most (piece, length - done));
}

/* Superblock and descriptors (some groups have a copy), bitmaps, inode table. */
static void
put_group (FILE *file, uint64_t number, uint64_t begin, uint64_t size)
{
  const uint64_t table = at_most (8 * MIB, size / 16) / BLOCK * BLOCK;
  uint64_t at = begin;

  if (number < 2 || number % 3 == 0 || number % 5 == 0) {
    put (file, TRACE_WRITE, at + (number == 0 ? KIB : 0), KIB);
    put (file, TRACE_WRITE, at + BLOCK, BLOCK);
  }
  at += 16 * BLOCK;
  put (file, TRACE_WRITE, at, BLOCK);
  put (file, TRACE_WRITE, at + BLOCK, BLOCK);
  put_range (file, TRACE_ZERO, at + 2 * BLOCK, table, 512 * KIB);
}

void
trace_write_mkfs (FILE *file, uint64_t size)
{
  const uint64_t journal = at_most (64 * MIB, size / 16) / BLOCK * BLOCK;
  uint64_t number = 0;

  fprintf (file, "# like mkfs.ext4, %" PRIu64 " bytes\n", size);
  put (file, TRACE_READ, 0, BLOCK);
  put (file, TRACE_READ, size - BLOCK, BLOCK);
  put_range (file, TRACE_TRIM, 0, size, GIB);
  fprintf (file, "b\n");
  for (uint64_t begin = 0; begin + MIB <= size; begin += GROUP, number++)
    put_group (file, number, begin, at_most (GROUP, size - begin));
  fprintf (file, "b\n");
  put_range (file, TRACE_ZERO, size / 2 / BLOCK * BLOCK, journal, 512 * KIB);
  put (file, TRACE_WRITE, size / 2 / BLOCK * BLOCK, KIB);
  put_flush (file);
  fprintf (file, "w %" PRIu64 " %" PRIu64 " fua\n", KIB, KIB);
  put (file, TRACE_READ, 0, 64 * KIB);
  put_flush (file);
}

/* Somewhere in the first nine tenths, on a block, with room for LENGTH. */
static uint64_t
somewhere (struct rng *rng, uint64_t size, uint64_t length)
{
  return rng_below (rng, (size / 10 * 9 - length) / BLOCK) * BLOCK;
}

/* A file is read: its inode, then the rest, more and more ahead. */
static void
put_file (FILE *file, struct rng *rng, uint64_t size)
{
  const uint64_t length = (1 + rng_below (rng, 64)) * BLOCK;
  const uint64_t begin = somewhere (rng, size, length);
  uint64_t ahead = 4 * BLOCK;

  put (file, TRACE_READ, somewhere (rng, size, BLOCK), BLOCK);
  for (uint64_t done = 0; done < length; done += ahead, ahead *= 2) {
    ahead = at_most (ahead, 128 * KIB);
    put (file, TRACE_READ, begin + done, at_most (ahead, length - done));
  }
}

/* A transaction: blocks one after the other, the record that commits them, and what
 * they say, where it belongs.
 */
static void
put_transaction (FILE *file, struct rng *rng, uint64_t size, uint64_t *journal)
{
  const uint64_t nr = 1 + rng_below (rng, 8);
  const uint64_t begin = size / 10 * 9 / BLOCK * BLOCK;

  if (*journal + (nr + 2) * BLOCK > size - begin)
    *journal = 0;
  put (file, TRACE_WRITE, begin + *journal, (nr + 1) * BLOCK);
  put_flush (file);
  *journal += (nr + 1) * BLOCK;
  fprintf (file, "w %" PRIu64 " %" PRIu64 " fua\n", begin + *journal, BLOCK);
  *journal += BLOCK;
  for (uint64_t i = 0; i < nr; i++)
    put (file, TRACE_WRITE, somewhere (rng, size, BLOCK), BLOCK);
}

void
trace_write_boot (FILE *file, uint64_t size)
{
  const uint64_t log = size / 3 / BLOCK * BLOCK;
  uint64_t journal = 0, logged = 0;
  struct rng rng;

  fprintf (file, "# like a system that boots, %" PRIu64 " bytes\n", size);
  rng_init (&rng, 1);
  put (file, TRACE_READ, 0, BLOCK);
  put (file, TRACE_READ, KIB, KIB);
  for (unsigned i = 0; i < scaled (400); i++) {
    put_file (file, &rng, size);
    if (rng_percent (&rng, 15)) {
      put (file, TRACE_WRITE, log + logged, BLOCK);
      logged = (logged + rng_below (&rng, 2) * BLOCK) % (size / 10);
    }
    if (rng_percent (&rng, 10))
      put_transaction (file, &rng, size, &journal);
    if (rng_percent (&rng, 3))
      put (file, TRACE_TRIM, somewhere (&rng, size, MIB), MIB);
    if (rng_percent (&rng, 3))
      put (file, TRACE_ZERO, somewhere (&rng, size, 64 * KIB), 64 * KIB);
  }
  put_flush (file);
}
