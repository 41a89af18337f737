/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Writing a DiskDescriptor.xml, in the styles that are found: ploop's, libploop 9's,
 * and that of Parallels Desktop, with elements that ploop does not know.
 */

#include <config.h>

#include <fcntl.h>
#include <string.h>

#include "disk.h"

void
geometry_of (uint32_t size_sectors, uint32_t *heads, uint32_t *sectors,
             uint32_t *cylinders)
{
  static const uint32_t all_sectors[] = { 63, 32, 16, 8 };

  *heads = 16;
  *sectors = 63;
  if (size_sectors > 1032192 && size_sectors < 16777216) {
    *cylinders = size_sectors / (16 * 63);
    return;
  }
  for (size_t i = 0; i < G_N_ELEMENTS (all_sectors); i++)
    for (*heads = 16; *heads > 1; *heads /= 2) {
      *sectors = all_sectors[i];
      *cylinders = size_sectors / (*sectors * *heads);
      if (size_sectors % (*sectors * *heads) == 0)
        return;
    }
  *heads = *sectors = 1;
  *cylinders = size_sectors;
}

/* <NAME>TEXT</NAME> on a line of its own. */
static void
add (GString *xml, unsigned indent, const char *name, const char *text)
{
  g_autofree char *escaped = g_markup_escape_text (text, -1);

  g_string_append_printf (xml, "%*s<%s>%s</%s>\n", (int) indent, "", name,
                          escaped, name);
}

static void
add_number (GString *xml, unsigned indent, const char *name, uint32_t number)
{
  g_autofree char *text = g_strdup_printf ("%u", number);

  add (xml, indent, name, text);
}

static uint32_t
size_of (const struct disk *disk)
{
  const struct shot *shot = &disk->shots[disk->is_stale ? 0 : disk->top];
  uint32_t size = 0;

  for (unsigned i = 0; i < disk->nr_storages; i++)
    size += shot->deltas[i].size_sectors;
  return size;
}

static void
add_parameters (GString *xml, const struct disk *disk)
{
  uint32_t heads, sectors, cylinders;

  geometry_of (size_of (disk), &heads, &sectors, &cylinders);
  g_string_append (xml, "  <Disk_Parameters>\n");
  add_number (xml, 4, "Disk_size", size_of (disk));
  add_number (xml, 4, "Cylinders", cylinders);
  add_number (xml, 4, "Heads", heads);
  add_number (xml, 4, "Sectors", sectors);
  add_number (xml, 4, "Padding", 0);
  if (disk->has_unknown)
    g_string_append (xml,
                     "    <PhysicalSectorSize>4096</PhysicalSectorSize>\n"
                     "    <Name>a disk &amp; its name</Name>\n"
                     "    <Miscellaneous><CompatLevel>level2</CompatLevel>"
                     "<!-- of somebody --></Miscellaneous>\n");
  g_string_append (xml, "  </Disk_Parameters>\n");
}

/* The shots' indexes, in the order in which they are listed. */
static GArray *
order_of (const struct disk *disk, GRand *dice)
{
  GArray *order = g_array_new (FALSE, FALSE, sizeof (unsigned));

  for (unsigned i = 0; i < disk->nr_shots; i++)
    if (disk->is_shuffled)
      g_array_insert_val (order, dice_range (dice, 0, i), i);
    else
      g_array_append_val (order, i);
  return order;
}

static void
add_image (GString *xml, const struct disk *disk, const struct shot *shot,
           unsigned storage)
{
  const struct delta *delta = &shot->deltas[storage];

  g_string_append (xml, "      <Image>\n");
  add (xml, 8, "GUID", shot->guid);
  add (xml, 8, "Type",
       delta->is_raw || disk->all_plain ? "Plain" : "Compressed");
  add (xml, 8, "File", delta->path);
  g_string_append (xml, "      </Image>\n");
}

static void
add_storage (GString *xml, const struct disk *disk, unsigned index,
             const GArray *order)
{
  const struct storage *storage = &disk->storages[index];

  g_string_append (xml, "    <Storage>\n");
  add_number (xml, 6, "Start", storage->start);
  add_number (xml, 6, "End",
              disk->nr_storages > 1 ? storage->end : size_of (disk));
  add_number (xml, 6, "Blocksize", storage->cluster_sectors);
  if (disk->has_preallocated)
    add_number (xml, 6, "Preallocated", 0);
  if (disk->has_unknown)
    g_string_append (xml, "      <Hint kind=\"cache\">none</Hint>\n");
  for (guint i = 0; i < order->len; i++)
    add_image (xml, disk, &disk->shots[g_array_index (order, unsigned, i)],
               index);
  g_string_append (xml, "    </Storage>\n");
}

static void
add_shot (GString *xml, const struct disk *disk, const struct shot *shot)
{
  g_autofree char *guid = disk->is_upper_case ? g_ascii_strup (shot->guid, -1)
                                              : g_strdup (shot->guid);

  g_string_append (xml, "    <Shot>\n");
  add (xml, 6, "GUID", guid);
  add (xml, 6, "ParentGUID",
       shot->parent < 0 ? NO_GUID : disk->shots[shot->parent].guid);
  if (shot->mark)
    g_string_append_printf (xml, "      <%s/>\n", shot->mark);
  if (disk->has_unknown)
    g_string_append (xml, "      <Description>before the upgrade"
                     "</Description>\n");
  g_string_append (xml, "    </Shot>\n");
}

static char *
text_of (const struct disk *disk, GRand *dice)
{
  GString *xml = g_string_new ("<?xml version=\"1.0\"?>\n");
  g_autoptr (GArray) order = order_of (disk, dice);

  g_string_append_printf (xml, "<%s%s>\n", disk->root_element,
                          disk->has_version ? " Version=\"1.0\"" : "");
  add_parameters (xml, disk);
  g_string_append (xml, "  <StorageData>\n");
  for (unsigned i = 0; i < disk->nr_storages; i++)
    add_storage (xml, disk, i, order);
  g_string_append (xml, "  </StorageData>\n  <Snapshots>\n");
  add (xml, 4, "TopGUID", disk->shots[disk->top].guid);
  for (guint i = 0; i < order->len; i++)
    add_shot (xml, disk, &disk->shots[g_array_index (order, unsigned, i)]);
  g_string_append (xml, "  </Snapshots>\n");
  if (disk->has_unknown)
    g_string_append (xml, "  <Vendor><Key>of no interest</Key></Vendor>\n");
  g_string_append_printf (xml, "</%s>\n", disk->root_element);
  return g_string_free (xml, FALSE);
}

bool
descriptor_write (const char *path, const struct disk *disk, GRand *dice,
                  GError **error)
{
  g_autofree char *text = text_of (disk, dice);

  return g_file_set_contents (path, text, -1, error);
}
