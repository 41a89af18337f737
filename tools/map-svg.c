/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* ploop-img map --output=svg: a picture of the files of a disk.
 *
 * A file is drawn from its beginning to its end, in rows like those of a text.  Data
 * has the colour of its place on the disk: where that changes slowly the file is in
 * order, and where it is motley it is fragmented.
 *
 * However large the file, the picture is not: a row has a number of slots, a slot
 * stands for so many bytes, and shows what most of them are.  Slots that look the
 * same are one rectangle.  The library tells the ranges in order, so that only one
 * slot and one rectangle are in memory.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "ploop-core.h"
#include "ploop-img.h"

#define SLOTS_PER_ROW 256u
#define MAX_ROWS 16u            /* of a file */
#define MAX_ROWS_IN_ALL 64u     /* but each has one */

/* In the units of the picture. */
#define SLOT_WIDTH 4u
#define ROW_HEIGHT 14u
#define MARGIN 16u
#define TEXT_HEIGHT 18u
#define WIDTH (2 * MARGIN + SLOTS_PER_ROW * SLOT_WIDTH)

#define NR_SHADES 64u

/* A file in the picture. */
struct panel {
  char *title;                  /* escaped */
  uint64_t file_size, slot_bytes;
  unsigned top;
};

/* What a slot is filled with so far. */
struct slot {
  uint64_t bytes[PLOOP_NR_USES];
  uint64_t guest_offset[PLOOP_NR_USES]; /* of the first of each */
  uint64_t filled;              /* bytes, the sum */
};

/* Slots that look the same, in one row. */
struct run {
  unsigned first, nr;           /* slots; none if NR is 0 */
  enum ploop_map_use use;
  unsigned shade;
  bool mixed;                   /* not all bytes have that use */
  uint64_t guest_offset;
};

struct drawing {
  const char *name;
  uint64_t size;                /* of the disk */
  unsigned nr_deltas;
  GArray *panels;               /* of struct panel */
  unsigned slot_number;
  struct slot slot;
  struct run run;
};

static const char *const colours[PLOOP_NR_USES] = {
  [PLOOP_USE_METADATA] = "#303030",
  [PLOOP_USE_EXTENSION] = "#ff9900",
  [PLOOP_USE_LEAKED] = "#d80000",
  [PLOOP_USE_FREE] = "#ffffff",
};

/* ---- Text -------------------------------------------------------------- */

/* TEXT as it may stand in XML, which has no control characters (g_free). */
static char *
escape (const char *text)
{
  g_autofree char *valid = g_utf8_make_valid (text, -1);
  g_autoptr (GString) clean = g_string_new (NULL);

  for (const char *p = valid; *p; p = g_utf8_next_char (p)) {
    const gunichar c = g_utf8_get_char (p);
    const bool allowed =
      c >= 0x20 && !(c >= 0x7f && c < 0xa0) && c != 0xfffe && c != 0xffff;

    g_string_append_unichar (clean, allowed ? c : 0xfffd);
  }
  return g_markup_escape_text (clean->str, -1);
}

/* ---- Colours ----------------------------------------------------------- */

/* From yellowish green by blue to purple: nothing that looks like what is leaked. */
static double
shade_hue (unsigned shade)
{
  return 80. + 210. * shade / (NR_SHADES - 1);
}

/* Red, green or blue, N being 0, 8 or 4, of a colour with lightness a half. */
static unsigned
hue_component (double hue, unsigned n, double saturation, double lightness)
{
  double k = n + hue / 30., a = saturation * MIN (lightness, 1 - lightness);

  while (k >= 12)
    k -= 12;
  return (unsigned) (255.
                     * (lightness
                        - a * CLAMP (MIN (k - 3, 9 - k), -1., 1.)) + .5);
}

/* The colour of a place of the disk; hidden, what is there is pale (g_free). */
static char *
shade_colour (unsigned shade, bool hidden)
{
  const double hue = shade_hue (shade);
  const double saturation = hidden ? .2 : .75, lightness = hidden ? .8 : .45;

  return g_strdup_printf ("#%02x%02x%02x",
                          hue_component (hue, 0, saturation, lightness),
                          hue_component (hue, 8, saturation, lightness),
                          hue_component (hue, 4, saturation, lightness));
}

static bool
is_shaded (enum ploop_map_use use)
{
  return use == PLOOP_USE_DATA || use == PLOOP_USE_HIDDEN;
}

static unsigned
shade_at (const struct drawing *drawing, uint64_t guest_offset)
{
  /* What is hidden may lie behind the end of the disk. */
  if (guest_offset >= drawing->size)
    return NR_SHADES - 1;
  return (unsigned) ((double) guest_offset / (double) drawing->size
                     * NR_SHADES);
}

static char *
use_colour (enum ploop_map_use use, unsigned shade)
{
  return is_shaded (use) ? shade_colour (shade, use == PLOOP_USE_HIDDEN)
                         : g_strdup (colours[use]);
}

/* ---- Rectangles -------------------------------------------------------- */

static const struct panel *
panel_of (const struct drawing *drawing, unsigned delta)
{
  return &g_array_index (drawing->panels, struct panel, delta);
}

static void
draw_title (const struct run *run, const struct panel *panel)
{
  const uint64_t start = run->first * panel->slot_bytes;
  const uint64_t end =
    MIN (start + run->nr * panel->slot_bytes, panel->file_size);

  printf ("<title>%s%s: bytes %" PRIu64 " to %" PRIu64 " of the file",
          run->mixed ? "mostly " : "", map_use_names[run->use], start, end - 1);
  if (is_shaded (run->use))
    printf (", from byte %" PRIu64 " of the disk", run->guest_offset);
  printf ("</title>");
}

static void
draw_run (struct drawing *drawing, const struct panel *panel)
{
  struct run *run = &drawing->run;
  g_autofree char *colour = NULL;

  if (run->nr == 0)
    return;
  colour = use_colour (run->use, run->shade);
  printf ("<rect class=\"%s\" x=\"%u\" y=\"%u\" width=\"%u\" height=\"%u\" "
          "fill=\"%s\">", map_use_names[run->use],
          MARGIN + run->first % SLOTS_PER_ROW * SLOT_WIDTH,
          panel->top + TEXT_HEIGHT + run->first / SLOTS_PER_ROW * ROW_HEIGHT,
          run->nr * SLOT_WIDTH, ROW_HEIGHT - 2, colour);
  draw_title (run, panel);
  printf ("</rect>\n");
  run->nr = 0;
}

/* What most of the slot is. */
static struct run
judge_slot (const struct drawing *drawing)
{
  const struct slot *slot = &drawing->slot;
  struct run run = { .first = drawing->slot_number, .nr = 1 };

  for (unsigned i = 1; i < PLOOP_NR_USES; i++)
    if (slot->bytes[i] > slot->bytes[run.use])
      run.use = (enum ploop_map_use) i;
  run.mixed = slot->bytes[run.use] < slot->filled;
  run.guest_offset = slot->guest_offset[run.use];
  if (is_shaded (run.use))
    run.shade = shade_at (drawing, run.guest_offset);
  return run;
}

static void
end_slot (struct drawing *drawing, const struct panel *panel)
{
  struct run *run = &drawing->run;
  const struct run next = judge_slot (drawing);

  if (drawing->slot.filled == 0)
    return;
  if (run->nr > 0 && next.first % SLOTS_PER_ROW != 0 && run->use == next.use
      && run->shade == next.shade && run->mixed == next.mixed)
    run->nr++;
  else {
    draw_run (drawing, panel);
    *run = next;
  }
  drawing->slot_number++;
  drawing->slot = (struct slot) { .filled = 0 };
}

static bool
draw_range (void *opaque, const struct ploop_map_range *range)
{
  struct drawing *drawing = opaque;
  struct slot *slot = &drawing->slot;
  const struct panel *panel = panel_of (drawing, range->delta);
  uint64_t done = 0;

  while (done < range->length) {
    const uint64_t length =
      MIN (range->length - done, panel->slot_bytes - slot->filled);

    if (slot->bytes[range->use] == 0)
      slot->guest_offset[range->use] = range->guest_offset + done;
    slot->bytes[range->use] += length;
    slot->filled += length;
    done += length;
    if (slot->filled == panel->slot_bytes)
      end_slot (drawing, panel);
  }
  return true;
}

/* ---- The picture ------------------------------------------------------- */

static unsigned
panel_rows (const struct panel *panel)
{
  const uint64_t row_bytes = panel->slot_bytes * SLOTS_PER_ROW;

  return (unsigned) ((panel->file_size + row_bytes - 1) / row_bytes);
}

/* The title, the rows, and what is written below them. */
static unsigned
panel_height (const struct panel *panel)
{
  return 2 * TEXT_HEIGHT + panel_rows (panel) * ROW_HEIGHT + MARGIN;
}

static void
draw_swatch (unsigned x, const char *fill, const char *text)
{
  printf ("<rect class=\"legend\" x=\"%u\" y=\"%u\" width=\"40\" "
          "height=\"12\" fill=\"%s\"/><text x=\"%u\" y=\"%u\">%s</text>\n", x,
          MARGIN + TEXT_HEIGHT, fill, x + 46, MARGIN + TEXT_HEIGHT + 10, text);
}

static void
draw_legend (void)
{
  g_autofree char *pale = shade_colour (NR_SHADES / 2, true);

  draw_swatch (MARGIN, "url(#disk)", "data, by its place on the disk");
  draw_swatch (MARGIN + 260, pale, "hidden by a higher delta");
  draw_swatch (MARGIN + 480, colours[PLOOP_USE_METADATA], "metadata");
  draw_swatch (MARGIN + 600, colours[PLOOP_USE_EXTENSION], "extension");
  draw_swatch (MARGIN + 720, colours[PLOOP_USE_LEAKED], "leaked");
  draw_swatch (MARGIN + 830, colours[PLOOP_USE_FREE], "free");
}

static void
draw_gradient (void)
{
  printf ("<defs><linearGradient id=\"disk\">");
  for (unsigned i = 0; i <= 8; i++) {
    g_autofree char *colour = shade_colour (i * (NR_SHADES - 1) / 8, false);

    printf ("<stop offset=\"%u%%\" stop-color=\"%s\"/>", i * 100 / 8, colour);
  }
  printf ("</linearGradient></defs>\n");
}

static void
begin_picture (const struct drawing *drawing, unsigned height)
{
  g_autofree char *name = escape (drawing->name);
  g_autofree char *size = size_format (drawing->size);

  printf ("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
          "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%u\" "
          "height=\"%u\" viewBox=\"0 0 %u %u\">\n", WIDTH, height, WIDTH,
          height);
  printf ("<title>%s</title>\n", name);
  printf ("<style>text { font: 12px sans-serif } "
          ".free, .legend { stroke: #c0c0c0; stroke-width: .5 }</style>\n");
  draw_gradient ();
  printf ("<rect width=\"%u\" height=\"%u\" fill=\"#ffffff\"/>\n", WIDTH,
          height);
  printf ("<text x=\"%u\" y=\"%u\" font-weight=\"bold\">%s: a disk of %s"
          "</text>\n", MARGIN, MARGIN + 10, name, size);
  draw_legend ();
}

static bool
take_disk (void *opaque, uint64_t size, unsigned nr_deltas)
{
  struct drawing *drawing = opaque;

  drawing->size = size;
  drawing->nr_deltas = nr_deltas;
  return true;
}

/* How many bytes a slot stands for: whole sectors, and as many as it takes. */
static uint64_t
slot_bytes (uint64_t file_size, unsigned nr_rows)
{
  const uint64_t unit = (uint64_t) nr_rows * SLOTS_PER_ROW * 512;

  return MAX ((file_size + unit - 1) / unit, 1) * 512;
}

/* With the last one, it is known how high the picture is. */
static bool
take_delta (void *opaque, const struct ploop_map_delta *delta)
{
  struct drawing *drawing = opaque;
  const unsigned nr_rows =
    CLAMP (MAX_ROWS_IN_ALL / drawing->nr_deltas, 1, MAX_ROWS);
  g_autofree char *path = escape (delta->path);
  struct panel panel = {
    .title = g_strdup_printf ("delta %u: %s", delta->index, path),
    .file_size = delta->file_size,
    .slot_bytes = slot_bytes (delta->file_size, nr_rows),
    .top = 2 * MARGIN + 2 * TEXT_HEIGHT,
  };

  if (delta->index > 0) {
    const struct panel *above = panel_of (drawing, delta->index - 1);

    panel.top = above->top + panel_height (above);
  }
  g_array_append_val (drawing->panels, panel);
  if (delta->index + 1 == drawing->nr_deltas)
    begin_picture (drawing, panel.top + panel_height (&panel));
  return true;
}

static bool
draw_usage (void *opaque, const struct ploop_map_usage *usage)
{
  struct drawing *drawing = opaque;
  const struct panel *panel = panel_of (drawing, usage->delta);
  g_autofree char *text = map_describe_usage (usage);

  end_slot (drawing, panel);
  draw_run (drawing, panel);
  drawing->slot_number = 0;
  printf ("<text x=\"%u\" y=\"%u\">%s</text>\n", MARGIN, panel->top + 12,
          panel->title);
  printf ("<text x=\"%u\" y=\"%u\">%s</text>\n", MARGIN,
          panel->top + TEXT_HEIGHT + panel_rows (panel) * ROW_HEIGHT + 12,
          text);
  return true;
}

static void
clear_panel (gpointer opaque)
{
  struct panel *panel = opaque;

  g_free (panel->title);
}

int
map_draw (const char *name, const struct ploop_map_options *options,
          GError **error)
{
  static const struct ploop_map_visitor visitor = {
    .disk = take_disk,
    .delta = take_delta,
    .range = draw_range,
    .usage = draw_usage,
  };
  g_autoptr (GArray) panels =
    g_array_new (FALSE, FALSE, sizeof (struct panel));
  struct drawing drawing = { .name = name, .panels = panels };

  g_array_set_clear_func (panels, clear_panel);
  if (ploop_map_disk (name, options, &visitor, &drawing, error) == -1)
    return -1;
  printf ("</svg>\n");
  return 0;
}
