/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Copy-on-write, eager and lazy, and unstable entries (lib/request.h, lib/fills.h,
 * lib/commit.h), for spin.
 *
 * Guest clusters of two sectors that only a lower delta has, in one BAT page.
 * Writers of a sector each, of which one forces, a flush, commits by the flusher
 * and others who write the page run against each other in every order.  After
 * each step all is looked at as a guest reads it, and as a power cut would leave it: for each
 * entry and each sector the model keeps the set of values that the disk may
 * have, and checks them all.  What killing the server leaves is among them.
 *
 *   here                     in lib/
 *   -----------------------  ------------------------------------------------
 *   word, MAP_*              map.h: the cluster's word; 0: only a lower delta's
 *   owner                    submit.c: what NEEDS_OWNER is run by the cluster's
 *                            runner, one at a time
 *   copy                     copy-up.c: copy_up; copy.c
 *   commit_publish_copy      commit.c: the same
 *   entry_is_durable         commit.c: commit_entry_is_durable
 *   cover_unstable,          commit.c: the same
 *     stabilise
 *   write_dirty_pages        commit.c: write_dirty_pages, encode_entries
 *   run_commit               commit.c: run_commit
 *   commit_flush             commit.c: commit_flush; whoever finds nobody
 *                            leading leads (commit.pml has the group)
 *   there, fill_lock         fills.c: a fill, by guest cluster
 *   lazy_copy                copy-up.c, fills.c: begin_copy, fill_write
 *   write_filling            fills.c: fills_write
 *   fill                     fills.c: work_on, for fills_complete and fills_work
 *   flusher                  flusher.c: copy-delay
 *   filler                   image.c: fill_behind
 *   trimmer                  unmap.c: request_end_unmapping, after a trim of
 *                            another cluster of the page
 *
 * Not here: freed clusters (commit.pml), failures, memory order weaker than
 * sequential consistency.
 *
 *   CONFIG_COPY    two writers to a cluster, of which one forces
 *   CONFIG_FLUSH   the same, and a flush
 *   CONFIG_PAGE    writers to two clusters, and a trim of a third
 *   CONFIG_LAZY    as COPY, but lazily, and somebody fills behind
 *   CONFIG_FILLS   as PAGE, lazily
 *
 * With BUG_*, one thing is wrong, and spin has to find it (test-model.sh).
 */

/* writer: id, guest cluster, sector, how many writes, FUA */
#ifdef CONFIG_COPY
#define NR_GUESTS 1
#define NR_HOSTS 2
#define WRITERS run writer (0, 0, 0, 2, true); run writer (1, 0, 1, 1, false)
#endif

#ifdef CONFIG_FLUSH
#define NR_GUESTS 1
#define NR_HOSTS 2
#define WRITERS run writer (0, 0, 0, 2, false); run writer (1, 0, 1, 1, false)
#define HAVE_FLUSH
#endif

#ifdef CONFIG_PAGE
#define NR_GUESTS 2
#define NR_HOSTS 2
#define WRITERS run writer (0, 0, 0, 2, true); run writer (1, 1, 1, 1, false)
#define HAVE_TRIMMER
#endif

#ifdef CONFIG_LAZY
#define NR_GUESTS 1
#define NR_HOSTS 2
#define WRITERS run writer (0, 0, 0, 2, true); run writer (1, 0, 1, 1, false)
#define LAZY
#define HAVE_FILLER
#endif

#ifdef CONFIG_FILLS
#define NR_GUESTS 2
#define NR_HOSTS 2
#define WRITERS run writer (0, 0, 0, 1, true); run writer (1, 1, 1, 1, false)
#define LAZY
#define HAVE_TRIMMER
#endif

#define NR_SECTORS 2
#define BIT(x) (1 << (x))
#define SECTOR(host, s) ((host) * NR_SECTORS + (s))
#define NR_DISK_SECTORS ((NR_HOSTS + 1) * NR_SECTORS)
#define GUEST_SECTOR(guest, s) ((guest) * NR_SECTORS + (s))
#define NR_GUEST_SECTORS (NR_GUESTS * NR_SECTORS)

/* ---- The map, the file ---- */

#define MAP_UNSTABLE 4
#define MAP_COVERED 8
#define MAP_FILLING 16
#define entry(word) ((word) & 3)

byte word[NR_GUESTS];
bool owner;                     /* the runner is busy */
bool page_lock, dirty, unstable;

/* Of the cluster that is being filled, which sectors are there: bits. */
byte there[NR_GUESTS];
bool fill_lock[NR_GUESTS];

/* A sector's value.  In the place of host cluster 0: what lies below. */
#define ZEROS 0
#define LOWER 1
#define NEW 2

byte bat[NR_GUESTS];            /* in the page cache */
byte data[NR_DISK_SECTORS];
byte bat_disk[NR_GUESTS];       /* what the disk may have: bits */
byte data_disk[NR_DISK_SECTORS];
bool syncing;
byte bat_since[NR_GUESTS];      /* what it may have after the sync that runs */
byte data_since[NR_DISK_SECTORS];

/* ---- What a guest may read: bits ---- */

byte may_read[NR_GUEST_SECTORS];
byte may_survive[NR_GUEST_SECTORS];   /* after a power cut */
byte may_be_flushed[NR_GUEST_SECTORS];
bool flushing;

hidden byte i, e, word_;

#define is_missing(i) !(there[(i) / NR_SECTORS] & BIT ((i) % NR_SECTORS))

/* In a d_step, here and below. */
inline check_file ()
{
  for (i : 0 .. NR_GUEST_SECTORS - 1) {
    word_ = word[i / NR_SECTORS];
    /* fills_read */
    if
    :: (word_ & MAP_FILLING) && is_missing (i) -> word_ = 0;
    :: else
    fi;
    assert (BIT (data[SECTOR (entry (word_), i % NR_SECTORS)]) & may_read[i]);
    for (e : 0 .. NR_HOSTS) {
      if
      :: bat_disk[i / NR_SECTORS] & BIT (e) ->
           assert (!(data_disk[SECTOR (e, i % NR_SECTORS)] & ~may_survive[i]));
      :: else
      fi
    }
  }
  i = 0;
  e = 0;
  word_ = 0;
}

inline put_entry (guest, value)
{
  bat[guest] = value;
  bat_disk[guest] = bat_disk[guest] | BIT (value);
  if
  :: syncing -> bat_since[guest] = bat_since[guest] | BIT (value);
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

/* RWF_DSYNC. */
inline force_sector (sector, value)
{
  data[sector] = value;
  data_disk[sector] = BIT (value);
  if
  :: syncing -> data_since[sector] = BIT (value);
  :: else
  fi
}

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
    check_file ();
  }
}

/* ---- Commits ---- */

byte nr, nr_durable, page_change;
bool leading;

inline note_entry ()
{
  d_step { nr++; page_change = nr; }
}

inline lock (which)
{
  atomic { !which -> which = true; }
}

#ifdef BUG_FILLING_COVERED
#define is_coverable(word) ((word) & MAP_UNSTABLE)
#else
#define is_coverable(word) (((word) & (MAP_UNSTABLE | MAP_FILLING)) == MAP_UNSTABLE)
#endif

inline set_covered ()
{
  for (i : 0 .. NR_GUESTS - 1) {
    if
    :: is_coverable (word[i]) -> word[i] = word[i] | MAP_COVERED;
    :: else ->
#ifndef BUG_PAGE_FORGOTTEN
         if
         :: word[i] & MAP_FILLING -> unstable = true;
         :: else
         fi
#else
         skip
#endif
    fi
  }
  i = 0
}

inline clear_flags (having)
{
  for (i : 0 .. NR_GUESTS - 1) {
    if
    :: word[i] & having -> word[i] = entry (word[i]);
    :: else
    fi
  }
  i = 0
}

inline cover_unstable ()
{
  lock (page_lock);
  unstable = false;
#ifdef BUG_STABLE_BEFORE_SYNC
  dirty = true;
  note_entry ();
  d_step { clear_flags (MAP_UNSTABLE); }
#else
  d_step { set_covered (); }
#endif
  page_lock = false
}

#ifdef BUG_ALL_STABLE_AFTER_SYNC
#define BECAME_STABLE MAP_UNSTABLE
#else
#define BECAME_STABLE MAP_COVERED
#endif

inline stabilise ()
{
  lock (page_lock);
#ifndef BUG_NOT_PUT_DOWN
  dirty = true;
#endif
  note_entry ();
  d_step { clear_flags (BECAME_STABLE); }
  page_lock = false
}

#ifdef BUG_UNSTABLE_WRITTEN
#define entry_of(word) entry (word)
#else
#define entry_of(word) ((word) & MAP_UNSTABLE -> 0 : entry (word))
#endif

inline write_dirty_pages ()
{
  if
  :: dirty ->
       lock (page_lock);
       d_step {
         for (i : 0 .. NR_GUESTS - 1) {
           put_entry (i, entry_of (word[i]));
         }
         i = 0;
         check_file ();
       }
       dirty = false;
       page_lock = false;
  :: else
  fi
}

/* What is missing is copied, under the fill's lock all the time. */
inline fill (guest)
{
  lock (fill_lock[guest]);
  if
  :: word[guest] & MAP_FILLING ->
       do
       :: !(there[guest] & 1) ->
#ifdef BUG_FILL_UNLOCKED
            fill_lock[guest] = false;
            lock (fill_lock[guest]);
#endif
            d_step {
              put_sector (SECTOR (entry (word[guest]), 0), LOWER);
              there[guest] = there[guest] | 1;
              check_file ();
            }
       :: (there[guest] & 1) && !(there[guest] & 2) ->
            d_step {
              put_sector (SECTOR (entry (word[guest]), 1), LOWER);
              there[guest] = there[guest] | 2;
              check_file ();
            }
       :: there[guest] == 3 -> break
       od;
       skip;
       d_step {
         word[guest] = word[guest] & ~MAP_FILLING;
         check_file ();
       }
  :: else
  fi;
  fill_lock[guest] = false
}

/* The leader's. */
inline run_commit (covered)
{
  covered = nr;
#ifdef LAZY
#ifndef BUG_FLUSH_WITHOUT_FILLS
  fill (0);
#if NR_GUESTS > 1
  fill (1);
#endif
#endif
#endif
  if
  :: unstable ->
       cover_unstable ();
       sync_delta ();
       stabilise ();
  :: else
  fi;
  write_dirty_pages ();
  sync_delta ();
  nr_durable = covered;
  covered = 0
}

inline commit_flush (target, covered)
{
  target = nr;
  if
  :: nr_durable >= target
  :: nr_durable < target ->
       lock (leading);
       if
       :: nr_durable < target -> run_commit (covered);
       :: else
       fi;
       leading = false;
  fi;
  target = 0
}

inline entry_is_durable (w, answer)
{
  answer = !(w & MAP_UNSTABLE);
  if
  :: answer -> answer = !dirty;
  :: else
  fi;
  if
  :: answer -> answer = nr_durable >= page_change;
  :: else
  fi
}

/* ---- Requests ---- */

#define publish(guest, new) d_step { word[guest] = new; check_file (); }

inline commit_publish_copy (guest, host)
{
  lock (page_lock);
#ifdef BUG_PUBLISHED_FIRST
  publish (guest, host | MAP_UNSTABLE);
  unstable = true;
  note_entry ();
#else
#ifdef BUG_COPY_IS_STABLE
  dirty = true;
  note_entry ();
  publish (guest, host);
#else
  unstable = true;
  note_entry ();
  publish (guest, host | MAP_UNSTABLE);
#endif
#endif
  page_lock = false
}

/* Sector S is new, the other from below. */
inline copy (guest, host, s)
{
  d_step { put_sector (SECTOR (host, s), NEW); check_file (); }
#ifndef BUG_REST_NOT_COPIED
  d_step { put_sector (SECTOR (host, 1 - s), LOWER); check_file (); }
#endif
  commit_publish_copy (guest, host)
}

/* Sector S is new and there; the other one is filled in later. */
inline lazy_copy (guest, host, s)
{
  lock (fill_lock[guest]);
  d_step {
    put_sector (SECTOR (host, s), NEW);
    there[guest] = BIT (s);
    check_file ();
  }
  commit_publish_copy (guest, host | MAP_FILLING);
  fill_lock[guest] = false
}

/* The word said that it is being filled. */
inline write_filling (guest, s)
{
  lock (fill_lock[guest]);
  d_step {
    put_sector (SECTOR (entry (word[guest]), s), NEW);
    there[guest] = there[guest] | BIT (s);
    check_file ();
  }
  d_step {
    if
    :: there[guest] == 3 -> word[guest] = word[guest] & ~MAP_FILLING;
    :: else
    fi;
    check_file ();
  }
  fill_lock[guest] = false;
  d_step { nr++; }
}

#ifdef LAZY
#define copy_to(guest, host, s) lazy_copy (guest, host, s)
#else
#define copy_to(guest, host, s) copy (guest, host, s)
#endif

#ifdef BUG_WRITE_PAST_FILL
#define is_filling(word) false
#else
#define is_filling(word) ((word) & MAP_FILLING)
#endif

inline begin_write (sector)
{
  may_read[sector] = may_read[sector] | BIT (NEW);
  may_survive[sector] = may_survive[sector] | BIT (NEW);
  if
  :: flushing -> may_be_flushed[sector] = may_be_flushed[sector] | BIT (NEW);
  :: else
  fi
}

inline end_write (sector, fua)
{
  may_read[sector] = BIT (NEW);
  if
  :: fua ->
       may_survive[sector] = BIT (NEW);
       may_be_flushed[sector] = may_be_flushed[sector] & BIT (NEW);
  :: else
  fi;
  check_file ()
}

/* FUA forces the last of TURNS writes. */
proctype writer (byte id; byte guest; byte s; byte turns; bool fua)
{
  byte w, covered, target;
  bool committed;

  do
  :: turns == 0 -> break
  :: else ->
       turns--;
       d_step { begin_write (GUEST_SECTOR (guest, s)); }
       committed = false;
       w = word[guest];
       if
       :: entry (w) == 0 ->
#ifndef BUG_TWO_COPIES
            lock (owner);
            w = word[guest];
#endif
            if
            :: entry (w) == 0 ->
                 copy_to (guest, id + 1, s);
                 w = 0;
            :: else
            fi;
            owner = false;
       :: else
       fi;
       if
       :: entry (w) != 0 && fua && turns == 0 ->
            entry_is_durable (w, committed);
       :: else
       fi;
       if
       :: entry (w) == 0
       :: entry (w) != 0 && committed ->
            d_step {
              force_sector (SECTOR (entry (w), s), NEW);
              check_file ();
            }
       :: entry (w) != 0 && !committed && is_filling (w) ->
            write_filling (guest, s);
       :: entry (w) != 0 && !committed && !is_filling (w) ->
            d_step {
              put_sector (SECTOR (entry (w), s), NEW);
              check_file ();
            }
            d_step { nr++; }
       fi;
       w = 0;
       if
       :: fua && turns == 0 && !committed -> commit_flush (target, covered);
       :: else
       fi;
       d_step { end_write (GUEST_SECTOR (guest, s), fua && turns == 0); }
  od
}

#ifdef HAVE_FLUSH

proctype flush ()
{
  byte covered, target;

  d_step {
    for (i : 0 .. NR_GUEST_SECTORS - 1) {
      may_be_flushed[i] = may_read[i];
    }
    i = 0;
    flushing = true;
  }
  commit_flush (target, covered);
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

#ifdef HAVE_TRIMMER

proctype trimmer ()
{
  dirty = true;
  write_dirty_pages ();
}

#endif

proctype flusher ()
{
  byte covered, target;

end:
  do
  :: unstable -> commit_flush (target, covered)
  od
}

#ifdef HAVE_FILLER

proctype filler ()
{
end:
  do
  :: word[0] & MAP_FILLING -> fill (0)
  od
}

#endif

init
{
  d_step {
    for (i : 0 .. NR_GUESTS - 1) {
      bat_disk[i] = BIT (0);
    }
    for (i : 0 .. NR_DISK_SECTORS - 1) {
      data[i] = (i < NR_SECTORS -> LOWER : ZEROS);
      data_disk[i] = BIT (data[i]);
    }
    for (i : 0 .. NR_GUEST_SECTORS - 1) {
      may_read[i] = BIT (LOWER);
      may_survive[i] = BIT (LOWER);
    }
    i = 0;
    check_file ();
  }
  atomic {
    WRITERS;
    run flusher ();
#ifdef HAVE_FLUSH
    run flush ();
#endif
#ifdef HAVE_TRIMMER
    run trimmer ();
#endif
#ifdef HAVE_FILLER
    run filler ();
#endif
  }
}
