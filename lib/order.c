/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The order of deltas: see order.h.
 *
 * What is looked at, from the strongest to the weakest:
 *
 *   an old descriptor     all of it, or what it still says of two files
 *   names                 ploop calls every delta above FILE FILE.{GUID}; files that
 *                         are not named so are not taken for one disk
 *   sizes                 no disk shrinks: a smaller one is lower
 *   times                 a delta is written to until the next one is made; but
 *                         copying and merging files changes them
 *   empty, in use         only the top is written to; only between two
 *
 * Of two files, names tell which one is lower.  Of three and more, only an old descriptor
 * tells a chain from a tree, of which a leaf was left when somebody switched to an
 * earlier snapshot: there A and B have the same names, sizes, times and marks whether B
 * rests on A or on the base.  What the weaker ones say is then a guess: it is shown, and
 * nothing is done by it.
 */

#include <config.h>

#include <stdarg.h>
#include <string.h>

#include "order.h"

/* Files whose times are closer were rather copied than used in between. */
#define LEAST_NS INT64_C (1000000000)

void
order_say (const struct order_say *say, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  if (!say->fn)
    return;
  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);
  say->fn (say->opaque, text);
}

static bool
refuse (GError **error, const char *format, ...) G_GNUC_PRINTF (2, 3);

static bool
refuse (GError **error, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_ARGUMENT,
               "%s: give the files with --file, base first", text);
  return false;
}

/* ---- Levels ------------------------------------------------------------ */

static void
free_level (gpointer opaque)
{
  struct order_level *level = opaque;

  g_free (level->guid);
  g_free (level->parent);
  g_free (level->marker);
  g_free (level);
}

void
order_clear (struct order *order)
{
  g_clear_pointer (&order->levels, g_ptr_array_unref);
  g_clear_pointer (&order->top_guid, g_free);
  g_clear_pointer (&order->refusal, g_free);
}

static void
begin_order (struct order *order, enum ploop_confidence confidence)
{
  order->levels = g_ptr_array_new_with_free_func (free_level);
  order->confidence = confidence;
}

static const struct order_level *
find_level (const struct order *order, const char *guid)
{
  for (guint i = 0; i < order->levels->len; i++) {
    const struct order_level *level = g_ptr_array_index (order->levels, i);

    if (strcmp (level->guid, guid) == 0)
      return level;
  }
  return NULL;
}

const struct order_level *
order_top (const struct order *order)
{
  return find_level (order, order->top_guid);
}

static void
add_level (struct order *order, const struct evidence *file, const char *guid,
           const char *parent, const char *marker)
{
  struct order_level *level = g_new0 (struct order_level, 1);

  level->file = file;
  level->guid = g_strdup (guid);
  level->parent = g_strdup (parent);
  level->marker = g_strdup (marker);
  g_ptr_array_add (order->levels, level);
}

static bool
may_be_guid (const struct order *order, const char *guid)
{
  return guid && strcmp (guid, DESCRIPTOR_TOP_GUID) != 0
         && !find_level (order, guid);
}

/* Of a delta that is not the top: the one it had, the one in its name, or any. */
static char *
choose_guid (const struct order *order, const struct evidence *file,
             const struct relics *relics)
{
  const char *old = relics_find_guid (relics, file->name);
  g_autofree char *in_name = evidence_name_guid (file->name);
  g_autofree char *any = g_uuid_string_random ();

  if (may_be_guid (order, old))
    return g_strdup (old);
  if (may_be_guid (order, in_name))
    return g_steal_pointer (&in_name);
  return g_strdup_printf ("{%s}", any);
}

/* FILES are a chain, base first. */
static void
chain_files (struct order *order, const GPtrArray *files,
             const struct relics *relics)
{
  for (guint i = 0; i < files->len; i++) {
    const struct evidence *file = g_ptr_array_index (files, i);
    const struct order_level *below =
      i > 0 ? g_ptr_array_index (order->levels, i - 1) : NULL;
    g_autofree char *guid = i + 1 == files->len
                              ? g_strdup (DESCRIPTOR_TOP_GUID)
                              : choose_guid (order, file, relics);

    add_level (order, file, guid, below ? below->guid : NULL, NULL);
  }
  order->top_guid = g_strdup (DESCRIPTOR_TOP_GUID);
}

/* ---- What must be so --------------------------------------------------- */

static const struct evidence *
get_file (const GPtrArray *files, guint i)
{
  return g_ptr_array_index (files, i);
}

/* Can these files be one chain, in some order? */
static bool
fit_together (const GPtrArray *files, GError **error)
{
  const struct evidence *first = NULL;

  for (guint i = 0; i < files->len; i++) {
    const struct evidence *file = get_file (files, i);

    if (file->kind != EVIDENCE_IMAGE)
      continue;
    if (first && first->cluster_sectors != file->cluster_sectors)
      return refuse (error, "%s has clusters of %" G_GUINT32_FORMAT
                     " sectors, and %s of %" G_GUINT32_FORMAT ": they are not of "
                     "one disk", first->name, first->cluster_sectors, file->name,
                     file->cluster_sectors);
    first = first ? first : file;
  }
  return true;
}

static bool
refuse_damaged (const struct evidence *file, GError **error)
{
  g_set_error (error, PLOOP_ERROR, PLOOP_ERROR_CORRUPT,
               "%s: the disk cannot be described while this file is damaged: "
               "rescue the disk, giving its files one by one", file->sign);
  return false;
}

static void
describe_file (const struct order_say *say, const struct evidence *file)
{
  const char *sign = file->sign ? file->sign : "nothing that is known";

  if (file->kind == EVIDENCE_RAW)
    order_say (say, "%s: no image; as a raw disk it has %" G_GUINT64_FORMAT
               " sectors, and begins with %s", file->name, file->size_sectors,
               sign);
  else if (file->kind == EVIDENCE_IMAGE)
    order_say (say, "%s: image of version %u, clusters of %" G_GUINT32_FORMAT
               " sectors, a disk of %" G_GUINT64_FORMAT " sectors, %"
               G_GUINT32_FORMAT " clusters allocated%s", file->name,
               file->version, file->cluster_sectors, file->size_sectors,
               file->nr_allocated,
               file->is_in_use ? ", marked as in use" : "");
}

static void
describe_versions (const struct order *order, const struct order_say *say)
{
  unsigned seen = 0;

  for (guint i = 0; i < order->levels->len; i++) {
    const struct order_level *level = g_ptr_array_index (order->levels, i);

    seen |= level->file->version;
  }
  if (seen == 3)
    order_say (say, "images of both versions: Virtuozzo does not take such a disk");
}

/* ---- Given ------------------------------------------------------------- */

bool
order_take (struct order *order, const GPtrArray *files,
            const struct relics *relics, const struct order_say *say,
            GError **error)
{
  for (guint i = 0; i < files->len; i++) {
    const struct evidence *file = get_file (files, i);

    if (file->kind == EVIDENCE_DAMAGED)
      return refuse_damaged (file, error);
    if (file->kind == EVIDENCE_OTHER
        || (file->kind == EVIDENCE_RAW && i > 0))
      return refuse (error, "%s is no image, and a raw disk can only be the base",
                     file->name);
    if (i > 0 && file->size_sectors < get_file (files, i - 1)->size_sectors)
      order_say (say, "%s: its disk is smaller than that of %s, below it: is this "
                 "the right order?", file->name, get_file (files, i - 1)->name);
    describe_file (say, file);
  }
  if (!fit_together (files, error))
    return false;
  begin_order (order, PLOOP_CONFIDENCE_GIVEN);
  chain_files (order, files, relics);
  describe_versions (order, say);
  return true;
}

/* ---- By an old descriptor ---------------------------------------------- */

static const struct evidence *
find_file (const GPtrArray *files, const char *name)
{
  for (guint i = 0; name && i < files->len; i++)
    if (strcmp (get_file (files, i)->name, name) == 0)
      return get_file (files, i);
  return NULL;
}

/* Add the shots whose parent is there already.  Were there any? */
static bool
add_shots (struct order *order, const GPtrArray *files,
           const struct relics *relics)
{
  const guint before = order->levels->len;

  for (guint i = 0; i < relics->shots->len; i++) {
    const struct relic_shot *shot = g_ptr_array_index (relics->shots, i);
    const struct evidence *file =
      find_file (files, relics_find_file (relics, shot->guid));

    if (!file || find_level (order, shot->guid)
        || (file->kind != EVIDENCE_IMAGE
            && (file->kind != EVIDENCE_RAW || shot->parent)))
      continue;
    if (shot->parent ? find_level (order, shot->parent) != NULL
                     : order->levels->len == 0)
      add_level (order, file, shot->guid, shot->parent, shot->marker);
  }
  return order->levels->len > before;
}

/* Does the old descriptor still say all, about all images that are there? */
static bool
is_complete (const struct order *order, const GPtrArray *files,
             const struct relics *relics)
{
  guint nr_used = 0;

  if (!relics->top_guid || !find_level (order, relics->top_guid)
      || relics->shots->len != order->levels->len
      || relics->images->len != order->levels->len)
    return false;
  for (guint i = 0; i < files->len; i++) {
    const struct evidence *file = get_file (files, i);

    if (file->kind == EVIDENCE_IMAGE && !relics_find_guid (relics, file->name))
      return false;
    nr_used += relics_find_guid (relics, file->name) != NULL;
  }
  return nr_used == order->levels->len;
}

static bool
follow_relics (struct order *order, const GPtrArray *files,
               const struct relics *relics, const struct order_say *say)
{
  begin_order (order, PLOOP_CONFIDENCE_CERTAIN);
  while (add_shots (order, files, relics))
    continue;
  if (!is_complete (order, files, relics)) {
    if (relics->is_there)
      order_say (say, "the old descriptor names %u images and %u snapshots, which "
                 "is not all", relics->images->len, relics->shots->len);
    order_clear (order);
    return false;
  }
  order->top_guid = g_strdup (relics->top_guid);
  order_say (say, "the old descriptor is damaged, but still says how all images rest "
             "on each other");
  return true;
}

/* ---- The base ---------------------------------------------------------- */

struct finding {
  const struct relics *relics;
  const struct order_say *say;
  GPtrArray *raws, *images;     /* of struct evidence */
  GPtrArray *chain;             /* the same: what is known so far, base first */
  GHashTable *below;            /* the same, file to file: what it rests on, as the old
                                   descriptor says */
  enum ploop_confidence confidence;
  GError **error;
};

/* Are all images, but for FILE itself, named after it? */
static bool
is_name_of_all (const struct finding *finding, const struct evidence *file)
{
  guint nr = 0;

  for (guint i = 0; i < finding->images->len; i++) {
    const struct evidence *image = get_file (finding->images, i);

    if (image == file)
      continue;
    if (!evidence_is_named_after (image->name, file->name))
      return false;
    nr++;
  }
  return nr > 0;
}

static void
take_base (struct finding *finding, const struct evidence *file)
{
  g_ptr_array_remove (finding->images, (gpointer) file);
  g_ptr_array_add (finding->chain, (gpointer) file);
}

/* By its name, an image or a raw disk. */
static bool
find_named_base (struct finding *finding)
{
  GPtrArray *const lists[] = { finding->images, finding->raws };

  for (unsigned l = 0; l < G_N_ELEMENTS (lists); l++)
    for (guint i = 0; i < lists[l]->len; i++) {
      const struct evidence *file = get_file (lists[l], i);

      if (!is_name_of_all (finding, file))
        continue;
      order_say (finding->say, "%s: the base%s: all other images are named after "
                 "it", file->name,
                 file->kind == EVIDENCE_RAW ? ", a raw disk" : "");
      take_base (finding, file);
      return true;
    }
  return false;
}

/* A raw file that begins as a disk does, or NULL. */
static const struct evidence *
find_signed_raw (const struct finding *finding, const struct evidence *but)
{
  for (guint i = 0; i < finding->raws->len; i++) {
    const struct evidence *file = get_file (finding->raws, i);

    if (file->sign && file != but)
      return file;
  }
  return NULL;
}

/* Without names that say so, two files are not one disk: one of them may be a copy of
 * the other, or of something else.
 */
static bool
find_only_file (struct finding *finding)
{
  const struct evidence *raw = find_signed_raw (finding, NULL);
  const struct evidence *other = raw ? find_signed_raw (finding, raw) : NULL;
  const struct evidence *image =
    finding->images->len > 0 ? get_file (finding->images, 0) : NULL;

  if (finding->images->len > 1)
    other = get_file (finding->images, 1);
  if (!image && !raw)
    return refuse (finding->error, "there is no image, and no file that begins as a "
                   "disk does");
  if (other || (image && raw))
    return refuse (finding->error, "%s and %s are not named as a base and what is "
                   "above it, so nothing tells whether they belong together",
                   image ? image->name : raw->name,
                   other ? other->name : raw->name);
  order_say (finding->say, "%s: the only %s, and so the disk",
             image ? image->name : raw->name,
             image ? "image" : "file that begins as a disk does");
  take_base (finding, image ? image : raw);
  return true;
}

static bool
find_base (struct finding *finding)
{
  return find_named_base (finding) || find_only_file (finding);
}

/* ---- Those above it ---------------------------------------------------- */

/* Was the file made after what is in it?  Then it is a copy, and when it was made
 * tells nothing.
 */
static bool
is_copied (const struct evidence *file)
{
  return file->born_ns == 0 || file->born_ns > file->changed_ns + LEAST_NS;
}

/* -1: A is older, 1: B is, 0: not known. */
static int
compare_ns (int64_t a, int64_t b)
{
  return b - a >= LEAST_NS ? -1 : a - b >= LEAST_NS ? 1 : 0;
}

static int
compare_times (const struct evidence *a, const struct evidence *b)
{
  const int changed = compare_ns (a->changed_ns, b->changed_ns);

  if (is_copied (a) || is_copied (b))
    return changed;
  /* What was merged into a lower delta changed it later. */
  return compare_ns (a->born_ns, b->born_ns) == changed ? changed : 0;
}

static bool
is_old_top (const struct finding *finding, const struct evidence *file)
{
  const char *guid = relics_find_guid (finding->relics, file->name);

  return guid
         && strcmp (guid, finding->relics->top_guid ? finding->relics->top_guid
                                                    : DESCRIPTOR_TOP_GUID) == 0;
}

static void
fill_below (struct finding *finding, const GPtrArray *files)
{
  const struct relics *relics = finding->relics;

  for (guint i = 0; i < relics->shots->len; i++) {
    const struct relic_shot *shot = g_ptr_array_index (relics->shots, i);
    const struct evidence *file =
      find_file (files, relics_find_file (relics, shot->guid));
    const struct evidence *parent =
      shot->parent ? find_file (files, relics_find_file (relics, shot->parent))
                   : NULL;

    if (file && parent)
      g_hash_table_insert (finding->below, (gpointer) file, (gpointer) parent);
  }
}

/* Does the old descriptor say that UPPER rests on LOWER, with others between or not?  It
 * may go round in circles.
 */
static bool
rests_on (const struct finding *finding, const struct evidence *upper,
          const struct evidence *lower)
{
  const struct evidence *file = upper;

  for (unsigned i = 0; file && i < DESCRIPTOR_MAX_LEVELS; i++) {
    file = g_hash_table_lookup (finding->below, file);
    if (file == lower)
      return true;
  }
  return false;
}

/* Which one is lower, and why?  -1: A, 1: B, 0: not known. */
static int
compare_files (const struct finding *finding, const struct evidence *a,
               const struct evidence *b, const char **why)
{
  const bool a_is_top = is_old_top (finding, a);
  const bool a_is_upper = rests_on (finding, a, b);
  const int times = compare_times (a, b);

  if (a_is_upper != rests_on (finding, b, a)) {
    *why = "the old descriptor says so";
    return a_is_upper ? 1 : -1;
  }
  if (a_is_top != is_old_top (finding, b)) {
    *why = "the old descriptor names it as the top";
    return a_is_top ? 1 : -1;
  }
  if (a->size_sectors != b->size_sectors) {
    *why = "its disk is larger, and no disk shrinks";
    return a->size_sectors < b->size_sectors ? -1 : 1;
  }
  if (times != 0) {
    *why = "it was changed later";
    return times;
  }
  if (finding->images->len > 2)
    return 0;
  if (a->is_in_use != b->is_in_use) {
    *why = "it is marked as in use, as only the top is";
    return a->is_in_use ? 1 : -1;
  }
  if ((a->nr_allocated == 0) != (b->nr_allocated == 0)) {
    *why = "it is empty, as a top is that was just made";
    return a->nr_allocated == 0 ? 1 : -1;
  }
  return 0;
}

/* The one that is lower than all others, or NULL with ERROR set. */
static const struct evidence *
find_lowest (const struct finding *finding)
{
  const struct evidence *a = NULL, *b = NULL;
  const char *why;

  for (guint i = 0; i < finding->images->len; i++) {
    guint n = 0;

    a = get_file (finding->images, i);
    for (; n < finding->images->len; n++) {
      b = get_file (finding->images, n);
      if (a != b && compare_files (finding, a, b, &why) >= 0)
        break;
    }
    if (n == finding->images->len)
      return a;
  }
  order_say (finding->say, "may be: ... %s, %s ...", a->name, b->name);
  order_say (finding->say, "or:     ... %s, %s ...", b->name, a->name);
  refuse (finding->error, "nothing tells which one of %s and %s is lower, or "
          "whether they are branches of a tree of snapshots, or they contradict each "
          "other", a->name, b->name);
  return NULL;
}

/* FILE comes next; say why. */
static void
take_next (struct finding *finding, const struct evidence *file,
           const struct evidence *before)
{
  const char *why = finding->images->len == 1
                      ? "it is the only one that is left"
                      : "it is the lowest of those that are left";

  if (before)
    compare_files (finding, before, file, &why);
  order_say (finding->say, "%s: above %s: %s", file->name,
             get_file (finding->chain, finding->chain->len - 1)->name, why);
}

/* BEFORE is compared with as long as it is in the list: what two files have to say
 * about each other depends on how many there are.
 */
static bool
stack_images (struct finding *finding)
{
  const struct evidence *before = NULL;

  while (finding->images->len > 0) {
    const struct evidence *lowest = find_lowest (finding);

    if (!lowest)
      return false;
    take_next (finding, lowest, before);
    g_ptr_array_remove (finding->images, (gpointer) lowest);
    g_ptr_array_add (finding->chain, (gpointer) lowest);
    before = lowest;
  }
  return true;
}

/* ---- Contradictions ---------------------------------------------------- */

static bool
check_chain (const struct finding *finding)
{
  const GPtrArray *chain = finding->chain;

  for (guint i = 0; i + 1 < chain->len; i++) {
    const struct evidence *file = get_file (chain, i);
    const struct evidence *next = get_file (chain, i + 1);

    if (file->is_in_use)
      return refuse (finding->error, "%s is marked as in use, as only a top is, but "
                     "seems to be below %s", file->name, next->name);
    if (file->size_sectors > next->size_sectors)
      return refuse (finding->error, "the disk of %s is larger than that of %s, "
                     "which seems to be above it", file->name, next->name);
  }
  return true;
}

/* What is called a delta of this disk must be one, or the rest is not all of it. */
static bool
check_others (const struct finding *finding, const GPtrArray *files)
{
  const struct evidence *base = get_file (finding->chain, 0);

  for (guint i = 0; i < files->len; i++) {
    const struct evidence *file = get_file (files, i);

    if (file->kind != EVIDENCE_IMAGE
        && evidence_is_named_after (file->name, base->name))
      return refuse (finding->error, "%s is named as a delta above %s, but is no "
                     "image: if it was never one", file->name, base->name);
  }
  return true;
}

/* Of a delta that is named after another, that one must be there. */
static bool
check_names (const struct finding *finding)
{
  for (guint i = 0; i < finding->chain->len; i++) {
    const struct evidence *file = get_file (finding->chain, i);
    g_autofree char *guid = evidence_name_guid (file->name);
    g_autofree char *base =
      guid ? g_strndup (file->name, strlen (file->name) - strlen (guid) - 1)
           : NULL;

    if (base && !find_file (finding->chain, base))
      return refuse (finding->error, "%s is named after a base called %s, which is "
                     "not there: if it is a disk by itself", file->name, base);
  }
  return true;
}

/* Is what the old descriptor names there, and below what it calls the top nothing? */
static bool
check_named_images (const struct finding *finding)
{
  const GPtrArray *chain = finding->chain, *named = finding->relics->images;

  for (guint i = 0; i < named->len; i++) {
    const struct relic_image *image = g_ptr_array_index (named, i);

    if (!find_file (chain, image->file))
      return refuse (finding->error, "the old descriptor names %s, which is not "
                     "there", image->file);
  }
  for (guint i = 0; i + 1 < chain->len; i++)
    if (is_old_top (finding, get_file (chain, i)))
      return refuse (finding->error, "the old descriptor names %s as the top, but %s "
                     "seems to be above it", get_file (chain, i)->name,
                     get_file (chain, i + 1)->name);
  return true;
}

static bool
check_number (const struct finding *finding)
{
  const GPtrArray *shots = finding->relics->shots;
  g_autoptr (GHashTable) guids = g_hash_table_new (g_str_hash, g_str_equal);

  for (guint i = 0; i < shots->len; i++) {
    const struct relic_shot *shot = g_ptr_array_index (shots, i);

    g_hash_table_add (guids, shot->guid);
  }
  if (g_hash_table_size (guids) <= finding->chain->len)
    return true;
  return refuse (finding->error, "the old descriptor has %u snapshots, more than "
                 "there are files", g_hash_table_size (guids));
}

/* Is FILE directly above the file called PARENT? */
static bool
is_above (GPtrArray *chain, const struct evidence *file, const char *parent)
{
  guint at;

  return g_ptr_array_find (chain, file, &at) && at > 0
         && strcmp (get_file (chain, at - 1)->name, parent) == 0;
}

/* What the old descriptor still says about two files must be so. */
static bool
check_relics (const struct finding *finding)
{
  const struct relics *relics = finding->relics;

  for (guint i = 0; i < relics->shots->len; i++) {
    const struct relic_shot *shot = g_ptr_array_index (relics->shots, i);
    const struct evidence *file =
      find_file (finding->chain, relics_find_file (relics, shot->guid));
    const char *parent =
      shot->parent ? relics_find_file (relics, shot->parent) : NULL;

    if (file && parent && !is_above (finding->chain, file, parent))
      return refuse (finding->error, "the old descriptor has %s directly above %s, "
                     "which does not fit what is there: a file is missing, or "
                     "there are several branches", file->name, parent);
  }
  return true;
}

/* ---- Guesses ----------------------------------------------------------- */

/* Does the old descriptor say what each rests on?  Not of the second one: when it says
 * that of all others, only the base is left for it.
 */
static bool
is_said (const struct finding *finding)
{
  const GPtrArray *chain = finding->chain;

  for (guint i = 2; i < chain->len; i++)
    if (g_hash_table_lookup (finding->below, get_file (chain, i))
        != get_file (chain, i - 1))
      return false;
  return true;
}

/* Of two, the name tells which one is lower.  But nobody writes to a base below a
 * delta: it was copied, or repaired, or the delta was merged into it and left behind.
 */
static void
doubt_base (struct finding *finding)
{
  const struct evidence *base = get_file (finding->chain, 0);
  const struct evidence *top = get_file (finding->chain, 1);

  if (compare_ns (base->changed_ns, top->changed_ns) <= 0)
    return;
  finding->confidence = PLOOP_CONFIDENCE_LIKELY;
  order_say (finding->say, "%s: was changed later than %s, above it: a copy is, and a "
             "base that the delta was merged into; read what is on the disk before "
             "you write to it", base->name, top->name);
}

/* The files above the base, for people (g_free). */
static char *
name_upper (const GPtrArray *chain)
{
  GString *names = g_string_new (NULL);

  for (guint i = 1; i < chain->len; i++)
    g_string_append_printf (names, "%s%s",
                            i == 1 ? ""
                            : i + 1 == chain->len ? " and " : ", ",
                            get_file (chain, i)->name);
  return g_string_free (names, FALSE);
}

static void
say_guess (const struct finding *finding)
{
  g_autoptr (GString) options = g_string_new (NULL);

  for (guint i = 0; i < finding->chain->len; i++) {
    g_autofree char *name =
      g_shell_quote (get_file (finding->chain, i)->name);

    g_string_append_printf (options, " --file=%s", name);
  }
  order_say (finding->say, "a guess, by which nothing is written:%s", options->str);
}

/* Say how sure it is.  Returns why it must not be used (g_free); NULL: it may be. */
static char *
weigh (struct finding *finding)
{
  g_autofree char *upper = NULL;

  if (finding->chain->len == 2)
    doubt_base (finding);
  if (finding->chain->len <= 2 || is_said (finding))
    return NULL;
  finding->confidence = PLOOP_CONFIDENCE_LIKELY;
  say_guess (finding);
  upper = name_upper (finding->chain);
  return g_strdup_printf (
    "nothing tells whether %s are one chain above %s or branches of a tree of "
    "snapshots; with a wrong order, what is written mixes contents: give the files of "
    "one branch with --file, base first", upper,
    get_file (finding->chain, 0)->name);
}

/* ---- All of it --------------------------------------------------------- */

/* Of raw files, those that are as large as no disk and begin as none are something
 * else.
 */
static bool
sort_out (struct finding *finding, const GPtrArray *files)
{
  for (guint i = 0; i < files->len; i++) {
    const struct evidence *file = get_file (files, i);

    if (file->kind == EVIDENCE_DAMAGED)
      return refuse_damaged (file, finding->error);
    if (file->kind == EVIDENCE_IMAGE)
      g_ptr_array_add (finding->images, (gpointer) file);
    else if (file->kind == EVIDENCE_RAW)
      g_ptr_array_add (finding->raws, (gpointer) file);
    if (file->kind == EVIDENCE_IMAGE || file->sign)
      describe_file (finding->say, file);
  }
  return fit_together (finding->images, finding->error);
}

static void
say_left_out (const struct finding *finding)
{
  for (guint i = 0; i < finding->raws->len; i++) {
    const struct evidence *file = get_file (finding->raws, i);

    if (file->sign && !find_file (finding->chain, file->name))
      order_say (finding->say, "%s: left out", file->name);
  }
}

static bool
find_chain (struct finding *finding, const GPtrArray *files)
{
  if (!sort_out (finding, files))
    return false;
  fill_below (finding, files);
  if (!find_base (finding) || !stack_images (finding) || !check_chain (finding)
      || !check_others (finding, files) || !check_names (finding)
      || !check_relics (finding) || !check_named_images (finding)
      || !check_number (finding))
    return false;
  say_left_out (finding);
  return true;
}

bool
order_find (struct order *order, const GPtrArray *files,
            const struct relics *relics, const struct order_say *say,
            GError **error)
{
  struct finding finding = {
    .relics = relics,
    .say = say,
    .raws = g_ptr_array_new (),
    .images = g_ptr_array_new (),
    .chain = g_ptr_array_new (),
    .below = g_hash_table_new (NULL, NULL),
    .confidence = PLOOP_CONFIDENCE_CERTAIN,
    .error = error,
  };
  bool found = follow_relics (order, files, relics, say);

  if (!found && find_chain (&finding, files)) {
    g_autofree char *refusal = weigh (&finding);

    begin_order (order, finding.confidence);
    chain_files (order, finding.chain, relics);
    order->refusal = g_steal_pointer (&refusal);
    found = true;
  }
  if (found)
    describe_versions (order, say);
  g_ptr_array_unref (finding.raws);
  g_ptr_array_unref (finding.images);
  g_ptr_array_unref (finding.chain);
  g_hash_table_unref (finding.below);
  return found;
}
