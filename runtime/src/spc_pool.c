/* The thread pool: every thread has a share of the units, cut into a few pieces; who is done takes pieces others have not begun.
 *
 * A worker that wakes late, or that the system has put aside for another process, so delays a step by no more than the piece it
 * is at. Each worker has a mailbox of its own, so a small step wakes only the workers it uses. The caller takes part and, like
 * the workers, spins before it sleeps: steps of one model follow each other within microseconds.
 */
#if !defined(SPC_NO_THREADS) && !defined(SPC_BARE)
#define _POSIX_C_SOURCE 200809L
#ifdef __linux__
#define _GNU_SOURCE /* sched_getcpu */
#endif
#endif
#include "spc_internal.h"

/* The units thread t of n computes. */
static int32_t bound(int32_t units, int32_t t, int32_t n) { return (int32_t)((int64_t)units * t / n); }

#ifdef SPC_NO_THREADS

struct spc_pool {
    int32_t threads;
};

size_t spc_pool_bytes(int32_t threads)
{
    (void)threads;
    return sizeof(spc_pool);
}

int32_t spc_pool_start(spc_pool **pool, int32_t threads, void *memory)
{
    *pool = memory;
    (*pool)->threads = threads;
    return SPC_OK;
}

void spc_pool_stop(spc_pool *pool) { (void)pool; }

int spc_pool_alive(const spc_pool *pool)
{
    (void)pool;
    return 1;
}

/* One thread computes every range in turn: the split stays that of the threaded build. */
int32_t spc_parallel_for(spc_pool *pool, spc_range_fn fn, void *context, int32_t units, int32_t max_threads, int32_t pieces)
{
    (void)pool;
    (void)max_threads;
    (void)pieces;
    return units > 0 ? fn(context, 0, bound(units, 0, 1), bound(units, 1, 1)) : 0;
}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* A thread spins so long before it sleeps: longer than the caller needs between two steps that are for all, too short to be seen as
 * a busy core. Waking it takes 20 to 50 microseconds on a virtual machine. In time, not in rounds: a pause takes 10 to 140 cycles. */
#define SPIN_NS 500000
/* Now and then a spinning thread lets another one have its core: on a crowded machine that may be the one it waits for. */
#define SPIN_YIELD 64

/* Pieces of a share as one word: bits 32..63 the job, 16..31 the number of pieces, 0..15 the next one. */
typedef _Atomic uint64_t claim_word;

typedef struct {
    claim_word claims;
    _Atomic uint32_t ticket; /* changes when there is work */
    _Atomic uint32_t asleep;
    _Atomic int32_t core; /* where the worker was when it last woke up, counted from 1; 0: not known */
    int32_t index;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t thread;
    struct spc_pool *pool;
} slot;

typedef struct {
    _Alignas(SPC_ALIGNMENT) slot body; /* a cache line of its own for each worker's ticket */
} padded_slot;

struct spc_pool {
    /* the job: written by the caller before the claims, read by who holds a piece; while one is held the job is not over */
    spc_range_fn fn;
    void *context;
    int32_t units;
    int32_t active; /* threads taking part */
    int32_t pieces; /* of each share */
    int32_t threads;
    pid_t owner;
    _Atomic int32_t ending;
    claim_word *claims[SPC_MAX_THREADS];
    _Alignas(SPC_ALIGNMENT) claim_word own; /* the caller's share */
    uint32_t job;
    _Atomic int32_t core; /* of the caller, as in a slot */
    _Alignas(SPC_ALIGNMENT) _Atomic int32_t pending; /* pieces that are not computed yet */
    _Atomic uint64_t failed; /* lowest piece that failed, and its result in the lower half */
    _Atomic uint32_t caller_asleep;
    pthread_mutex_t done_mutex;
    pthread_cond_t done;
    padded_slot slots[]; /* threads - 1 */
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

size_t spc_pool_bytes(int32_t threads) { return sizeof(spc_pool) + sizeof(padded_slot) * (size_t)(threads - 1); }

/* One round of spinning; 0 when its time is over. end: when that is, 0 before the first look at the clock. */
static int spin(int round, uint64_t *end)
{
    if (round % SPIN_YIELD != SPIN_YIELD - 1) {
        relax();
        return 1;
    }
    sched_yield();
    uint64_t now = spc_now_ns();
    if (*end == 0) *end = now + SPIN_NS;
    return now < *end;
}

#ifdef __linux__

/* The core this thread runs on, from 1; 0 if that is not known. */
static int32_t this_core(void)
{
    int core = sched_getcpu();
    return core < 0 || core >= CPU_SETSIZE ? 0 : core + 1;
}

/* Go to another core if the caller or a worker that is awake has this one. The system may wake several threads on one core and leave
 * them there for a tenth of a second, while another core idles: threads that spin and yield look busy on a warm cache. The worker may
 * run everywhere again at once; nothing happens where it may not choose, or where there is no other core. */
static void leave_shared_core(slot *s)
{
    spc_pool *pool = s->pool;
    int32_t here = this_core(), shared = 0;
    cpu_set_t allowed, others;
    atomic_store(&s->core, here);
    if (here == 0) return;
    CPU_ZERO(&others);
    for (int32_t t = 0; t < pool->threads; t++) {
        slot *other = t == 0 ? NULL : &pool->slots[t - 1].body;
        if (other == s || (other != NULL && atomic_load(&other->asleep))) continue;
        int32_t core = other == NULL ? atomic_load(&pool->core) : atomic_load(&other->core);
        if (core == 0) continue;
        CPU_SET((size_t)(core - 1), &others);
        shared |= core == here;
    }
    if (!shared || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    cpu_set_t wanted = allowed;
    for (size_t core = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, &others)) CPU_CLR(core, &wanted);
    if (CPU_COUNT(&wanted) == 0 || sched_setaffinity(0, sizeof wanted, &wanted) != 0) return;
    sched_setaffinity(0, sizeof allowed, &allowed);
    atomic_store(&s->core, this_core());
}

#else

static int32_t this_core(void) { return 0; }
static void leave_shared_core(slot *s) { (void)s; }

#endif

/* Wait until the slot's ticket differs from `seen`; returns the new one. */
static uint32_t await_ticket(slot *s, uint32_t seen)
{
    uint32_t now;
    uint64_t end = 0;
    int round = 0;
    do {
        now = atomic_load_explicit(&s->ticket, memory_order_acquire);
        if (now != seen) return now;
    } while (spin(round++, &end));
    pthread_mutex_lock(&s->mutex);
    /* Sequentially consistent with post(): either it sees us asleep, or we see its ticket. */
    atomic_store(&s->asleep, 1u);
    while ((now = atomic_load(&s->ticket)) == seen) pthread_cond_wait(&s->wake, &s->mutex);
    atomic_store(&s->asleep, 0u);
    pthread_mutex_unlock(&s->mutex);
    leave_shared_core(s);
    return now;
}

static void post(slot *s)
{
    atomic_fetch_add(&s->ticket, 1u);
    if (atomic_load(&s->asleep)) {
        pthread_mutex_lock(&s->mutex);
        pthread_cond_signal(&s->wake);
        pthread_mutex_unlock(&s->mutex);
    }
}

/* The next piece of a share, or -1 when none is left. The job in the word keeps a late thread from taking an old piece. */
static int32_t claim(claim_word *share)
{
    uint64_t word = atomic_load_explicit(share, memory_order_acquire);
    while ((word & 0xFFFFu) < (word >> 16 & 0xFFFFu))
        if (atomic_compare_exchange_weak_explicit(share, &word, word + 1, memory_order_acq_rel, memory_order_acquire))
            return (int32_t)(word & 0xFFFFu);
    return -1;
}

static void finish(spc_pool *pool)
{
    if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->caller_asleep)) {
        pthread_mutex_lock(&pool->done_mutex);
        pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->done_mutex);
    }
}

static void await_all(spc_pool *pool)
{
    uint64_t end = 0;
    int round = 0;
    do {
        if (atomic_load_explicit(&pool->pending, memory_order_acquire) == 0) return;
    } while (spin(round++, &end));
    pthread_mutex_lock(&pool->done_mutex);
    atomic_store(&pool->caller_asleep, 1u);
    while (atomic_load(&pool->pending) != 0) pthread_cond_wait(&pool->done, &pool->done_mutex);
    atomic_store(&pool->caller_asleep, 0u);
    pthread_mutex_unlock(&pool->done_mutex);
}

/* Compute what is left of the share of thread `owner`. */
static void compute(spc_pool *pool, int32_t thread, int32_t owner)
{
    for (int32_t piece; (piece = claim(pool->claims[owner])) >= 0;) {
        int32_t number = owner * pool->pieces + piece, all = pool->active * pool->pieces;
        int32_t lo = bound(pool->units, number, all), hi = bound(pool->units, number + 1, all);
        int32_t result = pool->fn(pool->context, thread, lo, hi);
        if (result != 0) {
            uint64_t mine = (uint64_t)(uint32_t)number << 32 | (uint32_t)result, lowest = atomic_load(&pool->failed);
            while (mine >> 32 < lowest >> 32 && !atomic_compare_exchange_weak(&pool->failed, &lowest, mine)) {}
        }
        finish(pool);
    }
}

/* The thread's own share first, then those of the others. */
static void compute_all(spc_pool *pool, int32_t thread)
{
    for (int32_t t = 0; t < pool->threads; t++) compute(pool, thread, (thread + t) % pool->threads);
}

static void *work(void *argument)
{
    slot *s = argument;
    spc_pool *pool = s->pool;
    uint32_t seen = 0;
    for (;;) {
        seen = await_ticket(s, seen);
        if (atomic_load(&pool->ending)) return NULL;
        compute_all(pool, s->index);
    }
}

static int32_t start_worker(slot *s)
{
    if (pthread_mutex_init(&s->mutex, NULL) != 0) return SPC_E_THREADS;
    if (pthread_cond_init(&s->wake, NULL) != 0) {
        pthread_mutex_destroy(&s->mutex);
        return SPC_E_THREADS;
    }
    if (pthread_create(&s->thread, NULL, work, s) != 0) {
        pthread_cond_destroy(&s->wake);
        pthread_mutex_destroy(&s->mutex);
        return SPC_E_THREADS;
    }
    return SPC_OK;
}

int32_t spc_pool_start(spc_pool **result, int32_t threads, void *memory)
{
    spc_pool *pool = memory;
    memset(pool, 0, spc_pool_bytes(threads));
    pool->threads = 1;
    pool->owner = getpid();
    pool->claims[0] = &pool->own;
    *result = NULL;
    if (pthread_mutex_init(&pool->done_mutex, NULL) != 0) return SPC_E_THREADS;
    if (pthread_cond_init(&pool->done, NULL) != 0) {
        pthread_mutex_destroy(&pool->done_mutex);
        return SPC_E_THREADS;
    }
    /* Signals of the application are not for the workers. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int32_t status = SPC_OK;
    for (int32_t t = 1; t < threads && status == SPC_OK; t++) {
        slot *s = &pool->slots[t - 1].body;
        s->pool = pool;
        s->index = t;
        pool->claims[t] = &s->claims;
        status = start_worker(s);
        if (status == SPC_OK) pool->threads = t + 1;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (status != SPC_OK) {
        spc_pool_stop(pool);
        return status;
    }
    *result = pool;
    return SPC_OK;
}

int spc_pool_alive(const spc_pool *pool) { return pool != NULL && pool->owner == getpid(); }

void spc_pool_stop(spc_pool *pool)
{
    if (!spc_pool_alive(pool)) return; /* after fork the threads, their mutexes and conditions are the parent's */
    atomic_store(&pool->ending, 1);
    for (int32_t t = 1; t < pool->threads; t++) {
        slot *s = &pool->slots[t - 1].body;
        post(s);
        pthread_join(s->thread, NULL);
        pthread_cond_destroy(&s->wake);
        pthread_mutex_destroy(&s->mutex);
    }
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->done_mutex);
}

int32_t spc_parallel_for(spc_pool *pool, spc_range_fn fn, void *context, int32_t units, int32_t max_threads, int32_t pieces)
{
    int32_t n = pool->threads;
    if (units <= 0) return 0;
    if (n > max_threads) n = max_threads;
    if (n > units) n = units;
    if (n <= 1) return fn(context, 0, 0, units);

    if (pieces > units / n) pieces = units / n;
    if (pieces < 1) pieces = 1;
    pool->fn = fn;
    pool->context = context;
    pool->units = units;
    pool->active = n;
    pool->pieces = pieces;
    atomic_store_explicit(&pool->core, this_core(), memory_order_relaxed);
    atomic_store_explicit(&pool->failed, UINT64_MAX, memory_order_relaxed);
    atomic_store(&pool->pending, n * pieces);
    uint64_t word = (uint64_t)++pool->job << 32 | (uint64_t)pieces << 16;
    for (int32_t t = 0; t < n; t++) atomic_store_explicit(pool->claims[t], word, memory_order_release);
    for (int32_t t = 1; t < n; t++) post(&pool->slots[t - 1].body);
    compute_all(pool, 0);
    await_all(pool);
    uint64_t failed = atomic_load(&pool->failed);
    return failed == UINT64_MAX ? 0 : (int32_t)(uint32_t)failed;
}

#endif
