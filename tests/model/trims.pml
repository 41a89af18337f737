/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Parts of clusters that are trimmed (lib/trims.h), for spin.
 *
 * One guest cluster of two sectors, two host clusters.  Writers, trims of a
 * sector, the flusher and the reuse of freed clusters run against each other in
 * every order, and after each step that a reader could see the cluster is read:
 * what is there must be what the requests so far allow.  Commits are not here
 * (commit.pml has them): a freed cluster is punched and fresh again when nobody
 * who may use it is inside the gate any more.
 *
 *   here                     in lib/
 *   -----------------------  ------------------------------------------------
 *   entry, flagged           map.h: the word's host cluster and MAP_TRIMMED
 *   record_*                 trims.c: struct trims_record
 *   gate_enter, gate_leave   gate.h: rcu_read_lock, rcu_read_unlock
 *   writer                   request.c: next_mapped_extent, write_extent
 *   trims_write              trims.c: trims_write
 *   trimmer                  unmap.c: trim_part; trims.c: trims_add,
 *                            get_record, add_to_record
 *   whole_trimmer            unmap.c: unmap_cluster
 *   unmap                    trims.c: unmap; commit.c: commit_remove;
 *                            alloc.c: alloc_free
 *   puncher                  trims.c: begin_batch, punch_runs, end_batch
 *   looker                   trims.c: settle, look_at
 *   scrubber                 freed.c: settle, punch_batch, give_batch_back
 *
 * With BUG_*, one thing is wrong, and spin has to find it (test-model.sh).
 */

#ifdef CONFIG_PARTS             /* a part, and writers to both */
#define TRIMMERS run trimmer (2, 0)
#define WRITERS run writer (0, 0, 2); run writer (1, 1, 1)
#endif

#ifdef CONFIG_PIECES            /* the whole in pieces, twice the first */
#define TRIMMERS run trimmer (2, 0); run trimmer (3, 1)
#define WRITERS run writer (0, 0, 2)
#endif

#ifdef CONFIG_AGAIN             /* unmapped and in the same place again */
#define TRIMMERS run trimmer (2, 0); run whole_trimmer (3)
#define WRITERS run writer (0, 0, 2)
#define NR_HOSTS 1
#endif

#ifndef NR_HOSTS
#define NR_HOSTS 2
#endif

#define NR_SECTORS 2
#define BIT(x) (1 << (x))
#define ALL 3
#define DATA(host, s) data[(host) * NR_SECTORS + (s)]

/* ---- The map, the file ---- */

#define ZEROS 0
#define OLD 1
#define NEW 2

byte entry = 1;                 /* 0: not mapped */
bool flagged;
byte data[(NR_HOSTS + 1) * NR_SECTORS];

mtype = { FRESH, TAKEN, FREED, WAITING, BUSY, SETTLING, RESTING };
mtype host_state[NR_HOSTS + 1];
byte waits_for[NR_HOSTS + 1];   /* readers, for a freed cluster */

byte readers;                   /* who is inside the gate: bits */
byte look_waits_for;            /* readers, for the record */

bool have_record;
byte record_entry, record_parts, record_busy;
mtype record_state;
byte serial, look_serial;       /* which record the looker has a ticket of */

/* ---- What may be read ---- */

byte may_read[NR_SECTORS];      /* values: bits */
byte nr_trims[NR_SECTORS];      /* that run */
byte trimmed_since[NR_SECTORS]; /* writers that run, and a trim has run since
                                   they began: bits */

hidden byte i;

/* In a d_step, here and below. */
inline check ()
{
  for (i : 0 .. NR_SECTORS - 1) {
    assert (may_read[i] & BIT (DATA (entry, i)));
  }
  i = 0;
}

inline gate_enter (id)
{
  readers = readers | BIT (id);
}

inline gate_leave (id)
{
  d_step {
    readers = readers & ~BIT (id);
    look_waits_for = look_waits_for & ~BIT (id);
    for (i : 1 .. NR_HOSTS) {
      waits_for[i] = waits_for[i] & ~BIT (id);
    }
    i = 0;
  }
}

#define is_good (flagged && entry == record_entry)
#ifdef BUG_RECORD_OF_ANOTHER_TIME
#undef is_good
#define is_good (entry == record_entry)
#endif

inline drop_record ()
{
  if
  :: is_good -> flagged = false;
  :: else
  fi;
  have_record = false;
  record_parts = 0;
  record_busy = 0;
  record_state = 0;
  record_entry = 0;
}

inline unmap (host)
{
  if
  :: entry == host ->
       entry = 0;
       flagged = false;
       host_state[host] = FREED;
       waits_for[host] = readers;
  :: else
  fi
}

/* ---- Writing ---- */

#define is_dropped_by_writes \
  (record_state == SETTLING || record_state == RESTING \
   || (record_state == WAITING && record_parts == 0))
#define is_any_fresh (host_state[1] == FRESH || host_state[NR_HOSTS] == FRESH)

/* All that is done under the lock is one step, here and below. */
inline trims_write (s)
{
#ifndef BUG_WRITE_UNDER_A_PUNCH
  d_step {
    !(have_record && (record_busy & BIT (s))) ->
#else
  d_step {
    true ->
#endif
    if
    :: have_record ->
#ifndef BUG_WRITTEN_PART_PUNCHED
         record_parts = record_parts & ~BIT (s);
#endif
         if
         :: is_dropped_by_writes -> drop_record ();
         :: else
         fi
    :: else
    fi;
  }
}

proctype writer (byte id, s, nr)
{
  byte host;

  do
  :: nr == 0 -> break
  :: else ->
       d_step {
         gate_enter (id);
         may_read[s] = may_read[s] | BIT (NEW);
         if
         :: nr_trims[s] > 0 -> trimmed_since[s] = trimmed_since[s] | BIT (id);
         :: else -> trimmed_since[s] = trimmed_since[s] & ~BIT (id);
         fi
       }
look_up:
       if
       :: d_step { entry != 0 && !flagged -> host = entry; }
       :: atomic {
            entry != 0 && flagged -> host = entry;
          }
          trims_write (s);
#ifndef BUG_NOT_LOOKED_UP_AGAIN
          if
          :: entry != host -> host = 0; goto look_up
          :: else
          fi
#endif
       :: d_step {
            entry == 0 ->
              for (i : 1 .. NR_HOSTS) {
                if
                :: host == 0 && host_state[i] == FRESH -> host = i;
                :: else
                fi
              }
              i = 0;
              if
              :: host != 0 ->
                   host_state[host] = TAKEN;
                   entry = host;
              :: else
              fi
          }
          if
          :: host == 0 -> /* wait for one, outside */
               gate_leave (id);
               (entry != 0 || is_any_fresh);
               gate_enter (id);
               goto look_up
          :: else
          fi
       fi;
       d_step {
         DATA (host, s) = NEW;
         check ();
       }
       /* And after. */
       if
       :: flagged -> trims_write (s)
       :: else
       fi;
       d_step {
         if
         :: trimmed_since[s] & BIT (id) ->
              may_read[s] = BIT (NEW) | BIT (ZEROS);
         :: else -> may_read[s] = BIT (NEW);
         fi;
         trimmed_since[s] = trimmed_since[s] & ~BIT (id);
         host = 0;
         check ();
       }
       gate_leave (id);
       nr--;
  od
}

/* ---- Trimming ---- */

inline begin_trim (s)
{
  may_read[s] = may_read[s] | BIT (ZEROS);
  nr_trims[s]++;
  trimmed_since[s] = ALL;
}

proctype trimmer (byte id, s)
{
  byte host;

  d_step {
    begin_trim (s);
    gate_enter (id);
    host = entry;
  }
  if
  :: host != 0 ->
       d_step {
         /* get_record */
         if
         :: have_record && !is_good -> drop_record ();
         :: else
         fi;
         if
         :: entry == host ->
              flagged = true;
              if
              :: !have_record ->
                   have_record = true;
                   record_entry = host;
                   record_state = RESTING;
                   serial = 1 - serial;
              :: else
              fi;
              record_parts = record_parts | BIT (s);
              if
              :: record_parts == ALL ->
#ifdef BUG_UNMAPPED_UNLOCKED
                   drop_record ();
                   record_state = TAKEN;        /* a note to ourselves */
#else
                   unmap (host);
                   drop_record ();
#endif
              :: record_parts != ALL && record_state != BUSY ->
                   record_state = WAITING;
              :: else
              fi
         :: else
         fi;
         check ();
       }
#ifdef BUG_UNMAPPED_UNLOCKED
       d_step {
         if
         :: !have_record && record_state == TAKEN ->
              record_state = 0;
              unmap (host);
         :: else
         fi;
         check ();
       }
#endif
  :: else
  fi;
  d_step {
    nr_trims[s]--;
    host = 0;
  }
  gate_leave (id)
}

/* Of all of it. */
proctype whole_trimmer (byte id)
{
  byte host;

  d_step {
    begin_trim (0);
    begin_trim (1);
    gate_enter (id);
    host = entry;
  }
  d_step {
    if
    :: host != 0 -> unmap (host);
    :: else
    fi;
    host = 0;
    check ();
  }
  d_step {
    nr_trims[0]--;
    nr_trims[1]--;
  }
  gate_leave (id)
}

/* ---- The flusher ---- */

#define FLUSHER 4

active proctype puncher ()
{
  byte host, parts;

end:
  do
  :: d_step {
       have_record && record_state == WAITING ->
         gate_enter (FLUSHER);
         if
         :: is_good ->
              record_state = BUSY;
              record_busy = record_parts;
              host = record_entry;
              parts = record_parts;
         :: else -> drop_record ();
         fi
     }
     if
     :: parts & BIT (0) ->
          d_step { DATA (host, 0) = ZEROS; check (); }
     :: else
     fi;
     if
     :: parts & BIT (1) ->
          d_step { DATA (host, 1) = ZEROS; check (); }
     :: else
     fi;
     d_step {
       if
       :: have_record && record_state == BUSY ->
            record_busy = 0;
            if
            :: record_parts != parts -> record_state = WAITING;
            :: else ->
                 record_state = SETTLING;
                 look_serial = serial;
#ifndef BUG_NO_GRACE_PERIOD
                 look_waits_for = readers & ~BIT (FLUSHER);
#endif
            fi
       :: else
       fi;
       host = 0;
       parts = 0;
     }
     gate_leave (FLUSHER)
  od
}

#define is_settled \
  (have_record && record_state == SETTLING && serial == look_serial \
   && look_waits_for == 0)

active proctype looker ()
{
end:
  do
  :: d_step {
       is_settled ->
         if
         :: !is_good -> drop_record ();
         :: is_good && DATA (entry, 0) == ZEROS && DATA (entry, 1) == ZEROS ->
              unmap (record_entry);
              drop_record ();
         :: else -> record_state = RESTING;
         fi;
         check ();
     }
  od
}

/* Freed clusters come back. */
active proctype scrubber ()
{
end:
  do
  :: d_step {
       host_state[1] == FREED && waits_for[1] == 0 ->
         DATA (1, 0) = ZEROS;
         DATA (1, 1) = ZEROS;
         host_state[1] = FRESH;
         check ();
     }
#if NR_HOSTS == 2
  :: d_step {
       host_state[2] == FREED && waits_for[2] == 0 ->
         DATA (2, 0) = ZEROS;
         DATA (2, 1) = ZEROS;
         host_state[2] = FRESH;
         check ();
     }
#endif
  od
}

init
{
  atomic {
    DATA (1, 0) = OLD;
    DATA (1, 1) = OLD;
    host_state[1] = TAKEN;
#if NR_HOSTS == 2
    host_state[2] = FRESH;
#endif
    may_read[0] = BIT (OLD);
    may_read[1] = BIT (OLD);
    WRITERS;
    TRIMMERS;
  }
}
