/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* plugin/command-line.c: -r is found where nbdkit finds it, and nowhere else.
 */

#include <config.h>

#include <glib.h>

#include "command-line.h"
#include "run.h"

static const struct {
  const char *line;
  bool read_only;
} lines[] = {
  { "nbdkit ploop disk.hds", false },
  { "nbdkit -r ploop disk.hds", true },
  { "nbdkit ploop disk.hds -r", true },
  { "nbdkit --readonly ploop", true },
  { "nbdkit --read-only ploop", true },
  { "nbdkit --read ploop", true },
  { "nbdkit --r ploop", false },
  { "nbdkit --readonlyx ploop", false },
  { "nbdkit -fr ploop", true },
  { "nbdkit -frv ploop", true },
  { "nbdkit -f -p 10809 -r ploop", true },
  { "nbdkit -fp10809 ploop", false },
  { "nbdkit -U -r ploop", false },
  { "nbdkit -U/run/r.sock ploop", false },
  { "nbdkit -fU r ploop", false },
  { "nbdkit -e -r ploop", false },
  { "nbdkit --run -r ploop", false },
  { "nbdkit --run=-r ploop", false },
  { "nbdkit --pidfile -r -r ploop", true },
  { "nbdkit --filter readahead ploop", false },
  { "nbdkit -D ploop.requests=1 ploop", false },
  { "nbdkit -Dploop.requests=1 ploop", false },
  { "nbdkit ploop -- -r", false },
  { "nbdkit - -r", true },
  { "nbdkit", false },
  { "", false },
};

START_TEST (read_only_is_found)
{
  g_auto (GStrv) words = g_strsplit (lines[_i].line, " ", -1);

  ck_assert_msg (arguments_are_read_only (words) == lines[_i].read_only,
                 "%s", lines[_i].line);
}
END_TEST

START_TEST (this_process_is_not)
{
  ck_assert (!command_line_is_read_only ());
}
END_TEST

static void
add_tests (TCase *tcase)
{
  tcase_add_loop_test (tcase, read_only_is_found, 0,
                       (int) G_N_ELEMENTS (lines));
  tcase_add_test (tcase, this_process_is_not);
}

int
main (void)
{
  return run_tests ("command-line", add_tests);
}
