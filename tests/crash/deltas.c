/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Described disks: see deltas.h. */

#include <config.h>

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "deltas.h"
#include "drawn.h"

#define SECTOR 512u
#define TOP_GUID "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
#define NO_GUID "{00000000-0000-0000-0000-000000000000}"

static uint32_t
divide_up (uint32_t n, uint32_t by)
{
  return (n + by - 1) / by;
}

/* ---- Making ------------------------------------------------------------ */

static struct reader_shape
shape_of (const struct deltas *deltas, const struct delta_plan *plan)
{
  const uint32_t cluster = deltas->cluster_sectors;
  struct reader_shape shape = {
    .version = plan->version,
    .cluster_sectors = cluster,
    .nr_sectors = plan->nr_sectors,
    .nr_entries = divide_up (plan->nr_sectors, cluster),
  };
  const uint32_t head = divide_up (64 + 4 * shape.nr_entries, SECTOR);

  shape.data_sectors = divide_up (head, cluster) * cluster;
  return shape;
}

static void
put_cluster (uint8_t *bytes, uint64_t sector, uint32_t nr,
             const struct delta_plan *plan, GRand *random)
{
  if (!drawn_chance (random, plan->empty))
    drawn_stamp (bytes, sector, nr, plan->holes, random);
}

static uint8_t *
make_image (const struct deltas *deltas, const struct delta_plan *plan,
            uint64_t *size, GRand *random)
{
  const struct reader_shape shape = shape_of (deltas, plan);
  const uint32_t cluster = shape.cluster_sectors;
  g_autofree uint8_t *head = reader_make (&shape, size);
  g_autofree uint32_t *cells = drawn_order (shape.nr_entries, random);
  const uint64_t start = *size;
  uint8_t *bytes;

  *size = start + (uint64_t) shape.nr_entries * cluster * SECTOR;
  bytes = g_malloc0 (*size);
  memcpy (bytes, head, start);
  bytes[52] = 0;                /* not empty */
  for (uint32_t i = 0; i < shape.nr_entries; i++) {
    const uint64_t offset = start + (uint64_t) cells[i] * cluster * SECTOR;

    if (!drawn_chance (random, plan->used))
      continue;
    reader_put_entry (&shape, bytes, i, offset);
    put_cluster (bytes + offset, (uint64_t) i * cluster, cluster, plan, random);
  }
  return bytes;
}

static uint8_t *
make_raw (const struct deltas *deltas, const struct delta_plan *plan,
          uint64_t *size, GRand *random)
{
  const uint32_t cluster = deltas->cluster_sectors;
  uint8_t *bytes;

  *size = (uint64_t) plan->nr_sectors * SECTOR;
  bytes = g_malloc0 (*size);
  for (uint32_t first = 0; first < plan->nr_sectors; first += cluster)
    if (drawn_chance (random, plan->used))
      put_cluster (bytes + (uint64_t) first * SECTOR, first,
                   MIN (cluster, plan->nr_sectors - first), plan, random);
  return bytes;
}

/* As ploop has it, the top has a GUID that is always the same. */
static void
name_deltas (struct deltas *deltas)
{
  for (unsigned i = 0; i < deltas->nr; i++) {
    struct delta_file *file = &deltas->files[i];

    snprintf (file->name, sizeof file->name, "delta%u", i);
    snprintf (file->guid, sizeof file->guid,
              "{%08x-1111-4222-8333-444455556666}", i + 1);
  }
  strcpy (deltas->files[deltas->nr - 1].guid, TOP_GUID);
}

void
deltas_add (struct deltas *deltas, const struct delta_plan *plan,
            GRand *random)
{
  struct delta_file *file = &deltas->files[deltas->nr++];
  g_autofree char *fault = NULL;
  const uint8_t *bytes;
  uint64_t size;

  file->parent = plan->parent;
  file->raw = plan->version == 0;
  bytes = (file->raw ? make_raw : make_image) (deltas, plan, &size, random);
  fault = deltas_exchange (deltas, deltas->nr - 1, bytes, size);
  if (fault)
    g_error ("a delta to begin with: %s", fault);
  name_deltas (deltas);
}

void
deltas_clear (struct deltas *deltas)
{
  for (unsigned i = 0; i < deltas->nr; i++)
    g_free ((uint8_t *) deltas->files[i].bytes);
  deltas->nr = 0;
}

/* ---- Reading ----------------------------------------------------------- */

char *
deltas_exchange (struct deltas *deltas, unsigned i, const uint8_t *bytes,
                 uint64_t size)
{
  struct delta_file *file = &deltas->files[i];
  char *fault = NULL;

  file->bytes = bytes;
  file->size = size;
  if (!file->raw)
    fault = reader_open (&file->reader, bytes, size);
  file->nr_sectors = file->raw ? (uint32_t) (size / SECTOR)
                               : file->reader.shape.nr_sectors;
  return fault;
}

/* What FILE has of SECTOR; NULL: the next lower delta has it. */
static const uint8_t *
sector_of (const struct deltas *deltas, const struct delta_file *file,
           uint64_t sector)
{
  static const uint8_t zeroes[SECTOR];
  const uint64_t cluster = sector / deltas->cluster_sectors;
  const uint8_t *bytes;

  if (file->raw)
    return sector < file->nr_sectors ? file->bytes + sector * SECTOR : NULL;
  if (cluster >= file->reader.shape.nr_entries)
    return NULL;
  bytes = reader_sector (&file->reader, sector);
  /* What it has of a cluster behind its end is nobody's. */
  return bytes && sector >= file->nr_sectors ? zeroes : bytes;
}

const uint8_t *
deltas_sector (const struct deltas *deltas, unsigned i, uint64_t sector)
{
  static const uint8_t zeroes[SECTOR];

  for (; i != DELTAS_NONE; i = deltas->files[i].parent) {
    const uint8_t *bytes = sector_of (deltas, &deltas->files[i], sector);

    if (bytes)
      return bytes;
  }
  return zeroes;
}

/* ---- Files ------------------------------------------------------------- */

static void
describe_images (const struct deltas *deltas, GString *text)
{
  for (unsigned i = 0; i < deltas->nr; i++)
    g_string_append_printf (text, "<Image><GUID>%s</GUID><Type>%s</Type>"
                            "<File>%s</File></Image>", deltas->files[i].guid,
                            deltas->files[i].raw ? "Plain" : "Compressed",
                            deltas->files[i].name);
}

static void
describe_shots (const struct deltas *deltas, GString *text)
{
  for (unsigned i = 0; i < deltas->nr; i++) {
    const unsigned parent = deltas->files[i].parent;

    g_string_append_printf (text, "<Shot><GUID>%s</GUID>"
                            "<ParentGUID>%s</ParentGUID></Shot>",
                            deltas->files[i].guid,
                            parent == DELTAS_NONE ? NO_GUID
                                                  : deltas->files[parent].guid);
  }
}

char *
deltas_describe (const struct deltas *deltas)
{
  const uint32_t nr_sectors = deltas->files[deltas->nr - 1].nr_sectors;
  GString *text = g_string_new (NULL);

  g_string_printf (text, "<?xml version=\"1.0\"?><Parallels_disk_image>"
                   "<Disk_Parameters><Disk_size>%u</Disk_size>"
                   "<Cylinders>1</Cylinders><Heads>1</Heads><Sectors>1</Sectors>"
                   "<Padding>0</Padding></Disk_Parameters><StorageData><Storage>"
                   "<Start>0</Start><End>%u</End><Blocksize>%u</Blocksize>",
                   nr_sectors, nr_sectors, deltas->cluster_sectors);
  describe_images (deltas, text);
  g_string_append (text, "</Storage></StorageData><Snapshots>"
                   "<TopGUID>" TOP_GUID "</TopGUID>");
  describe_shots (deltas, text);
  g_string_append (text, "</Snapshots></Parallels_disk_image>\n");
  return g_string_free (text, FALSE);
}

void
deltas_save (const struct deltas *deltas, const char *directory)
{
  g_autofree char *xml =
    g_build_filename (directory, "DiskDescriptor.xml", NULL);
  g_autofree char *text = deltas_describe (deltas);

  deltas_remove (directory);
  for (unsigned i = 0; i < deltas->nr; i++) {
    g_autofree char *path =
      g_build_filename (directory, deltas->files[i].name, NULL);

    drawn_save (path, deltas->files[i].bytes, deltas->files[i].size);
  }
  drawn_save (xml, (const uint8_t *) text, strlen (text));
}

void
deltas_remove (const char *directory)
{
  g_autoptr (GDir) dir = g_dir_open (directory, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name (dir))) {
    g_autofree char *path = g_build_filename (directory, name, NULL);

    unlink (path);
  }
}
