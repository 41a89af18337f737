#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Do the power-cut tests notice?  Each mutation is one fault put into a copy of
# one file of lib/; test-power-cut, or for compact.c and mover.c test-compact-cut, for
# bitmap-update.c test-bitmap-cut, for resize.c test-resize-cut, for merge.c test-merge-cut,
# for snapshot.c test-kill-everywhere, for repair.c test-repair-cut, or the test that is
# named, is linked with it and must fail.
#
# A mutation whose text is not in the source any more is an error: mend the
# expression.  make check tries those that are found quickly, with
# PLOOP_TEST_SCALE below 100 a sixth of them, by PLOOP_TEST_SEED; above 100
# ("make crash"), all.  Names as arguments: only these.

set -u

: "${CC:=cc}" "${CFLAGS:=-g -O2}" "${PLOOP_TEST_SCALE:=100}"
srcdir=${srcdir:-.}
lib=$srcdir/../../lib
scratch=$(mktemp -d "${TMPDIR:-/tmp}/ploop-mutations-XXXXXX") || exit 99
trap 'rm -rf "$scratch"' EXIT
trap 'exit 99' HUP INT TERM
nr_unnoticed=0
wanted=" $* "
turn=${PLOOP_TEST_SEED:-$(date +%s)}
echo "PLOOP_TEST_SEED=$turn PLOOP_TEST_SCALE=$PLOOP_TEST_SCALE"

# What is linked beside the mutated file, and how: Makefile.am says.
: "${MUTATION_CPPFLAGS?}" "${MUTATION_LDFLAGS?}" "${MUTATION_LIBS?}" \
  "${MUTATION_WRAPS?}" "${MUTATION_MERGE_WRAPS?}" "${MUTATION_KILLER_WRAPS?}"
power_cut_objects='test-power-cut.o lower.o recorder.o reader.o rules.o
  workload.o'
chain_cut_objects='test-chain-cut.o lower.o recorder.o reader.o rules.o'
bitmap_cut_objects='test-bitmap-cut.o recorder.o reader.o rules.o'
compact_cut_objects='test-compact-cut.o drawn.o recorder.o reader.o rounds.o
  rules.o'
merge_cut_objects='test-merge-cut.o deltas.o drawn.o recorder.o reader.o
  rounds.o rules.o'
kill_objects='test-kill-everywhere.o deltas.o drawn.o killer.o reader.o rules.o'
resize_cut_objects='test-resize-cut.o drawn.o recorder.o reader.o rounds.o
  rules.o'
repair_cut_objects='test-repair-cut.o drawn.o recorder.o reader.o rounds.o
  rules.o'

fail ()
{
  echo "$1" >&2
  exit 99
}

# build NAME FILE EXPRESSION [TEST]: $scratch/NAME is the test with a fault.
build ()
{
  sed -e "$3" "$lib/$2" > "$scratch/$2"
  if cmp -s "$lib/$2" "$scratch/$2"; then
    fail "$1: lib/$2 does not have the text that is to be changed"
  fi
  wraps=$MUTATION_WRAPS
  case ${4:-$2} in
  compact.c | mover.c) objects=$compact_cut_objects ;;
  bitmap-update.c) objects=$bitmap_cut_objects ;;
  repair.c | repair-cut) objects=$repair_cut_objects ;;
  chain-cut) objects=$chain_cut_objects ;;
  merge.c | merge-cut) objects=$merge_cut_objects
                       wraps=$MUTATION_MERGE_WRAPS ;;
  resize.c) objects=$resize_cut_objects ;;
  snapshot.c | kill) objects=$kill_objects
                     wraps=$MUTATION_KILLER_WRAPS ;;
  *) objects=$power_cut_objects ;;
  esac
  # The archive's own member is not pulled in: all it defines is there.
  # shellcheck disable=SC2086
  $CC -DG_LOG_DOMAIN='"ploop-core"' $MUTATION_CPPFLAGS -I"$lib" $CFLAGS -w \
    -c -o "$scratch/mutated.o" "$scratch/$2" \
    && $CC $CFLAGS $MUTATION_LDFLAGS $wraps -o "$scratch/$1" $objects \
         "$scratch/mutated.o" ../../lib/.libs/libploop-private.a \
         $MUTATION_LIBS \
    || fail "$1: cannot be built"
}

# Is it the turn of this one of the quick mutations?
is_due ()
{
  turn=$((turn + 1))
  test "$PLOOP_TEST_SCALE" -ge 100 || test $((turn % 6)) -eq 0
}

# mutate quick|slow|rare NAME FILE EXPRESSION [TEST]
#
# Rare: a race so narrow that not to notice it is no failure; only told.
mutate ()
{
  case $wanted in
  '  ') if test "$1" != quick && test "$PLOOP_TEST_SCALE" -le 100; then
          return
        fi
        is_due || return ;;
  *" $2 "*) ;;
  *) return ;;
  esac
  build "$2" "$3" "$4" "${5:-}"
  begun=$(date +%s%N)
  PLOOP_TEST_SCALE=$(test "$1" = quick && echo 100 || echo 300) \
  "$scratch/$2" > "$scratch/log" 2> "$scratch/log.err"
  status=$?
  took=$((($(date +%s%N) - begun) / 100000000))
  states=$(sed -n 's/ crash states.*//p' "$scratch/log")
  printf '%-28s %4d.%d s %6s states: ' "$2" $((took / 10)) $((took % 10)) \
    "${states:-?}"
  if test $status -eq 0; then
    echo 'NOT NOTICED'
    test "$1" = rare || nr_unnoticed=$((nr_unnoticed + 1))
  else
    tail -n 1 "$scratch/log.err" | cut -c 1-90
  fi
  rm -f "$scratch/$2"
}

# ---- Syncs ------------------------------------------------------------------

mutate quick commit-without-sync commit.c \
  '/^run_commit/,/^}/ s/r = sync_delta (commit);/r = 0;/'
mutate quick size-without-sync alloc.c \
  's/r = delta_sync_apart (alloc->delta);/r = 0;/'
mutate slow mark-without-sync commit.c \
  '/^mark_locked/,/^}/ s/r = commit_flush (commit);/r = 0;/'
mutate slow close-without-commit image.c \
  '/^finish/,/^}/ s/r = commit_flush (.*);/r = 0;/'
mutate slow failed-sync-forgotten commit.c \
  '/^sync_delta/,/^}/ s/(&commit->failed, true,/(\&commit->failed, false,/'
mutate quick forced-write-without-sync delta.c \
  '/^delta_pwrite_durable/,/^}/ s/offset, true);/offset, false);/'

# ---- What a commit covers ---------------------------------------------------

mutate quick covered-read-after-sync commit.c \
  '/^run_commit/,/^}/ s/changes_set_durable/*covered = changes_now (commit->changes); changes_set_durable/'
mutate slow dirty-cleared-before-write commit.c \
  '/^write_pages/,/^}/ { s/^  length = encode/  for (uint64_t page = first; page < end; page++) clear_page (commit->dirty, \&commit->nr_dirty, page);\n&/; s/^    clear_page/    (void)/; s/(void) (commit->dirty, .*/(void) page;/; }'
mutate quick entry-never-dirty commit.c \
  '/^unmap /,/^}/ s/put_down (commit, .*);//'
mutate slow forced-write-without-entry commit.c \
  '/^commit_entry_is_durable/,/^}/ s/return /return true || /'
mutate quick write-not-noted request.c \
  '/^write_extent/,/^}/ s/changes_note (&disk->changes);//'
mutate quick zero-not-noted unmap.c \
  '/^zero_in_place/,/^}/ s/changes_note (&disk->changes);//'
mutate quick trim-not-noted commit.c \
  '/^unmap /,/^}/ s/= changes_note (commit->changes);/= changes_now (commit->changes);/'

# ---- Freed clusters ---------------------------------------------------------

mutate slow reuse-at-once freed.c \
  '/^scrub_batch/,/^}/ s/!changes_are_synced (.*))/false)/'
mutate slow reuse-before-punch-durable freed.c \
  '/^scrub_batch/,/^}/ s/batch->change = changes_note/changes_note/'
mutate quick reuse-without-punch freed.c \
  '/^clear_run/,/^}/ s/int r = delta_punch (.*);/int r = 0;/'
mutate rare reuse-without-grace-period freed.c \
  's/call_rcu (&batch->rcu, settle);/settle (\&batch->rcu);/'

# ---- The page cache, for whoever is killed ----------------------------------

mutate quick entry-put-off commit.c \
  '/^write_or_put_down/,/^}/ s/if (commit->write_back_delay == 0)/if (false)/'
mutate quick trim-put-off unmap.c \
  '/^request_end_unmapping/,/^}/ s/if (length == 0)/if (true)/' chain-cut

# ---- Parts of clusters ------------------------------------------------------

mutate quick written-part-punched trims.c \
  '/^trims_write/,/^}/ s/remove_part (record->parts, part);//'
mutate slow write-under-a-punch trims.c \
  '/^trims_write/,/^}/ s/&& overlaps (record->busy, part))/\&\& false)/'
mutate slow record-of-another-time trims.c \
  '/^is_good/,/^}/ s/return /return true || /'
mutate rare unmapped-without-grace-period trims.c \
  's/call_rcu (&batch->rcu, settle);/settle (\&batch->rcu);/'
mutate slow leak-in-use-reclaimed alloc.c \
  '/^alloc_reclaim/,/^}/ s/leak->first)/leak->first + 1)/'

# ---- Copy-on-write ----------------------------------------------------------

mutate quick copy-not-committed copy-up.c \
  '/^publish_copy/,/^}/ s/MAP_UNSTABLE | MAP_COVERS/MAP_COVERS/' chain-cut
mutate quick copy-published-as-stable commit.c \
  '/^commit_publish_copy/,/^}/ s/set_page (commit->unstable, .*);/put_down (commit, page); by \&= ~MAP_UNSTABLE;/' chain-cut
mutate quick copy-without-sync commit.c \
  '/^sync_unstable/,/^}/ s/r = sync_delta (commit);/r = 0;/' chain-cut
mutate quick unstable-entry-written commit.c \
  '/^entry_of/,/^}/ s/|| map_word_is_unstable (word)//' chain-cut
mutate quick lower-entry-written commit.c \
  '/^entry_of/,/^}/ s/|| map_word_level (word) != commit->level//' chain-cut
mutate quick stable-entry-not-written commit.c \
  '/^stabilise/,/^}/ s/put_down (commit, page);//' chain-cut
mutate slow copies-wait-for-a-flush commit.c \
  '/^commit_publish_copy/,/^}/ s/call (commit, commit->hooks.unstable);//' chain-cut
mutate quick copy-without-head copy.c \
  '/^copy_cluster/,/^}/ s/before = { 0,/before = { MIN (left_out.from, length),/' chain-cut
mutate quick copy-without-tail copy.c \
  '/^copy_cluster/,/^}/ s/after = { MIN (left_out.to, length)/after = { length/' chain-cut
mutate quick clone-without-zeros copy-up.c \
  '/^fill_copy/,/^}/ s/return whole ?/return true ?/' chain-cut
mutate quick copy-covers-nothing copy-up.c \
  '/^publish_copy/,/^}/ s/MAP_UNSTABLE | MAP_COVERS/MAP_UNSTABLE/' chain-cut
mutate quick merged-covers-nothing map.c \
  '/^map_merge/,/^}/ s/| MAP_COVERS//' chain-cut
mutate quick trim-unmaps-above unmap.c \
  '/^trim_piece/,/^}/ s/!(piece->word & MAP_COVERS) && //' chain-cut
mutate quick zero-unmaps-above unmap.c \
  '/^may_unmap/,/^}/ s/&& !(extent->word & MAP_COVERS)//' chain-cut
mutate quick trimmed-parts-unmap-above trims.c \
  '/^may_unmap/,/^}/ s/return .*;/return true;/' chain-cut
mutate quick lower-cluster-zeroed unmap.c \
  '/^zero_piece/,/^}/ s/if (is_lower (.*))$/if (false)/' chain-cut
mutate quick lower-cluster-written request.c \
  '/^next_mapped_extent/,/^}/ s/else if (is_lower (.*))$/else if (false)/' chain-cut
mutate slow failed-copy-reused-at-once copy-up.c \
  '/^copy_up/,/^}/ { s/^  alloc_keep (.*);//; s/alloc_free (.*);/alloc_give_back (\&disk->alloc, entry);/; s/^  publish_copy (.*/  alloc_keep (\&disk->alloc); &/; }'
mutate slow copy-during-sync-made-stable commit.c \
  '/^stabilise_entries/,/^}/ s/& MAP_COVERED)/\& MAP_UNSTABLE)/'
# The race is held open for a while.
mutate slow unstable-page-noted-late commit.c \
  '/^commit_publish_copy/,/^}/ { s/set_page (commit->unstable, .*);//; s/call (commit, .*);/g_usleep (3000); set_page (commit->unstable, \&commit->nr_unstable, page); &/; }'

# ---- Lazy copies ------------------------------------------------------------

mutate quick flush-without-fills image.c \
  '/^complete_fills/,/^}/ s/return .*;/return 0 * sizeof disk;/' chain-cut
mutate quick filling-copy-made-stable commit.c \
  's/^    filled = commit->hooks.fill (.*);/    ;/; /^cover_entries/,/^}/ s/word & MAP_FILLING/false/' chain-cut
mutate quick fill-copies-nothing fills.c \
  '/^copy_sectors/,/^}/ s/if (r == 0 && start < stop)/if (false)/' chain-cut
mutate quick fill-over-what-is-written fills.c \
  '/^fill_write/,/^}/ s/^    set_there (/    if (!buf) set_there (/' chain-cut
mutate quick fill-over-zeros fills.c \
  '/^fill_write/,/^}/ s/^    set_there (/    if (buf) set_there (/' chain-cut
mutate quick written-as-if-it-were-whole copy-up.c \
  '/^put_extent/,/^}/ s/if (G_UNLIKELY (.*))$/if (false)/' chain-cut
mutate quick read-as-if-it-were-whole request.c \
  '/^read_extent/,/^}/ s/if (G_UNLIKELY (.*)) {$/if (false) {/' chain-cut
mutate quick joined-with-what-is-filling extent.c \
  '/^join_mapped/,/^}/ s/MAP_FILLING | //' chain-cut
mutate slow whole-copy-in-no-page commit.c \
  '/^cover_unstable/,/^}/ s/if (cover_entries (commit, page))/cover_entries (commit, page);/'

# ---- Compacting -------------------------------------------------------------

mutate quick move-without-commit compact.c \
  '/^commit_moves/,/^}/ s/r = mover_commit (.*);/r = 0;/'
mutate quick move-without-data mover.c \
  '/^copy_data/,/^}/ s/r = delta_pwrite (.*);/r = 0;/'
mutate quick hole-over-garbage mover.c \
  '/^copy_hole/,/^}/ s/r = clear (.*);/r = 0;/'
mutate quick move-before-data-is-synced mover.c \
  '/^mover_publish/,/^}/ s/commit_publish_copy (/delta_pwrite (mover->delta, \&entry, 4, format_bat_offset (index)); &/'
mutate quick cut-before-commit compact.c \
  '/^move_batch/,/^}/ s/const int r = copy_batch (compact, moves);/const int r = copy_batch (compact, moves); update_high (compact); mover_cut (\&compact->mover, data_end (compact));/'
mutate quick moved-cell-not-used mover.c \
  '/^mover_publish/,/^}/ s/cells_set_used (.*);//'

# ---- Repairing --------------------------------------------------------------

mutate quick repair-looks-unflushed commit.c \
  '/^commit_mark_repair/,/^}/ s/= FORMAT_IN_REPAIR;/= FORMAT_IN_USE;/' repair-cut
mutate quick repair-marked-before-lost commit.c \
  '/^mark_locked/,/^}/ s/has_lost_entries (commit)/false/' repair-cut
mutate quick repair-over-faults repair.c \
  '/^avoid_faults/,/^}/ s/cells_set_used (.*);//'
mutate quick repair-cut-before-commit repair.c \
  '/^make_changes/,/^}/ s/if (publish_all (.*) < 0)/if (mover_cut (mover, file_size) < 0 || publish_all (repair, cells) < 0)/'
mutate quick bitmaps-kept-with-zeros repair.c \
  '/^makes_bitmaps_untrue/,/^}/ s/return true;/return false;/'

# ---- Bitmaps ----------------------------------------------------------------

mutate quick bitmaps-not-synced bitmap-update.c \
  '/^switch_header/,/^}/ s/= delta_sync (.*);/= 0;/'
mutate quick bitmaps-given-back-at-once bitmap-update.c \
  '/^write_header/,/^}/ s/delta_pwrite_durable/delta_pwrite/'
mutate quick bitmaps-given-back-before bitmap-update.c \
  '/^commit_once/,/^}/ { s/^  release_old .*//; s/^  if (!switch_header/  release_old (update, clusters);\n&/; }'
mutate quick bitmaps-written-over bitmap-update.c \
  '/^take_cluster/,/^}/ s/while (overlaps (.*/while (false \&\& overlaps (update->old_clusters, layout->cluster_size, *offset,/'
mutate quick guest-clusters-written-over bitmap-update.c \
  '/^load_bat/,/^}/ s/: update->data_end);/: 0);/'
mutate quick bitmaps-written-unmarked bitmap-update.c \
  '/^mark (/,/^}/ s/return write_header (.*);/return 0;/'
mutate quick bitmaps-closed-uncleared bitmap-update.c \
  '/^close_image/,/^}/ s/= delta_sync (.*);/= 0;/'
mutate quick bitmaps-marked-stale bitmap-update.c \
  '/^switch_header/,/^}/ s/header.in_use = FORMAT_CLOSED_EXTENSION;/header.in_use = FORMAT_IN_USE;/'

# ---- Resizing ---------------------------------------------------------------

mutate quick header-before-moves resize.c \
  '/^run (/,/^}/ { s/: prepare (resize);/: replace_header (resize);/; t; s/r = replace_header (resize);/r = prepare (resize);/; }'
mutate quick header-before-sync resize.c \
  '/^replace_header/,/^}/ s/int r = delta_sync (.*);/int r = 0;/'
mutate quick longer-bat-not-zeroed resize.c \
  '/^make_room/,/^}/ s/r = write_zeros (.*);/r = 0;/'
mutate quick rest-comes-to-light resize.c \
  '/^make_room/,/^}/ s/r = clear_rest (.*);/r = 0;/'
mutate quick entries-behind-the-end-stay resize.c \
  '/^drop_behind_end/,/^}/ s/mover_drop (mover, i);/(void) mover;/'
mutate quick nothing-moved-away resize.c \
  '/^is_in_the_way/,/^}/ s/return .*;/return host > 0 \&\& false;/'

# ---- Merging ----------------------------------------------------------------

mutate quick merged-without-mark merge.c \
  '/^mark_temporary/,/^}/ s/return !changed || .*;/return true;/'
mutate quick descriptor-before-close merge.c \
  '/^copy_part/,/^}/ s/if (close_target (merging, .*) == -1)/if (false)/'
mutate quick raw-without-sync merge.c \
  '/^finish_raw/,/^}/ s/r = delta_sync (.*);/;/'
mutate quick unlink-before-store merge.c \
  '/^replace_described/,/^}/ s/&& descriptor_store (\(.*\), error)/\&\& described_remove_files (described, paths, error) \&\& descriptor_store (\1, error)/'
mutate quick unlink-before-store-is-durable descriptor-edit.c \
  '/^descriptor_store/,/^}/ s/r = replace_sync (.*);/r = 0;/' merge-cut
mutate quick merged-zeros-not-written merge.c \
  '/^zero_target/,/^}/ s/if (length == 0)/if (true)/'

# ---- Names ------------------------------------------------------------------

mutate quick descriptor-before-new-delta snapshot.c \
  '/^store (/,/^}/ s/if (create_deltas (change, error)/if (descriptor_store (descriptor, error) \&\& create_deltas (change, error)/'
mutate quick new-delta-without-mode snapshot.c \
  '/^make_alike/,/^}/ s/|| fsync (fd) == -1//'
mutate quick leaf-before-store snapshot.c \
  '/^remove_leaf/,/^}/ s/return descriptor_store/return described_remove_files (described, paths, error) \&\& descriptor_store/'
mutate quick old-top-before-store snapshot.c \
  '/^switch_snapshot/,/^}/ s/!store (change, NULL, error)/!described_remove_files (\&change->described, paths, error) || !store (change, NULL, error)/'
mutate quick replacement-without-sync replace.c \
  '/^finish_file/,/^}/ s/|| fsync (fd) == -1//' kill
mutate quick renamed-not-for-good replace.c \
  '/^replace_sync/,/^}/ s/|| fsync (fd) == -1//' kill
mutate quick copy-named-before-sync sink.c \
  '/^sync_content/,/^}/ s/return fsync .*;/return 0;/' kill
mutate quick repaired-without-backup-synced backup.c \
  '/^backup_finish/,/^}/ s/fsync (backup->fd) == -1 ? -errno : //' kill

# ---- Others -----------------------------------------------------------------

mutate quick garbage-not-cut-off alloc.c \
  '/^cut_old_tail/,/^}/ s/if (size != alloc->data_end)/if (false)/'
mutate quick suspend-without-commit image.c \
  '/^image_suspend/,/^}/ s/r = commit_flush (.*);/r = 0;/'
mutate slow suspend-without-flusher image.c \
  '/^image_suspend/,/^}/ s/flusher_hold (.*);//; /^image_resume/,/^}/ s/flusher_release (.*);//'
mutate rare direct-clear-unlocked delta.c \
  '/^try_clear/,/^}/ s/if (delta->direct)/if (false)/'
mutate slow direct-rmw-shared direct.c \
  '/^modify_block/,/^}/ s/lock_exclusively/lock_shared/'

test $nr_unnoticed -eq 0
