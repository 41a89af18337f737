/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img create: a new image: empty, an overlay, or with the content of a disk.
 *
 * The library knows what can be created; here the options become its structs.  With
 * --from it is a conversion.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ploop-core.h"
#include "ploop-img.h"

/* As given. */
typedef struct arguments {
  char *from, *overlay_of, *snapshot;
  char *space, *version, *cluster_size;
  gboolean descriptor, force;
} Arguments;

static void
arguments_clear (struct arguments *arguments)
{
  g_free (arguments->from);
  g_free (arguments->overlay_of);
  g_free (arguments->snapshot);
  g_free (arguments->space);
  g_free (arguments->version);
  g_free (arguments->cluster_size);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Arguments, arguments_clear)

/* ---- Options ----------------------------------------------------------- */

static const char *const space_names[] = {
  [PLOOP_CREATE_SPARSE] = "off",
  [PLOOP_CREATE_METADATA] = "metadata",
  [PLOOP_CREATE_FALLOC] = "falloc",
  [PLOOP_CREATE_FULL] = "full",
};

static bool
parse_space (const char *text, enum ploop_create_space *space, GError **error)
{
  for (size_t i = 0; text != NULL && i < G_N_ELEMENTS (space_names); i++)
    if (strcmp (text, space_names[i]) == 0) {
      *space = (enum ploop_create_space) i;
      return true;
    }
  if (text == NULL)
    return true;
  g_set_error (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE,
               "--preallocation: '%s' is not known: use off, metadata, falloc or "
               "full", text);
  return false;
}

/* Do those that are given go together? */
static bool
check (const struct arguments *arguments, const char *path, const char *size,
       GError **error)
{
  const char *text =
    arguments->from && arguments->overlay_of
      ? "--from and --overlay-of: give one of them"
    : arguments->snapshot && !arguments->from && !arguments->overlay_of
      ? "--snapshot: needs --from or --overlay-of, the disk that has it"
    : arguments->from && (strcmp (path, "-") == 0 || strstr (path, "://"))
      ? "FILE must be a file: use convert to write to standard output or an "
        "export"
    : !size && !arguments->from && !arguments->overlay_of
      ? "SIZE is missing"
      : NULL;

  if (text)
    g_set_error_literal (error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE, text);
  return text == NULL;
}

/* The default of what was not given is the library's: that of an overlay depends. */
static bool
take (const struct arguments *arguments, const char *path, const char *size,
      struct ploop_create_options *options, GError **error)
{
  options->overwrite = arguments->force;
  options->descriptor = arguments->descriptor;
  options->overlay_of = arguments->overlay_of;
  options->snapshot = arguments->snapshot;
  return check (arguments, path, size, error)
         && parse_space (arguments->space, &options->space, error)
         && (!arguments->version
             || format_parse_version (arguments->version, &options->version,
                                      error))
         && (!arguments->cluster_size
             || format_parse_cluster_size (arguments->cluster_size,
                                           &options->cluster_size, error))
         && (!size || size_parse (size, &options->size, error));
}

/* ---- What was made ----------------------------------------------------- */

/* What is not said of an empty image is NULL. */
struct made {
  const char *path;
  const struct arguments *arguments;
  const struct ploop_create_options *options;
  const struct ploop_convert_result *copy;      /* NULL: it is empty */
  bool interrupted;
};

static char *
name_descriptor (const char *path)
{
  g_autofree char *directory = g_path_get_dirname (path);

  return g_build_filename (directory, "DiskDescriptor.xml", NULL);
}

/* As a word for a shell, and without quotes where it is one already. */
static char *
quote (const char *text)
{
  static const char plain[] = G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS
                              "/.,:=+_-@%";

  return *text != '\0' && strspn (text, plain) == strlen (text)
           ? g_strdup (text) : g_shell_quote (text);
}

static void
print_serving (const struct made *made)
{
  const struct ploop_create_options *options = made->options;
  g_autofree char *below = quote (options->overlay_of);
  g_autofree char *path = quote (made->path);
  g_autofree char *snapshot =
    options->snapshot ? quote (options->snapshot) : NULL;

  printf ("to serve it: nbdkit ploop file=%s%s%s overlay=%s\n", below,
          snapshot ? " snapshot=" : "", snapshot ? snapshot : "", path);
}

static void
print_human (const struct made *made, const struct ploop_info *info)
{
  const struct ploop_create_options *options = made->options;
  g_autofree char *size = size_format_exact (info->size);
  g_autofree char *cluster_size = size_format (info->cluster_size);

  printf ("created %s: %s, version %u, clusters of %s\n", made->path, size,
          info->version, cluster_size);
  if (made->copy) {
    g_autofree char *written = size_format (made->copy->bytes_written);

    printf ("copied from %s: %s are data\n", made->arguments->from, written);
  }
  if (options->descriptor) {
    g_autofree char *descriptor = name_descriptor (made->path);

    printf ("created %s\n", descriptor);
  }
  if (options->overlay_of)
    print_serving (made);
}

/* Whatever INFO has is left out of what was not made. */
static void
print_json (const struct made *made, const struct ploop_info *info)
{
  const struct ploop_create_options *options = made->options;
  g_autoptr (JsonBuilder) builder = json_builder_new ();

  json_builder_begin_object (builder);
  output_add_text (builder, "file", made->path);
  output_add_text (builder, "result",
                   made->interrupted ? "interrupted" : "created");
  if (info) {
    output_add_number (builder, "version", info->version);
    output_add_number (builder, "size", info->size);
    output_add_number (builder, "cluster-size", info->cluster_size);
  }
  output_add_text (builder, "preallocation", space_names[options->space]);
  if (made->arguments->from)
    output_add_text (builder, "from", made->arguments->from);
  if (made->copy) {
    output_add_number (builder, "read-bytes", made->copy->bytes_read);
    output_add_number (builder, "written-bytes", made->copy->bytes_written);
  }
  if (options->overlay_of)
    output_add_text (builder, "overlay-of", options->overlay_of);
  if (options->descriptor && !made->interrupted) {
    g_autofree char *descriptor = name_descriptor (made->path);

    output_add_text (builder, "descriptor", descriptor);
  }
  json_builder_end_object (builder);
  output_json (builder);
}

/* Returns the exit status. */
static int
tell (const struct made *made, const struct common_options *common)
{
  g_autoptr (GError) error = NULL;
  struct ploop_info info;

  if (!made->interrupted && !common->quiet
      && ploop_get_info (made->path, &info, &error) == -1)
    return report_error (error);
  if (!common->quiet && common->output == OUTPUT_JSON)
    print_json (made, made->interrupted ? NULL : &info);
  else if (!common->quiet && !made->interrupted)
    print_human (made, &info);
  if (!made->interrupted)
    return EXIT_SUCCESS;
  fflush (stdout);
  fprintf (stderr, "ploop-img: %s: interrupted: it was not made\n", made->path);
  return EXIT_INTERRUPTED;
}

/* ---- Making it --------------------------------------------------------- */

/* Both return 0, 1 when interrupted, or -1. */
static int
create_empty (const char *path, struct ploop_create_options *options,
              struct progress *progress, GError **error)
{
  options->progress = progress_step;
  options->progress_opaque = progress;
  return ploop_create (path, options, error);
}

static int
create_copy (const char *path, const char *from,
             const struct ploop_create_options *options,
             struct progress *progress, struct ploop_convert_result *result,
             GError **error)
{
  const struct ploop_convert_options convert = {
    .snapshot = options->snapshot,
    .size = options->size,
    .version = options->version,
    .cluster_size = options->cluster_size,
    .space = options->space,
    .descriptor = options->descriptor,
    .overwrite = options->overwrite,
    .log = options->log,
  };
  const int r = ploop_convert (from, path, &convert, progress_step, progress,
                               result, error);

  return r == 0 && result->interrupted ? 1 : r;
}

static int
create (const char *path, const struct arguments *arguments,
        struct ploop_create_options *options,
        const struct common_options *common)
{
  struct ploop_convert_result result;
  struct progress progress;
  g_autoptr (GError) error = NULL;
  int r;

  options->log = common->quiet ? NULL : report_log;
  progress_begin (&progress, common);
  r = arguments->from
        ? create_copy (path, arguments->from, options, &progress, &result,
                       &error)
        : create_empty (path, options, &progress, &error);
  progress_end (&progress);
  if (r == -1)
    return report_error (error);
  return tell (&(struct made) {
                 .path = path,
                 .arguments = arguments,
                 .options = options,
                 .copy = arguments->from && r == 0 ? &result : NULL,
                 .interrupted = r == 1,
               }, common);
}

/* ---- The subcommand ---------------------------------------------------- */

int
create_run (const struct subcommand *self, int argc, char **argv)
{
  g_auto (Arguments) given = { 0 };
  const GOptionEntry entries[] = {
    { "from", 0, 0, G_OPTION_ARG_FILENAME, &given.from,
      "With the content of this disk", "DISK" },
    { "overlay-of", 0, 0, G_OPTION_ARG_FILENAME, &given.overlay_of,
      "A delta for what is written over this disk", "DISK" },
    { "snapshot", 0, 0, G_OPTION_ARG_STRING, &given.snapshot,
      "This snapshot of DISK", "GUID" },
    { "descriptor", 0, 0, G_OPTION_ARG_NONE, &given.descriptor,
      "With a DiskDescriptor.xml beside FILE", NULL },
    { "preallocation", 0, 0, G_OPTION_ARG_STRING, &given.space,
      "Clusters that are there at once (default: off)",
      "off|metadata|falloc|full" },
    { "version", 0, 0, G_OPTION_ARG_STRING, &given.version,
      "Version of the format (default: 2)", "1|2" },
    { "cluster-size", 0, 0, G_OPTION_ARG_STRING, &given.cluster_size,
      "A power of two from 32K to 64M (default: 1M)", "SIZE" },
    { "force", 0, 0, G_OPTION_ARG_NONE, &given.force,
      "Replace FILE if it exists", NULL },
    G_OPTION_ENTRY_NULL
  };
  struct common_options common;
  struct ploop_create_options options = { 0 };
  g_autoptr (GError) error = NULL;
  g_auto (GStrv) arguments = NULL;
  int status;

  arguments = command_line_parse (self, entries, COMMON_ALL, &common,
                                  argc, argv, &status);
  if (arguments == NULL)
    return status;
  if (!take (&given, arguments[0], arguments[1], &options, &error))
    return report_usage_error (self, "%s", error->message);
  if (arguments[1] && options.size == 0)
    return report_usage_error (self, "%s: SIZE must not be 0", arguments[0]);
  return create (arguments[0], &given, &options, &common);
}
