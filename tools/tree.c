/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The snapshots of a disk, drawn as a tree and as JSON: for info and snapshot list.
 *
 * A disk may have a hundred snapshots one over the other, so what is the only one
 * that rests on another stands below it without being moved to the right; only where
 * several rest on one the tree branches.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "ploop-core.h"
#include "ploop-img.h"

static const struct ploop_snapshot *
get (const GPtrArray *snapshots, guint i)
{
  return g_ptr_array_index (snapshots, i);
}

/* Is there another one, before or behind snapshot number I, on the same parent?  They
 * are all of the same depth, with none of a lesser depth between them.
 */
static bool
has_sibling (const GPtrArray *snapshots, guint i, int step)
{
  const unsigned depth = get (snapshots, i)->depth;

  for (guint j = i + (guint) step; j < snapshots->len; j += (guint) step) {
    if (get (snapshots, j)->depth < depth)
      return false;
    if (get (snapshots, j)->depth == depth)
      return true;
  }
  return false;                 /* (guint) -1 is past the end, too */
}

/* What stands in front of a snapshot, and of those that rest on it. */
struct indent {
  char *own, *below;
};

static void
clear_indent (gpointer opaque)
{
  struct indent *indent = opaque;

  g_free (indent->own);
  g_free (indent->below);
}

static GArray *
indent_all (const GPtrArray *snapshots)
{
  GArray *indents = g_array_new (FALSE, FALSE, sizeof (struct indent));
  g_autoptr (GPtrArray) above = g_ptr_array_new ();     /* by depth */

  g_array_set_clear_func (indents, clear_indent);
  for (guint i = 0; i < snapshots->len; i++) {
    const unsigned depth = get (snapshots, i)->depth;
    const char *base = depth == 0 ? "" : g_ptr_array_index (above, depth - 1);
    const bool is_last = !has_sibling (snapshots, i, 1);
    const bool is_only = is_last && !has_sibling (snapshots, i, -1);
    struct indent indent;

    indent.own = g_strconcat (base, is_only ? "" : is_last ? "`-- " : "|-- ",
                              NULL);
    indent.below = g_strconcat (base, is_only ? "" : is_last ? "    " : "|   ",
                                NULL);
    g_array_append_val (indents, indent);
    g_ptr_array_set_size (above, (gint) depth + 1);
    above->pdata[depth] = indent.below;
  }
  return indents;
}

static char *
format_time (int64_t seconds)
{
  g_autoptr (GDateTime) time =
    seconds == 0 ? NULL : g_date_time_new_from_unix_local (seconds);

  return time ? g_date_time_format (time, "%Y-%m-%d %H:%M:%S")
              : g_strdup ("unknown");
}

static void
print_snapshot (const struct ploop_snapshot *snapshot, const char *indent,
                size_t width)
{
  g_autofree char *name = g_strconcat (indent, snapshot->guid, NULL);
  g_autofree char *size =
    snapshot->size == 0 ? g_strdup ("unknown") : size_format (snapshot->size);
  g_autofree char *time = format_time (snapshot->last_change);
  g_autofree char *file =
    snapshot->path ? g_path_get_basename (snapshot->path) : g_strdup ("no file");

  printf ("%s %-*s  %9s  %19s  %s%s\n", snapshot->is_current ? "*" : " ",
          (int) width, name, size, time, file,
          snapshot->is_temporary ? "  (temporary)" : "");
}

void
tree_print (const GPtrArray *snapshots)
{
  g_autoptr (GArray) indents = indent_all (snapshots);
  size_t width = 0;

  for (guint i = 0; i < snapshots->len; i++)
    width = MAX (width, strlen (g_array_index (indents, struct indent, i).own)
                          + strlen (get (snapshots, i)->guid));
  for (guint i = 0; i < snapshots->len; i++)
    print_snapshot (get (snapshots, i),
                    g_array_index (indents, struct indent, i).own, width);
  for (guint i = 0; i < snapshots->len; i++)
    if (get (snapshots, i)->problem)
      printf ("problem: %s: %s\n", get (snapshots, i)->guid,
              get (snapshots, i)->problem);
}

static void
add_snapshot (JsonBuilder *builder, const struct ploop_snapshot *snapshot)
{
  json_builder_begin_object (builder);
  output_add_text (builder, "guid", snapshot->guid);
  if (snapshot->parent)
    output_add_text (builder, "parent", snapshot->parent);
  output_add_number (builder, "depth", snapshot->depth);
  if (snapshot->path)
    output_add_text (builder, "path", snapshot->path);
  if (snapshot->problem)
    output_add_text (builder, "problem", snapshot->problem);
  output_add_number (builder, "size", snapshot->size);
  output_add_time (builder, "last-change", snapshot->last_change);
  output_add_truth (builder, "current", snapshot->is_current);
  output_add_truth (builder, "temporary", snapshot->is_temporary);
  json_builder_end_object (builder);
}

void
tree_add (JsonBuilder *builder, const GPtrArray *snapshots)
{
  json_builder_set_member_name (builder, "snapshots");
  json_builder_begin_array (builder);
  for (guint i = 0; i < snapshots->len; i++)
    add_snapshot (builder, get (snapshots, i));
  json_builder_end_array (builder);
}
