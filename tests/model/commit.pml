/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The cluster map and the commit protocol, for spin.
 *
 * Requests, commits and the scrubbing of freed clusters run against each other
 * in every order, on a disk of two guest clusters in one BAT page.  After each
 * step that could matter the file is looked at three times: as a guest reads
 * it, as killing the server would leave it (the page cache), and as a power cut
 * would.  For the last one, the model does not choose which writes survive: it
 * keeps, for each BAT entry and each sector, the set of values that the disk
 * may have, and checks them all.
 *
 * The hard part is to have every step that another thread can see as one step,
 * and no two as one.  A lock is taken together with what is looked at first,
 * and released with what is done last, which takes nothing away.
 *
 *   here                     in lib/
 *   -----------------------  ------------------------------------------------
 *   map, MAP_NEW, MAP_READY  map.h: words of level 0; no entry: not mapped
 *   writer, `map[guest] ==   map.h: map_publish; alloc.h: alloc_keep
 *     0' in allocate
 *   nr, nr_durable           changes.h
 *   changes_note, `nr++'     changes.h: changes_note
 *   gate_enter, gate_leave   gate.h: rcu_read_lock, rcu_read_unlock
 *   alloc_take, alloc_free   alloc.c: the same
 *   flusher: scrub           freed.c: freed_scrub, by cluster instead of batch:
 *                            close_batch, settle, punch_batch, renew_batch
 *   flusher: alloc_extend    alloc.c: cover_cells, set_fresh
 *   flusher: hurry           flusher.c: find_space, hurry
 *   nr_waiting               flusher.c: flusher_wait, resume
 *   make_ready               commit.c: make_ready
 *   commit_write_entry       commit.c: commit_write_entry, write_entry
 *   write_ready_entries      commit.c: write_ready_entries, note_entry
 *   unmap, may_undo          commit.c: unmap, commit_undo, commit_remove
 *   write_dirty_pages        commit.c: write_dirty_pages, write_pages
 *   sync_delta               delta.c: delta_sync, in two steps
 *   run_commit               commit.c: run_commit
 *   commit_flush             commit.c: commit_flush; but in CONFIG_GROUP,
 *                            whoever finds nobody leading leads
 *   lead                     commit.c: lead
 *   pass_on, answer,         group.c: pass_on, group_end, group_wait; the list
 *     sleep_or_lead            of waiters is a set
 *   join                     commit.c: commit_join, by submit.c: finish
 *   writer                   request.c: request_write, write_all, write_extent,
 *                            take_back
 *   allocate,                request.c: the same
 *     is_durable_alone
 *   trimmer                  unmap.c: unmap_cluster, request_end_unmapping
 *   zeroer                   unmap.c: request_zero
 *   flush                    submit.c: do_here
 *
 * Not here: unstable entries (copies.pml), the in-use mark, failed syncs but in
 * CONFIG_GROUP, memory order weaker than sequential consistency.
 *
 * Configurations, each chosen by a macro:
 *
 *   CONFIG_WRITERS  two writers, of which one may fail and one is forced
 *   CONFIG_FLUSH    two writers, one of them forced, a flush, an extension
 *   CONFIG_DELAY    two writers, one of which may fail, with a write-back
 *                   delay; forced writes that may need no commit
 *   CONFIG_DURABLE  a trim against writes that may need no commit
 *   CONFIG_TRIM     a trim, and writers that want the cluster it frees
 *   CONFIG_ZERO     a trim, and zeroing of what it trims
 *   CONFIG_GROUP    who leads a commit, and who wakes whom
 *
 * With BUG_*, one thing is wrong, and spin has to find it (test-model.sh).
 */

#ifndef CONFIG_GROUP

#define NR_GUESTS 2
#define NR_SECTORS 2            /* a cluster; sector I is written by writer I */

/* ---- Configurations ---- */

/* writer: id, its first guest cluster, FUA, may it fail, how many writes */
#ifdef CONFIG_WRITERS
#define NR_HOSTS 2
#define WRITER0 writer (0, 0, false, true, 2)
#define WRITER1 writer (1, 0, true, false, 1)
#endif

#ifdef CONFIG_FLUSH
#define NR_HOSTS 3
#define HAVE_EXTENSION
#define WRITER0 writer (0, 0, false, false, 2)
#define WRITER1 writer (1, 0, true, false, 1)
#define HAVE_FLUSH
#endif

#ifdef CONFIG_DELAY
#define NR_HOSTS 2
#define WRITE_BACK_DELAY
#define HAVE_DURABLE_WRITES
#define WRITER0 writer (0, 0, false, true, 1)
#define WRITER1 writer (1, 0, true, false, 2)
#define HAVE_COMMITS
#endif

#ifdef CONFIG_DURABLE
#define NR_HOSTS 2
#define HAVE_OLD
#define HAVE_DURABLE_WRITES
#define WRITER0 writer (0, 0, false, false, 1)
#define WRITER1 writer (1, 0, true, false, 1)
#define HAVE_TRIMMER
#endif

#ifdef CONFIG_TRIM
#define NR_HOSTS 2
#define HAVE_OLD
#define WRITER0 writer (0, 0, false, false, 1)
#define WRITER1 writer (1, 1, true, false, 1)
#define HAVE_TRIMMER
#define HAVE_COMMITS
#endif

#ifdef CONFIG_ZERO
#define NR_HOSTS 2
#define HAVE_OLD
#define WRITER0 writer (0, 0, false, false, 1)
#define HAVE_TRIMMER
#define HAVE_ZEROER
#define HAVE_FLUSH
#define NO_FLUSHER
#endif

/* The last host cluster is not in the file at first. */
#ifdef HAVE_EXTENSION
#define NR_COVERED (NR_HOSTS - 1)
#else
#define NR_COVERED NR_HOSTS
#endif

/* ---- The map ---- */

#define MAP_NEW 4
#define MAP_READY 8
#define entry(word) ((word) & 3)
#define is_mapped(word) (entry (word) != 0)
#define is_new(word) (((word) & MAP_NEW) != 0)

byte map[NR_GUESTS];

/* ---- The file ----
 *
 * A sector's value is zeros, or which guest cluster it was written for.
 */

#define ZEROS 0
#define NEW_DATA(guest) ((guest) + 1)
#define OLD_DATA 3              /* of guest cluster 0, from before */

#define BIT(x) (1 << (x))
#define SECTOR(host, s) ((host) * NR_SECTORS + (s))
#define NR_DISK_SECTORS ((NR_HOSTS + 1) * NR_SECTORS)

byte bat[NR_GUESTS];            /* in the page cache */
byte data[NR_DISK_SECTORS];
byte bat_disk[NR_GUESTS];       /* what the disk may have: bits */
byte data_disk[NR_DISK_SECTORS];
bool syncing;
byte bat_since[NR_GUESTS];      /* what it may have after the sync that runs */
byte data_since[NR_DISK_SECTORS];
byte covered_size = NR_COVERED; /* host clusters that the disk's size covers */

/* ---- What a guest may read ----
 *
 * By guest cluster and sector: the values that are right, as bits.
 */

#define NR_GUEST_SECTORS (NR_GUESTS * NR_SECTORS)
#define GUEST_SECTOR(guest, s) ((guest) * NR_SECTORS + (s))

byte may_read[NR_GUEST_SECTORS];
byte may_survive[NR_GUEST_SECTORS];     /* after a power cut */
byte may_be_flushed[NR_GUEST_SECTORS];  /* after it, when `flush` is answered */
bool flushing;
byte may_be_killed[NR_GUEST_SECTORS];   /* after kill -9 */
byte may_zero;                  /* sectors that a trim overlaps: bits */
byte nr_clearing;               /* trims and the like that run */
bool trim_runs, zero_is_alone;

hidden byte i, e, word_;

/* In a d_step, here and below. */
inline check_file ()
{
  /* No two entries of a delta name the same host cluster. */
  assert (!(bat_disk[0] & bat_disk[1] & ~1));
  for (i : 0 .. NR_GUEST_SECTORS - 1) {
    word_ = map[i / NR_SECTORS];
    assert (BIT (data[SECTOR (entry (word_), i % NR_SECTORS)]) & may_read[i]);
#ifndef WRITE_BACK_DELAY
    assert (BIT (data[SECTOR (bat[i / NR_SECTORS], i % NR_SECTORS)])
            & may_be_killed[i]);
#endif
    for (e : 0 .. NR_HOSTS) {
      if
      :: bat_disk[i / NR_SECTORS] & BIT (e) ->
           assert (e <= covered_size);
           assert (!(data_disk[SECTOR (e, i % NR_SECTORS)] & ~may_survive[i]));
      :: else
      fi
    }
  }
  i = 0; e = 0; word_ = 0;
}

inline put_entry (index, value)
{
  bat[index] = value;
  bat_disk[index] = bat_disk[index] | BIT (value);
  if
  :: syncing -> bat_since[index] = bat_since[index] | BIT (value);
  :: else
  fi
}

inline put_sector (sector, value)
{
  data[sector] = value;
  data_disk[sector] = data_disk[sector] | BIT (value);
  if
  :: syncing -> data_since[sector] = data_since[sector] | BIT (value);
  :: else
  fi
}

/* What was there is not; what was written since the write that has become
 * durable may be.
 */
inline sector_is_durable (sector, value)
{
  data_disk[sector] = BIT (value) | BIT (data[sector]);
  if
  :: syncing -> data_since[sector] = data_disk[sector];
  :: else
  fi
}

inline put_host (host, value)
{
  for (i : 0 .. NR_SECTORS - 1) {
    put_sector (SECTOR (host, i), value);
  }
  i = 0;
}

/* A step each, from here on: in two steps, what was written before the first is
 * on disk after the second.
 */
inline sync_delta ()
{
  d_step {
    syncing = true;
    for (i : 0 .. NR_GUESTS - 1) {
      bat_since[i] = BIT (bat[i]);
    }
    for (i : 0 .. NR_DISK_SECTORS - 1) {
      data_since[i] = BIT (data[i]);
    }
    i = 0;
  }
  d_step {
    syncing = false;
    for (i : 0 .. NR_GUESTS - 1) {
      bat_disk[i] = bat_since[i];
      bat_since[i] = 0;
    }
    for (i : 0 .. NR_DISK_SECTORS - 1) {
      data_disk[i] = data_since[i];
      data_since[i] = 0;
    }
    i = 0;
  }
}

/* ---- Changes, the gate ---- */

byte nr, nr_durable;
byte readers;                   /* who is inside: bits */

inline changes_note (number)
{
  d_step {
    nr++;
    number = nr;
  }
}

inline gate_enter (id)
{
  readers = readers | BIT (id);
}

inline gate_leave (id)
{
  d_step {
    readers = readers & ~BIT (id);
    for (i : 1 .. NR_HOSTS) {
      waits_for[i] = waits_for[i] & ~BIT (id);
    }
    i = 0;
  }
}

/* ---- alloc ---- */

mtype = { NOT_IN_FILE, FRESH, TAKEN, OPEN, IN_USE, PUNCHED };

mtype host_state[NR_HOSTS + 1];
byte waits_for[NR_HOSTS + 1];   /* those who are not out since call_rcu: bits */
byte change[NR_HOSTS + 1];      /* to become durable */
byte nr_waiting;                /* for a cluster */

#define is_pending(host) (host_state[host] == OPEN \
                          || host_state[host] == IN_USE \
                          || host_state[host] == PUNCHED)

#if NR_HOSTS == 2
#define IF_ANY(what) (what (1) || what (2))
#else
#define IF_ANY(what) (what (1) || what (2) || what (3))
#endif

#define is_fresh(host) (host_state[host] == FRESH)
#define may_come(host) (is_pending (host) || is_held (host) \
                        || host_state[host] == NOT_IN_FILE)
/* Taken, and neither kept nor given back. */
#define is_held(host) (host_state[host] == TAKEN && entry (map[0]) != host \
                       && entry (map[1]) != host)

/* 0 in HOST: there is none. */
inline alloc_take (host)
{
  d_step {
    host = 0;
    for (i : 1 .. NR_HOSTS) {
      if
      :: host == 0 && host_state[i] == FRESH -> host = i;
      :: else
      fi
    }
    i = 0;
    host_state[host] = TAKEN;
  }
}

inline alloc_free (host, removal)
{
  d_step {
    assert (host_state[host] == TAKEN);
    host_state[host] = OPEN;
    change[host] = removal;
  }
}

/* ---- commit: BAT entries ---- */

bool page_lock, write_lock, dirty;
byte page_changes;

inline lock (which)
{
  !which -> which = true;
}

/* RESULT: 0, REMAPPED or FAILED. */
#define REMAPPED 1
#define FAILED 2
#define READY 3

#define is_same_place(word, other) (entry (word) == entry (other))
#define entry_of(word) \
  (((word) & (MAP_NEW | MAP_READY)) == MAP_NEW -> 0 : entry (word))

/* In a d_step. */
inline make_ready (guest, word, result)
{
  if
#ifndef BUG_REMAP_UNNOTICED
  :: !is_same_place (map[guest], word) -> result = REMAPPED;
  :: is_same_place (map[guest], word) && !is_new (map[guest]) -> result = 0;
#else
  :: !is_new (map[guest]) -> result = 0;
#endif
  :: else ->
       map[guest] = map[guest] | MAP_READY;
       result = READY;
  fi
}

/* In a d_step.  OTHERS: the other cluster's entry, too. */
inline write_ready_entries (guest, others)
{
  put_entry (guest, entry_of (map[guest]));
  others = others && (map[1 - guest] & MAP_READY);
  if
  :: others -> put_entry (1 - guest, entry_of (map[1 - guest]));
  :: else
  fi;
  check_file ();
}

#define without_flags(word) ((word) & ~(MAP_NEW | MAP_READY))

inline commit_write_entry (guest, word, may_fail, result)
{
  d_step { make_ready (guest, word, result); }
  if
  :: result == READY ->
       d_step {
         !page_lock -> page_lock = true;
         make_ready (guest, word, result);
         page_lock = (result == READY);
       }
  :: else
  fi;
  if
  :: result == READY ->
#ifdef BUG_NEW_CLEARED_FIRST
       map[guest] = without_flags (map[guest]);
#endif
#ifdef WRITE_BACK_DELAY
       d_step { dirty = true; result = 0; }
#else
       /* nr_writers says that there may be others, or not. */
       if
       :: others = true;
       :: others = false;
       fi;
       if
       :: d_step { write_ready_entries (guest, others); result = 0; }
       :: may_fail ->
            /* They may be on disk for all that. */
            if
            :: d_step {
                 write_ready_entries (guest, others);
                 result = FAILED;
               }
            :: result = FAILED;
            fi
       fi;
#endif
       if
       :: result == 0 ->
            changes_note (number);
            d_step { page_changes = number; number = 0; }
#ifdef BUG_CLEARED_UNWRITTEN
            d_step { others = (map[1 - guest] & MAP_READY) != 0; }
#endif
            if
            :: others && is_new (map[1 - guest]) ->
                 map[1 - guest] = without_flags (map[1 - guest]);
            :: else
            fi;
            d_step {
              map[guest] = without_flags (map[guest]);
              page_lock = false;
            }
       :: else -> page_lock = false;
       fi;
       others = false;
  :: else
  fi
}

#ifdef BUG_UNDO_IGNORES_NEW
#define may_undo(now, word) is_same_place (now, word)
#else
#define may_undo(now, word) (is_same_place (now, word) && is_new (now))
#endif

/* NUMBER is that of the removal, or 0: the word is another.  It cannot become
 * another while the lock is held, but ready.
 */
inline unmap (guest, is_right, number)
{
  atomic {
    lock (page_lock);
    if
    :: is_right -> number = 1;
    :: else ->
         number = 0;
         page_lock = false;
    fi
  }
  if
  :: number != 0 ->
#ifdef BUG_UNMAP_BEFORE_NOTE
       d_step { map[guest] = 0; check_file (); }
       dirty = true;
       d_step {
         nr++;
         number = nr;
         page_lock = false;
       }
#else
       dirty = true;
       changes_note (number);
       d_step {
         map[guest] = 0;
         check_file ();
         page_lock = false;
       }
#endif
  :: else
  fi
}

/* ---- commit: pages ---- */

inline write_page ()
{
  for (i : 0 .. NR_GUESTS - 1) {
    put_entry (i, entry_of (map[i]));
  }
  check_file ();
}

inline write_dirty_pages ()
{
  if
  :: !dirty
  :: else ->
       atomic { lock (write_lock); }
#ifdef BUG_DIRTY_CLEARED_FIRST
       dirty = false;
       d_step { !page_lock -> write_page (); }
       write_lock = false;
#else
       if
       :: dirty ->
            atomic {
              lock (page_lock);
              d_step { write_page (); }
            }
            d_step { dirty = false; page_lock = false; write_lock = false; }
       :: else -> write_lock = false;
       fi
#endif
  fi
}

/* ---- commit: committing ---- */

bool leading;
byte covered;                   /* the leader's */

inline run_commit ()
{
  write_dirty_pages ();
  sync_delta ();
#ifdef BUG_COVERED_AFTER_SYNC
  covered = nr;
#endif
  d_step { nr_durable = covered; covered = 0; leading = false; }
}

/* For those who were covered by another's commit, as for those whom look
 * satisfies: nr_durable says so.
 */
inline commit_flush (target)
{
  target = nr;
  if
  :: nr_durable >= target
  :: d_step {
       nr_durable < target && !leading -> leading = true;
       target = 0;
       covered = nr;
     }
       run_commit ();
  fi;
  target = 0;
}

/* ---- Requests ---- */

/* A request begins that may leave VALUE in a sector. */
inline may_become (sector, value)
{
  may_read[sector] = may_read[sector] | BIT (value);
  may_survive[sector] = may_survive[sector] | BIT (value);
  may_be_killed[sector] = may_be_killed[sector] | BIT (value);
#ifdef HAVE_FLUSH
  if
  :: flushing ->
       may_be_flushed[sector] = may_be_flushed[sector] | BIT (value);
  :: else
  fi
#endif
}

inline begin_write (guest, s)
{
  may_become (GUEST_SECTOR (guest, s), NEW_DATA (guest));
  if
  :: guest == 0 && nr_clearing == 0 -> may_zero = may_zero & ~BIT (s);
  :: else
  fi
}

#define after_write(guest, s) \
  (BIT (NEW_DATA (guest)) \
   | (guest == 0 && (may_zero & BIT (s)) -> BIT (ZEROS) : 0))

inline end_write (guest, s, fua)
{
  may_read[GUEST_SECTOR (guest, s)] = after_write (guest, s);
  may_be_killed[GUEST_SECTOR (guest, s)] = after_write (guest, s);
  if
  :: fua -> may_survive[GUEST_SECTOR (guest, s)] = after_write (guest, s);
  :: else
  fi;
  check_file ();
}

/* Guest cluster 0 is trimmed or zeroed. */
inline begin_clear ()
{
  for (i : 0 .. NR_SECTORS - 1) {
    may_become (GUEST_SECTOR (0, i), ZEROS);
  }
  i = 0;
  may_zero = BIT (0) | BIT (1);
  nr_clearing++;
}

#define NOT_OLD (~BIT (OLD_DATA))

inline end_clear ()
{
  nr_clearing--;
}

#ifdef WRITER0

/* Is the extent one with a durable entry?  In steps, as the loads are. */
inline is_durable_alone (guest, word, number, is)
{
  word = map[guest];
  is = is_mapped (word);
  if
  :: is -> is = is_mapped (map[guest]) && !is_new (map[guest]);
  :: else
  fi;
  if
  :: is -> is = !dirty;
  :: else
  fi;
  if
  :: is -> number = page_changes;
       d_step { is = nr_durable >= number; number = 0; }
  :: else
  fi
}

inline allocate (guest, word, host, number)
{
  alloc_take (host);
  if
  :: host == 0 ->
       changes_note (number);
       d_step { word = map[guest]; number = 0; }
  :: else ->
       /* map_publish, alloc_keep */
       d_step {
         if
         :: map[guest] == 0 ->
              map[guest] = host | MAP_NEW;
              assert (entry (map[1 - guest]) != host);
              word = map[guest];
              host = 0;
              check_file ();
         :: else -> word = map[guest];
         fi
       }
       if
       :: host != 0 ->
            /* alloc_give_back */
            d_step { host_state[host] = FRESH; host = 0; }
       :: else
       fi
  fi
}

/* NR_WRITES writes to its sector of guest clusters, the first of GUEST. */
proctype writer (byte id; byte guest; bool fua; bool may_fail; byte nr_writes)
{
  byte word, host, number, result;
  bool others;

  do
  :: nr_writes == 0 -> break
  :: else ->
       d_step { begin_write (guest, id); }
again:
       gate_enter (id);
#ifdef HAVE_DURABLE_WRITES
       if
       :: fua && !leading ->
            is_durable_alone (guest, word, number, result);
            if
            :: result ->
                 result = 0;
                 assert (entry (map[1 - guest]) != entry (word));
                 d_step {
                   put_sector (SECTOR (entry (word), id), NEW_DATA (guest));
                   check_file ();
                 }
                 d_step {
                   sector_is_durable (SECTOR (entry (word), id),
                                      NEW_DATA (guest));
                   word = 0;
                 }
                 gate_leave (id);
                 d_step { end_write (guest, id, true); }
                 goto answered;
            :: else -> word = 0
            fi
       :: else
       fi;
#endif
look_up:
       word = map[guest];
       if
       :: !is_mapped (word) -> allocate (guest, word, host, number);
       :: else
       fi;
       if
       :: !is_mapped (word) ->
            /* REQUEST_NEEDS_CLUSTER, flusher_wait; or ENOSPC */
            gate_leave (id);
            nr_waiting++;
            if
            :: d_step { IF_ANY (is_fresh) -> nr_waiting--; }
                 goto again;
            :: d_step {
                 !IF_ANY (is_fresh) && !IF_ANY (may_come) -> nr_waiting--;
               }
                 goto answered;
            fi
       :: else
       fi;

       /* write_extent */
#ifdef BUG_NOTE_BEFORE_WRITE
       d_step { nr++; }
#endif
       if
       :: d_step {
            assert (entry (map[1 - guest]) != entry (word));
            assert (host_state[entry (word)] != FRESH);
            put_sector (SECTOR (entry (word), id), NEW_DATA (guest));
            check_file ();
            result = 0;
          }
       :: may_fail -> result = FAILED;
       fi;
#ifndef BUG_NOTE_BEFORE_WRITE
       d_step { nr++; }
#endif
       if
       :: result == 0 && is_new (word) ->
            commit_write_entry (guest, word, may_fail, result);
       :: else
       fi;
       if
       :: result == FAILED && is_new (word) ->
            /* take_back */
            unmap (guest, may_undo (map[guest], word), number);
            if
            :: number != 0 ->
                 alloc_free (entry (word), number);
                 number = 0;
            :: else
            fi
       :: result == REMAPPED -> goto look_up
       :: else
       fi;
       word = 0;
       gate_leave (id);
       if
       :: result == 0 && fua -> commit_flush (number);
       :: else
       fi;
       d_step {
         if
         :: result == 0 -> end_write (guest, id, fua);
         :: else -> result = 0;
         fi
       }
answered:
       nr_writes--;
       guest = (nr_writes > 0 -> 1 - guest : 0);
  od
}

#endif

#ifdef HAVE_TRIMMER

proctype trimmer ()
{
  byte word, removal;

  d_step {
    begin_clear ();
    trim_runs = true;
    zero_is_alone = false;
    gate_enter (2);
  }
  word = map[0];
  if
  :: is_mapped (word) && !is_new (word) ->
       /* commit_remove */
       unmap (0, map[0] == word, removal);
       if
       :: removal != 0 -> alloc_free (entry (word), removal);
       :: else
       fi;
       removal = 0
  :: else
  fi;
  word = 0;
  gate_leave (2);
  /* request_end_unmapping */
  write_dirty_pages ();
  d_step {
    for (i : 0 .. NR_SECTORS - 1) {
      may_be_killed[GUEST_SECTOR (0, i)] =
        may_be_killed[GUEST_SECTOR (0, i)] & NOT_OLD;
    }
    i = 0;
    end_clear ();
    trim_runs = false;
    check_file ();
  }
}

#endif

#ifdef HAVE_ZEROER

proctype zeroer (bool fua)
{
  byte word, target;
  bool durable = true;

  d_step {
    begin_clear ();
    zero_is_alone = !trim_runs;
    gate_enter (3);
  }
  word = map[0];
  if
  :: is_mapped (word) ->
       durable = false;
       d_step {
         put_host (entry (word), ZEROS);
         check_file ();
       }
       d_step { nr++; }
  :: else ->
#ifndef BUG_ZERO_WITHOUT_COMMIT
       durable = false;
#endif
       skip
  fi;
  word = 0;
  gate_leave (3);
  if
  :: fua && !durable -> commit_flush (target);
  :: else
  fi;
  /* It is not what was there before.  A trim that runs may still bring that
   * back, until it is answered, but for who forces it.
   */
  d_step {
    for (i : 0 .. NR_SECTORS - 1) {
      may_read[GUEST_SECTOR (0, i)] = may_read[GUEST_SECTOR (0, i)] & NOT_OLD;
      if
      :: fua || zero_is_alone ->
           may_be_killed[GUEST_SECTOR (0, i)] =
             may_be_killed[GUEST_SECTOR (0, i)] & NOT_OLD;
      :: else
      fi;
      if
      :: fua ->
           may_survive[GUEST_SECTOR (0, i)] =
             may_survive[GUEST_SECTOR (0, i)] & NOT_OLD;
      :: else
      fi
    }
    i = 0;
    end_clear ();
    check_file ();
  }
}

#endif

#ifdef HAVE_FLUSH

/* What may be read when it arrives, and what others begin to write after that,
 * may be on disk when it is answered.
 */
proctype flush ()
{
  byte target;

  d_step {
    for (i : 0 .. NR_GUEST_SECTORS - 1) {
      may_be_flushed[i] = may_read[i];
    }
    i = 0;
    flushing = true;
  }
  commit_flush (target);
  d_step {
    for (i : 0 .. NR_GUEST_SECTORS - 1) {
      may_survive[i] = may_survive[i] & may_be_flushed[i];
      may_be_flushed[i] = 0;
    }
    i = 0;
    flushing = false;
    check_file ();
  }
}

#endif

/* ---- The flusher ---- */

#define is_durable(host) (nr_durable >= change[host])

#ifdef BUG_REUSE_BEFORE_REMOVAL
#define is_removed(host) true
#else
#define is_removed(host) is_durable (host)
#endif

#ifdef BUG_REUSE_BEFORE_PUNCH
#define is_cleared(host) true
#else
#define is_cleared(host) is_durable (host)
#endif

#define has_step(host) \
  (host_state[host] == OPEN \
   || (host_state[host] == IN_USE && waits_for[host] == 0 \
       && is_removed (host)) \
   || (host_state[host] == PUNCHED && is_cleared (host)))

inline scrub (host)
{
  if
  :: host_state[host] == OPEN ->
       /* close_batch */
       d_step {
         host_state[host] = IN_USE;
#ifndef BUG_NO_GRACE_PERIOD
         waits_for[host] = readers;
#endif
       }
  :: host_state[host] == IN_USE ->
       /* punch_batch */
       d_step {
         put_host (host, ZEROS);
#ifdef BUG_REUSE_BEFORE_REMOVAL
         /* Only that: the punch has a sync of its own. */
         for (i : 0 .. NR_SECTORS - 1) {
           sector_is_durable (SECTOR (host, i), ZEROS);
         }
         i = 0;
         host_state[host] = FRESH;
#endif
         check_file ();
       }
#ifndef BUG_REUSE_BEFORE_REMOVAL
       d_step {
         nr++;
         change[host] = nr;
         host_state[host] = PUNCHED;
       }
#endif
  :: host_state[host] == PUNCHED ->
       /* renew_batch */
       d_step {
         change[host] = 0;
         host_state[host] = FRESH;
       }
  fi
}

proctype flusher ()
{
  byte number;

end:
  do
  :: has_step (1) -> scrub (1);
  :: has_step (2) -> scrub (2);
#if NR_HOSTS == 3
  :: has_step (3) -> scrub (3);
#endif
#ifdef HAVE_EXTENSION
  :: host_state[NR_HOSTS] == NOT_IN_FILE ->
       /* alloc_extend */
#ifndef BUG_SIZE_NOT_SYNCED
       covered_size = NR_HOSTS;
#endif
       host_state[NR_HOSTS] = FRESH;
#endif
#ifdef WRITE_BACK_DELAY
  :: dirty -> write_dirty_pages ();
#endif
#ifdef HAVE_COMMITS
       /* Somebody's, at any time. */
  :: IF_ANY (is_pending) && nr_durable < nr ->
#else
       /* hurry */
  :: nr_waiting > 0 && IF_ANY (is_pending) && nr_durable < nr ->
#endif
       commit_flush (number);
  od
}

init
{
  d_step {
    for (i : 0 .. NR_DISK_SECTORS - 1) {
      data_disk[i] = BIT (ZEROS);
    }
    for (i : 0 .. NR_GUESTS - 1) {
      bat_disk[i] = BIT (0);
    }
    for (i : 0 .. NR_GUEST_SECTORS - 1) {
      may_read[i] = BIT (ZEROS);
    }
    host_state[0] = TAKEN;
    for (i : 1 .. NR_HOSTS) {
      host_state[i] = (i <= NR_COVERED -> FRESH : NOT_IN_FILE);
    }
#ifdef HAVE_OLD
    map[0] = 1;
    bat[0] = 1;
    bat_disk[0] = BIT (1);
    host_state[1] = TAKEN;
    for (i : 0 .. NR_SECTORS - 1) {
      data[SECTOR (1, i)] = OLD_DATA;
      data_disk[SECTOR (1, i)] = BIT (OLD_DATA);
      may_read[GUEST_SECTOR (0, i)] = BIT (OLD_DATA);
    }
#endif
    for (i : 0 .. NR_GUEST_SECTORS - 1) {
      may_survive[i] = may_read[i];
      may_be_killed[i] = may_read[i];
    }
    i = 0;
    check_file ();
  }
  atomic {
#ifndef NO_FLUSHER
    run flusher ();
#endif
#ifdef WRITER0
    run WRITER0;
#endif
#ifdef WRITER1
    run WRITER1;
#endif
#ifdef HAVE_TRIMMER
    run trimmer ();
#endif
#ifdef HAVE_ZEROER
    if
    :: run zeroer (false);
    :: run zeroer (true);
    fi;
#endif
#ifdef HAVE_FLUSH
    run flush ();
#endif
  }
}

#else /* CONFIG_GROUP */

/* ---- Who leads, who wakes whom ----
 *
 * Two threads change something and flush, one of them twice; a third does so
 * without waiting in the room.  Each change is a bit.
 */

#define BIT(x) (1 << (x))
#define NR_SLEEPERS 2
#define ASYNC 2                 /* the waiter that is no thread */
#define NR_WAITERS 3

byte nr, nr_durable;
byte noted, written, on_disk, since;    /* changes: bits */

bool leading, failed;
byte waiters;                   /* bits */
byte target[NR_WAITERS];
bool leads[NR_SLEEPERS];
bool exists[NR_WAITERS];        /* struct group_waiter, on a stack */
byte wake[NR_WAITERS];          /* semaphores; for ASYNC, done was called */
bool result[NR_WAITERS];        /* failed */
bool work;                      /* FLUSHER_LEAD */

#define is_waiting(id) ((waiters & BIT (id)) != 0)

inline make_change (which)
{
  written = written | BIT (which);
  d_step { nr++; noted = noted | BIT (which); }
}

inline run_commit (covered, r)
{
  covered = nr;
  if
  :: failed -> r = true
  :: else ->
       since = written;
       if
       :: d_step { on_disk = on_disk | since; since = 0; r = false; }
       :: d_step { failed = true; since = 0; r = true; }
       fi;
       if
       :: !r -> nr_durable = covered
       :: else
       fi
  fi
}

/* With the lock held, so in one step. */
inline take_covered (id)
{
  if
#ifdef BUG_ALL_ANSWERED
  :: is_waiting (id) ->
#else
  :: is_waiting (id) && target[id] <= covered ->
#endif
       waiters = waiters & ~BIT (id);
       answered = answered | BIT (id);
  :: else
  fi
}

inline take_leader (id)
{
  waiters = waiters & ~BIT (id);
  leads[id] = true;
  next = id;
}

#define NOBODY 7

inline pass_on ()
{
  atomic {
    take_covered (0);
    take_covered (1);
    take_covered (ASYNC);
    covered = 0;
    if
    :: is_waiting (0) -> take_leader (0);
    :: is_waiting (1) -> take_leader (1);
    :: !is_waiting (0) && !is_waiting (1) ->
         leading = false;
         next = NOBODY;
         need_leader = waiters != 0;
    fi
  }
  if
  :: next != NOBODY -> d_step { assert (exists[next]); wake[next]++; }
#ifndef BUG_NO_LEADER_NEEDED
  :: next == NOBODY && need_leader -> work = true;
#endif
  :: else
  fi;
  d_step { next = 0; need_leader = false; }
}

inline answer (id)
{
  if
  :: answered & BIT (id) ->
       d_step {
         assert (exists[id]);
         result[id] = r;
         wake[id]++;
         answered = answered & ~BIT (id);
       }
  :: else
  fi
}

inline lead ()
{
  run_commit (covered, r);
  pass_on ();
  answer (0);
  answer (1);
  answer (ASYNC);
}

inline sleep_or_lead (id, number)
{
  /* With the lock held. */
  d_step {
    leads[id] = !leading;
    leads_now = leads[id];
    if
    :: leads[id] -> leading = true;
    :: else ->
         target[id] = number;
         waiters = waiters | BIT (id);
         wake[id] = 0;
         exists[id] = true;
    fi
  }
  if
#ifdef BUG_LEADS_READ_UNLOCKED
  :: !leads[id] ->
#else
  :: !leads_now ->
#endif
       d_step { wake[id] > 0 -> wake[id]--; }
  :: else
  fi;
  if
  :: leads[id] -> lead ();
  :: else -> r = result[id];
  fi;
  /* The frame is gone. */
  d_step {
    exists[id] = false;
    leads[id] = false;
    leads_now = false;
    target[id] = 0;
    result[id] = false;
  }
}

/* The answer R is right if it is an error, or all that was noted is on disk. */
inline check_answer (r)
{
  d_step {
    assert (r || !(want & ~on_disk));
    assert (!r || failed);
    want = 0;
    r = false;
  }
}

proctype flush (byte id; byte turns)
{
  byte covered, answered, next, number, want;
  bool r, need_leader, leads_now;

  do
  :: turns == 0 -> break
  :: else ->
       turns--;
       make_change (2 * id + turns);
       /* commit_flush */
       d_step { number = nr; want = noted; }
       if
       :: failed -> r = true;
       :: !failed && nr_durable >= number -> r = false;
       :: !failed && nr_durable < number -> sleep_or_lead (id, number);
       fi;
       number = 0;
       check_answer (r);
  od
}

proctype join ()
{
  byte number, want;
  bool r;

  make_change (2 * NR_SLEEPERS);
  /* commit_join */
  d_step { number = nr; want = noted; }
  if
  :: failed -> r = true;
  :: !failed && nr_durable >= number -> r = false;
  :: !failed && nr_durable < number ->
       d_step {
         target[ASYNC] = number;
         exists[ASYNC] = true;
         waiters = waiters | BIT (ASYNC);
       }
       work = true;
       wake[ASYNC] > 0;
       d_step { r = result[ASYNC]; exists[ASYNC] = false; }
  fi;
  check_answer (r);
}

proctype flusher ()
{
  byte covered, answered, next;
  bool r, need_leader;

end:
  do
  :: work ->
       work = false;
       /* commit_lead: group_take_lead */
       if
       :: atomic { waiters != 0 && !leading -> leading = true; }
            lead ();
            r = false;
       :: waiters == 0 || leading
       fi
  od
}

init
{
  atomic {
    run flusher ();
    run join ();
    run flush (0, 2);
    run flush (1, 1);
  }
}

#endif
