/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Checking shots: see check-shots.h.  Nothing is taken for granted: GUIDs may be there
 * twice, parents may be missing, and go round in circles.
 */

#include <config.h>

#include <string.h>

#include "check-shots.h"

/* ploop makes no more snapshots than this. */
#define PLOOP_MAX_SNAPSHOTS 126u

struct shots {
  const struct descriptor *descriptor;
  struct findings *findings;
  GHashTable *by_guid;          /* the first of each */
};

static const struct descriptor_shot *
get_shot (const struct shots *check, guint i)
{
  return g_ptr_array_index (check->descriptor->shots, i);
}

static const struct descriptor_shot *
find_shot (const struct shots *check, const char *guid)
{
  return guid ? g_hash_table_lookup (check->by_guid, guid) : NULL;
}

static void
index_shots (struct shots *check)
{
  for (guint i = 0; i < check->descriptor->shots->len; i++) {
    const struct descriptor_shot *shot = get_shot (check, i);

    if (find_shot (check, shot->guid))
      findings_add (
        check->findings, check->descriptor->path, PLOOP_FINDING_ERROR,
        "two <Shot> have the GUID %s: which of them is meant cannot be told",
        shot->guid);
    else
      g_hash_table_insert (check->by_guid, shot->guid, (gpointer) shot);
  }
}

static void
check_parents (struct shots *check)
{
  guint nr_bases = 0;

  for (guint i = 0; i < check->descriptor->shots->len; i++) {
    const struct descriptor_shot *shot = get_shot (check, i);

    if (!shot->parent_guid)
      nr_bases++;
    else if (!find_shot (check, shot->parent_guid))
      findings_add (check->findings, check->descriptor->path,
                    PLOOP_FINDING_ERROR,
                    "the <Shot> %s has the <ParentGUID> %s, which no <Shot> "
                    "has: what it rests on is lost",
                    shot->guid, shot->parent_guid);
  }
  if (nr_bases > 1)
    findings_add (
      check->findings, check->descriptor->path, PLOOP_FINDING_NOTE,
      "%u <Shot> have no parent: the snapshots of one disk have one base",
      nr_bases);
}

#define ENDLESS G_MAXUINT

/* How deep is each shot? */
struct depths {
  GHashTable *known;            /* from GUID to levels, a base has 1; or ENDLESS */
  GPtrArray *climbed;           /* shots on the way up to what is known */
};

/* Climb from SHOT up to what is known, a base, or a parent that is missing.  Returns
 * how many levels there are, or ENDLESS; *CIRCLE becomes the shot that was met twice,
 * or NULL.
 */
static guint
climb (const struct shots *check, const struct descriptor_shot *shot,
       struct depths *depths, const struct descriptor_shot **circle)
{
  g_autoptr (GHashTable) seen = g_hash_table_new (g_str_hash, g_str_equal);
  gpointer known;

  *circle = NULL;
  g_ptr_array_set_size (depths->climbed, 0);
  for (; shot; shot = find_shot (check, shot->parent_guid)) {
    if (g_hash_table_lookup_extended (depths->known, shot->guid, NULL, &known))
      return GPOINTER_TO_UINT (known);
    if (!g_hash_table_add (seen, shot->guid)) {
      *circle = shot;
      return ENDLESS;
    }
    g_ptr_array_add (depths->climbed, (gpointer) shot);
  }
  return 0;
}

static void
check_depth (struct shots *check, const struct descriptor_shot *shot,
             struct depths *depths)
{
  const struct descriptor_shot *circle;
  guint depth = climb (check, shot, depths, &circle);

  if (circle)
    findings_add (check->findings, check->descriptor->path, PLOOP_FINDING_ERROR,
                  "the <Shot> %s is its own ancestor: correct the <ParentGUID> "
                  "of one of its ancestors",
                  circle->guid);
  for (guint i = depths->climbed->len; i-- > 0;) {
    const struct descriptor_shot *climbed =
      g_ptr_array_index (depths->climbed, i);

    depth += depth != ENDLESS;
    g_hash_table_insert (depths->known, climbed->guid,
                         GUINT_TO_POINTER (depth));
    if (depth == DESCRIPTOR_MAX_LEVELS + 1)
      findings_add (
        check->findings, check->descriptor->path, PLOOP_FINDING_ERROR,
        "the <Shot> %s is the top of more than %u levels: merge snapshots",
        climbed->guid, DESCRIPTOR_MAX_LEVELS);
  }
}

static void
check_depths (struct shots *check)
{
  struct depths depths = {
    .known = g_hash_table_new (g_str_hash, g_str_equal),
    .climbed = g_ptr_array_new (),
  };
  const guint nr = check->descriptor->shots->len;

  for (guint i = 0; i < nr; i++)
    check_depth (check, get_shot (check, i), &depths);
  if (nr > PLOOP_MAX_SNAPSHOTS + 1)
    findings_add (check->findings, check->descriptor->path, PLOOP_FINDING_NOTE,
                  "has %u snapshots: ploop makes %u at most", nr - 1,
                  PLOOP_MAX_SNAPSHOTS);
  g_hash_table_unref (depths.known);
  g_ptr_array_unref (depths.climbed);
}

static void
check_top (struct shots *check)
{
  const struct descriptor *descriptor = check->descriptor;
  const char *top = descriptor->top_guid;

  if (!descriptor->top_is_named)
    findings_add (check->findings, descriptor->path, PLOOP_FINDING_NOTE,
                  "has no <TopGUID>: %s is taken for the top", top);
  if (!find_shot (check, top)) {
    findings_add (check->findings, descriptor->path, PLOOP_FINDING_ERROR,
                  "<TopGUID> is %s, which no <Shot> has: the disk as it is now "
                  "cannot be found",
                  top);
    return;
  }
  if (descriptor_has_children (descriptor, top))
    findings_add (check->findings, descriptor->path, PLOOP_FINDING_ERROR,
                  "<TopGUID> is %s, on which others rest: writing to the disk "
                  "would change these snapshots",
                  top);
  if (strcmp (top, DESCRIPTOR_TOP_GUID) == 0)
    return;
  if (find_shot (check, DESCRIPTOR_TOP_GUID))
    findings_add (check->findings, descriptor->path, PLOOP_FINDING_NOTE,
                  "<TopGUID> is %s, but there is a <Shot> %s, too, as ploop "
                  "calls the top: is it the right one?",
                  top, DESCRIPTOR_TOP_GUID);
  else
    findings_add (
      check->findings, descriptor->path, PLOOP_FINDING_NOTE,
      "<TopGUID> is %s, as older programs call the top; ploop calls it %s", top,
      DESCRIPTOR_TOP_GUID);
}

GHashTable *
check_shots (const struct descriptor *descriptor, struct findings *findings)
{
  struct shots check = {
    .descriptor = descriptor,
    .findings = findings,
    .by_guid = g_hash_table_new (g_str_hash, g_str_equal),
  };

  if (!get_shot (&check, 0)->node)
    findings_add (findings, descriptor->path, PLOOP_FINDING_NOTE,
                  "has no <Shot>: its only image is the top");
  index_shots (&check);
  check_parents (&check);
  check_depths (&check);
  check_top (&check);
  return check.by_guid;
}
