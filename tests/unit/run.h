/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Running one suite of check: a test program's main is one call of this. */

#ifndef PLOOP_TESTS_RUN_H
#define PLOOP_TESTS_RUN_H

#include <stdlib.h>

#include <check.h>

#include "scratch.h"

static inline int
run_tests (const char *name, void (*add_tests) (TCase *))
{
  Suite *suite = suite_create (name);
  TCase *tcase = tcase_create (name);
  SRunner *runner;
  int failed;

  /* The scratch directory belongs to this process, not to a test's. */
  g_free (scratch_path ("first"));
  /* Against a hang, not for speed: valgrind on a busy machine is slow. */
  tcase_set_timeout (tcase, 300);
  add_tests (tcase);
  suite_add_tcase (suite, tcase);
  runner = srunner_create (suite);
  srunner_run_all (runner, CK_NORMAL);
  failed = srunner_ntests_failed (runner);
  srunner_free (runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif /* PLOOP_TESTS_RUN_H */
