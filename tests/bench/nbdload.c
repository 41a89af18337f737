/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* nbdload: a small asynchronous NBD load generator (libnbd), for what fio's
 * nbd engine cannot do: FUA writes, write-zeroes, free op mixes, flush every N
 * writes counted as an op, a final flush inside the timed span.
 * One thread and one connection per -c; each keeps -d commands in flight.
 * Prints one JSON object.
 *
 *   cc -O2 -Wall -o nbdload nbdload.c -lnbd -lpthread
 *   nbdload -u nbd+unix:///?socket=s.sock -b 4096 -d 32 -c 4 -t 4 -w 100 -f 100
 *
 *   -u URI   -b block bytes   -d depth   -c connections   -t seconds
 *   -n max ops per connection (0 = none)   -B max bytes in all (0 = none)
 *   -r/-w/-T/-z  weights of read/write/trim/zero (default -r 100)
 *   -f percent of writes (and zeroes, trims) that carry FUA
 *   -F N  async flush after each N writes of a connection (0 = never)
 *   -Q N  as -F, but quiesced: drains the connection, flushes, waits (as fio)
 *   -E    a final flush, inside the timed span    -s sequential (default random)
 *   -N    zeroes with NO_HOLE flag  -A BYTES  alignment of offsets; with -s, the stride (default = block)
 *   -S seed   -O offset  -L length of the region used */
#include <libnbd.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { RD, WR, TR, ZE, FL, NOPS };
static const char *opname[NOPS] = { "read", "write", "trim", "zero", "flush" };
#define HB 2048                 /* histogram: 32 buckets per power of two */
static struct {
  const char *uri; uint64_t bs, align, off, len, maxops, maxbytes, seed;
  int depth, conns, seq, fua, every, quiesce, endflush, nohole;
  double secs; int wt[4];
} o = { .bs = 4096, .depth = 1, .conns = 1, .secs = 4, .seed = 1 };
static uint64_t t_end;
static _Atomic uint64_t bytes_issued;

static uint64_t num(const char *s) {   /* with an optional k, M, G, T */
  char *e; uint64_t v = strtoull(s, &e, 0);
  return v << (*e == 'k' ? 10 : *e == 'M' ? 20 : *e == 'G' ? 30 : *e == 'T' ? 40 : 0);
}
static uint64_t now(void) {
  struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}
static int hidx(uint64_t v) {
  if (v < 32) return v;
  int l = 63 - __builtin_clzll(v);
  int i = (l - 4) * 32 + (int)((v >> (l - 5)) & 31);
  return i < HB ? i : HB - 1;
}
static uint64_t hval(int i) {   /* middle of bucket i */
  if (i < 32) return i;
  int l = i / 32 + 4; uint64_t w = 1ull << (l - 5);
  return (1ull << l) + (i % 32) * w + w / 2;
}
struct conn;
struct slot { struct conn *c; char *buf; uint64_t t0; int op; };
struct conn {
  pthread_t th; struct nbd_handle *h; struct slot *s, **free; int nfree, infl;
  uint64_t rng, pos, lo, hi, ops, writes, errs, t_done;
  uint64_t n[NOPS], sum[NOPS], max[NOPS]; uint32_t hist[NOPS][HB];
};

static uint64_t rnd(struct conn *c) {
  uint64_t x = c->rng; x ^= x << 13; x ^= x >> 7; x ^= x << 17; return c->rng = x;
}
static int done(void *p, int *err) {
  struct slot *s = p; struct conn *c = s->c;
  uint64_t d = now() - s->t0;
  if (*err) c->errs++;
  c->n[s->op]++; c->sum[s->op] += d; c->hist[s->op][hidx(d)]++;
  if (d > c->max[s->op]) c->max[s->op] = d;
  c->free[c->nfree++] = s; c->infl--;
  return 1;                     /* retire the command */
}
static void die(const char *w) { fprintf(stderr, "%s: %s\n", w, nbd_get_error()); exit(1); }

static void submit(struct conn *c, int op) {
  struct slot *s = c->free[--c->nfree];
  nbd_completion_callback cb = { .callback = done, .user_data = s };
  uint64_t off; int64_t r; uint32_t fl = 0;
  if (op < FL && o.fua && (int)(rnd(c) % 100) < o.fua && op != RD) fl = LIBNBD_CMD_FLAG_FUA;
  if (o.seq) { off = c->pos; c->pos += o.align; if (c->pos + o.bs > c->hi) c->pos = c->lo; }
  else off = o.off + rnd(c) % ((o.len - o.bs) / o.align + 1) * o.align;
  s->op = op; s->t0 = now(); c->infl++;
  switch (op) {
  case RD: r = nbd_aio_pread(c->h, s->buf, o.bs, off, cb, 0); break;
  case WR: *(uint64_t *)s->buf = off; r = nbd_aio_pwrite(c->h, s->buf, o.bs, off, cb, fl); break;
  case TR: r = nbd_aio_trim(c->h, o.bs, off, cb, fl); break;
  case ZE: r = nbd_aio_zero(c->h, o.bs, off, cb, fl | (o.nohole ? LIBNBD_CMD_FLAG_NO_HOLE : 0)); break;
  default: r = nbd_aio_flush(c->h, cb, 0);
  }
  if (r == -1) die(opname[op]);
}
static void drain(struct conn *c) {
  while (c->infl) if (nbd_poll(c->h, -1) == -1) die("poll");
}
static void *run(void *p) {
  struct conn *c = p; int tot = o.wt[0] + o.wt[1] + o.wt[2] + o.wt[3], stop = 0;
  while (!stop || c->infl) {
    while (!stop && c->nfree) {
      if (now() >= t_end || (o.maxops && c->ops >= o.maxops) ||
          (o.maxbytes && atomic_fetch_add(&bytes_issued, o.bs) >= o.maxbytes)) { stop = 1; break; }
      int x = rnd(c) % tot, op = 0;
      while (x >= o.wt[op]) x -= o.wt[op++];
      submit(c, op); c->ops++;
      if (op == WR && ++c->writes) {
        if (o.quiesce && c->writes % o.quiesce == 0) { drain(c); submit(c, FL); drain(c); }
        if (o.every && c->writes % o.every == 0) {
          while (!c->nfree) if (nbd_poll(c->h, -1) == -1) die("poll");
          submit(c, FL);
        }
      }
    }
    if (c->infl && nbd_poll(c->h, -1) == -1) die("poll");
  }
  if (o.endflush) { submit(c, FL); drain(c); }
  c->t_done = now();
  return NULL;
}
int main(int argc, char **argv) {
  int k, any = 0; uint64_t size;
  while ((k = getopt(argc, argv, "u:b:d:c:t:n:B:r:w:T:z:f:F:Q:EsNA:S:O:L:")) != -1)
    switch (k) {
    case 'u': o.uri = optarg; break;           case 'b': o.bs = num(optarg); break;
    case 'd': o.depth = atoi(optarg); break;   case 'c': o.conns = atoi(optarg); break;
    case 't': o.secs = atof(optarg); break;    case 'n': o.maxops = num(optarg); break;
    case 'B': o.maxbytes = num(optarg); break;
    case 'r': o.wt[RD] = atoi(optarg); any = 1; break;
    case 'w': o.wt[WR] = atoi(optarg); any = 1; break;
    case 'T': o.wt[TR] = atoi(optarg); any = 1; break;
    case 'z': o.wt[ZE] = atoi(optarg); any = 1; break;
    case 'f': o.fua = atoi(optarg); break;     case 'F': o.every = atoi(optarg); break;
    case 'Q': o.quiesce = atoi(optarg); break; case 'E': o.endflush = 1; break;
    case 's': o.seq = 1; break;                case 'N': o.nohole = 1; break;
    case 'A': o.align = num(optarg); break;
    case 'S': o.seed = num(optarg); break;
    case 'O': o.off = num(optarg); break;
    case 'L': o.len = num(optarg); break;
    default: return 2;
    }
  if (!o.uri || o.depth < 1 || o.conns < 1) { fprintf(stderr, "usage: see the head of nbdload.c\n"); return 2; }
  if (!any) o.wt[RD] = 100;
  if (!o.align) o.align = o.bs;
  struct conn *cs = calloc(o.conns, sizeof *cs);
  for (int i = 0; i < o.conns; i++) {
    struct conn *c = cs + i;
    if (!(c->h = nbd_create()) || nbd_connect_uri(c->h, o.uri) == -1) die("connect");
    size = nbd_get_size(c->h);
    if (!o.len) o.len = size - o.off;
    if (o.fua && !i && nbd_can_fua(c->h) != 1) fprintf(stderr, "warning: server offers no FUA\n");
    c->s = calloc(o.depth, sizeof *c->s); c->free = calloc(o.depth, sizeof *c->free);
    for (int j = 0; j < o.depth; j++) {
      struct slot *s = c->s + j; s->c = c;
      if (posix_memalign((void **)&s->buf, 4096, o.bs < 4096 ? 4096 : o.bs)) return 1;
      c->rng = o.seed * 0x9E3779B97F4A7C15ull + i * 77 + j + 1;
      for (uint64_t q = 0; q + 8 <= o.bs; q += 8) *(uint64_t *)(s->buf + q) = rnd(c);
      c->free[c->nfree++] = s;
    }
    c->lo = o.off + o.len / o.conns / o.bs * o.bs * i; c->pos = c->lo;
    c->hi = c->lo + o.len / o.conns / o.bs * o.bs;
  }
  uint64_t t0 = now(), t1 = t0; t_end = t0 + (uint64_t)(o.secs * 1e9);
  for (int i = 0; i < o.conns; i++) pthread_create(&cs[i].th, NULL, run, cs + i);
  struct conn a; memset(&a, 0, sizeof a);
  for (int i = 0; i < o.conns; i++) {
    struct conn *c = cs + i; pthread_join(c->th, NULL);
    if (c->t_done > t1) t1 = c->t_done;
    a.errs += c->errs;
    for (k = 0; k < NOPS; k++) {
      a.n[k] += c->n[k]; a.sum[k] += c->sum[k]; if (c->max[k] > a.max[k]) a.max[k] = c->max[k];
      for (int b = 0; b < HB; b++) a.hist[k][b] += c->hist[k][b];
    }
    nbd_shutdown(c->h, 0); nbd_close(c->h);
  }
  double el = (t1 - t0) / 1e9; uint64_t ops = 0, data = 0;
  for (k = 0; k < FL; k++) { ops += a.n[k]; data += a.n[k] * o.bs; }
  printf("{\"seconds\":%.4f,\"ops\":%" PRIu64 ",\"iops\":%.1f,\"mib_s\":%.2f,\"errors\":%" PRIu64 ",\"lat_us\":{",
         el, ops, ops / el, data / el / 1048576, a.errs);
  for (k = any = 0; k < NOPS; k++) if (a.n[k]) {
    static const double pc[] = { 50, 99, 99.9 }; double v[3];
    for (int q = 0; q < 3; q++) {
      uint64_t want = a.n[k] * pc[q] / 100, acc = 0; int b = 0;
      while (b < HB - 1 && (acc += a.hist[k][b]) <= want) b++;
      v[q] = hval(b) / 1e3;
    }
    printf("%s\"%s\":{\"n\":%" PRIu64 ",\"mean\":%.2f,\"p50\":%.2f,\"p99\":%.2f,\"p999\":%.2f,\"max\":%.2f}",
           any++ ? "," : "", opname[k], a.n[k], a.sum[k] / 1e3 / a.n[k], v[0], v[1], v[2], a.max[k] / 1e3);
  }
  printf("}}\n");
  return a.errs != 0;
}
