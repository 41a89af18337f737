/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Traces: what requests somebody sent to a disk, to be sent again.  A trace is text, a
 * request a line:
 *
 *   r OFFSET LENGTH            read
 *   w OFFSET LENGTH [fua]      write
 *   z OFFSET LENGTH [fua]      write zeros
 *   t OFFSET LENGTH            trim
 *   f                          flush
 *   b                          wait until all before it are answered
 *
 * Numbers are bytes, or KiB, MiB and GiB with K, M and G behind them.  What begins with
 * # is a comment.  What is written is not in it: the one who sends it makes that up.
 */

#ifndef PLOOP_TEST_TRACE_H
#define PLOOP_TEST_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum trace_kind {
  TRACE_READ = 'r', TRACE_WRITE = 'w', TRACE_ZERO = 'z', TRACE_TRIM = 't',
  TRACE_FLUSH = 'f', TRACE_BARRIER = 'b',
};

struct trace_request {
  enum trace_kind kind;
  bool fua;
  uint64_t offset, length;
};

struct trace {
  struct trace_request *requests;
  size_t nr_requests;
};

/* Fails with the line's number when FILE, called NAME, is no trace. */
void trace_read (struct trace *trace, FILE *file, const char *name);
void trace_free (struct trace *trace);

/* A number of bytes as it stands in a trace; false when TEXT is none. */
bool trace_parse_bytes (const char *text, uint64_t *bytes);

/* Write what mkfs.ext4 does to a disk of SIZE bytes, about: all of it is trimmed, then
 * come a superblock, descriptors, bitmaps, inode tables and a journal, and in the end
 * the superblock once more.
 */
void trace_write_mkfs (FILE *file, uint64_t size);

/* What a system that boots does, about: runs of reads all over the disk, half of them in
 * order and ahead of need, a journal, logs that grow, and a trim now and then.
 */
void trace_write_boot (FILE *file, uint64_t size);

#endif /* PLOOP_TEST_TRACE_H */
