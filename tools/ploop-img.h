/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the files of ploop-img share: the shape of a subcommand, reading its
 * command line, sizes as people write them, and reporting.
 *
 * Everything about images comes from the public ploop-core.h; the tool knows
 * nothing else about the format.
 */

#ifndef PLOOP_IMG_H
#define PLOOP_IMG_H

#include <stdbool.h>
#include <stdint.h>

#include <glib.h>
#include <json-glib/json-glib.h>

#include "ploop-core.h"

/* A row of the table in ploop-img.c.  run gets the arguments that follow the
 * tool's name, argv[0] being the (last word of the) name of the subcommand, and
 * returns the exit status of the process.
 */
struct subcommand {
  const char *name;             /* one word, or two: "snapshot list" */
  const char *arguments;        /* names, with one space between: "FILE SIZE"; those
                                   that may be left out last: "DISK [GUID]" */
  const char *summary;          /* one line */
  int (*run) (const struct subcommand *self, int argc, char **argv);
};

int create_run (const struct subcommand *self, int argc, char **argv);
int info_run (const struct subcommand *self, int argc, char **argv);
int check_run (const struct subcommand *self, int argc, char **argv);
int map_run (const struct subcommand *self, int argc, char **argv);
int compact_run (const struct subcommand *self, int argc, char **argv);
int bitmap_list_run (const struct subcommand *self, int argc, char **argv);
int bitmap_add_run (const struct subcommand *self, int argc, char **argv);
int bitmap_remove_run (const struct subcommand *self, int argc, char **argv);
int bitmap_dump_run (const struct subcommand *self, int argc, char **argv);
int bitmap_merge_run (const struct subcommand *self, int argc, char **argv);
int snapshot_list_run (const struct subcommand *self, int argc, char **argv);
int compare_run (const struct subcommand *self, int argc, char **argv);
int convert_run (const struct subcommand *self, int argc, char **argv);
int snapshot_create_run (const struct subcommand *self, int argc, char **argv);
int snapshot_delete_run (const struct subcommand *self, int argc, char **argv);
int snapshot_switch_run (const struct subcommand *self, int argc, char **argv);
int snapshot_mark_run (const struct subcommand *self, int argc, char **argv);
int resize_run (const struct subcommand *self, int argc, char **argv);
int merge_run (const struct subcommand *self, int argc, char **argv);
int rescue_run (const struct subcommand *self, int argc, char **argv);
int descriptor_restore_run (const struct subcommand *self, int argc,
                            char **argv);
int bench_run (const struct subcommand *self, int argc, char **argv);

/* command-line.c */

enum output_format { OUTPUT_HUMAN, OUTPUT_JSON };

/* Options that many subcommands have, and which of them one has. */
enum {
  COMMON_OUTPUT = 1,            /* --output=human|json */
  COMMON_PROGRESS = 2,          /* --progress */
  COMMON_QUIET = 4,             /* --quiet */
  COMMON_ALL = 7,
};

struct common_options {
  enum output_format output;
  bool progress;
  bool quiet;
};

/* Read ARGV: options into what ENTRIES point to, and those that COMMON_MASK says into
 * COMMON (which is all false without them); the rest must be as many arguments as SELF
 * names, but for those whose names are in brackets.
 *
 * Returns the arguments, or NULL when there is nothing left to do but to exit
 * with *STATUS: help was asked for and printed, or an error was reported.
 */
char **command_line_parse (const struct subcommand *self,
                           const GOptionEntry *entries, unsigned common_mask,
                           struct common_options *common,
                           int argc, char **argv, int *status);

/* size.c */

/* Read TEXT, like "1048576", "100M" or "1.5GiB", into *BYTES, a multiple of
 * 512.  Returns false and sets ERROR, which names TEXT and what is accepted.
 */
bool size_parse (const char *text, uint64_t *bytes, GError **error);

/* BYTES for people, in the largest unit that fits: "16 TiB", "1.5 KiB". */
char *size_format (uint64_t bytes);

/* The same, followed by the exact number: "16 TiB (17592186044416 bytes)". */
char *size_format_exact (uint64_t bytes);

/* format.c */

/* Read the argument of --version or --cluster-size; NULL, when it was not given, is
 * the default.  Return false and set ERROR, which names it and what is accepted.
 */
bool format_parse_version (const char *text, unsigned *version,
                           GError **error);
bool format_parse_cluster_size (const char *text, uint32_t *cluster_size,
                                GError **error);

/* The same for --format: is it a raw disk?  By default, an image. */
bool format_parse_form (const char *text, bool *raw, GError **error);

/* report.c */

/* The exit status of most subcommands that a signal has ended. */
enum { EXIT_INTERRUPTED = 2 };

/* Both print on standard error and return EXIT_FAILURE. */
int report_error (const GError *error);
int report_usage_error (const struct subcommand *self, const char *format, ...)
  G_GNUC_PRINTF (2, 3);

/* Has everything that was printed reached standard output?  Returns STATUS, or
 * reports the failure and returns EXIT_FAILURE.  Nothing may be printed after.
 */
int report_finish (int status);

/* A ploop_log_fn: warnings go to standard error. */
void report_log (void *opaque, enum ploop_log_level level,
                 const char *message);

/* progress.c */

struct progress {
  bool shown;
  bool is_time;                 /* what is told are milliseconds, so no rate is */
  int percent;                  /* as drawn; -1: not yet */
  size_t width;                 /* of what is told behind it */
  gint64 begun, drawn;          /* us */
};

/* From now on SIGHUP, SIGINT and SIGTERM end what is done, in the orderly way; a
 * second one kills.  The bar is shown on a terminal, unless COMMON says quiet, or if
 * it says progress.
 */
void progress_begin (struct progress *progress,
                     const struct common_options *common);

/* A ploop_progress_fn; OPAQUE is the progress. */
bool progress_step (void *opaque, uint64_t nr_bytes_done, uint64_t nr_bytes);

void progress_end (const struct progress *progress);

/* output.c */

/* Read the argument of --output; NULL, when it was not given, is human. */
bool output_parse_format (const char *text, enum output_format *format,
                          GError **error);

/* Add a member to the object that BUILDER has open. */
void output_add_text (JsonBuilder *builder, const char *name,
                      const char *value);
void output_add_number (JsonBuilder *builder, const char *name,
                        uint64_t value);

void output_add_truth (JsonBuilder *builder, const char *name, bool value);

/* Seconds since 1970, which may be before. */
void output_add_time (JsonBuilder *builder, const char *name, int64_t value);

/* Print what BUILDER has built. */
void output_json (JsonBuilder *builder);

/* tree.c */

/* SNAPSHOTS as ploop_list_tree has them: print a line for each; or add them to the
 * object that BUILDER has open, as the array "snapshots".
 */
void tree_print (const GPtrArray *snapshots);
void tree_add (JsonBuilder *builder, const GPtrArray *snapshots);
/* map.c */

extern const char *const map_use_names[PLOOP_NR_USES];

/* USAGE for people, in one line (g_free). */
char *map_describe_usage (const struct ploop_map_usage *usage);

/* map-svg.c */

/* Print the files of the disk NAME as a picture.  Returns 0, or -1 with ERROR set. */
int map_draw (const char *name, const struct ploop_map_options *options,
              GError **error);

#endif /* PLOOP_IMG_H */
