/* The thread pool: workers wait for a range each, spin a little, then sleep.
 *
 * Each worker has a mailbox of its own, so a small step wakes only the workers it uses. The caller takes part and, like the
 * workers, spins before it sleeps: steps of one model follow each other within microseconds.
 */
#if !defined(SPC_NO_THREADS) && !defined(SPC_BARE)
#define _POSIX_C_SOURCE 200809L
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
int32_t spc_parallel_for(spc_pool *pool, spc_range_fn fn, void *context, int32_t units, int32_t max_threads)
{
    (void)pool;
    (void)max_threads;
    return units > 0 ? fn(context, 0, bound(units, 0, 1), bound(units, 1, 1)) : 0;
}

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* About 20 to 100 microseconds: longer than the gap between two steps of a model, too short to be seen as a busy core. */
#define SPIN_ROUNDS 2000

typedef struct {
    _Atomic uint32_t ticket; /* changes when there is work */
    _Atomic uint32_t asleep;
    int32_t result;
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
    /* the job: written by the caller before the tickets, read by the workers after them */
    spc_range_fn fn;
    void *context;
    int32_t units;
    int32_t active; /* threads taking part; 0 tells the workers to end */
    int32_t threads;
    pid_t owner;
    _Alignas(SPC_ALIGNMENT) _Atomic int32_t pending;
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

/* Wait until the slot's ticket differs from `seen`; returns the new one. */
static uint32_t await_ticket(slot *s, uint32_t seen)
{
    uint32_t now;
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        now = atomic_load_explicit(&s->ticket, memory_order_acquire);
        if (now != seen) return now;
        relax();
    }
    pthread_mutex_lock(&s->mutex);
    /* Sequentially consistent with post(): either it sees us asleep, or we see its ticket. */
    atomic_store(&s->asleep, 1u);
    while ((now = atomic_load(&s->ticket)) == seen) pthread_cond_wait(&s->wake, &s->mutex);
    atomic_store(&s->asleep, 0u);
    pthread_mutex_unlock(&s->mutex);
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
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&pool->pending, memory_order_acquire) == 0) return;
        relax();
    }
    pthread_mutex_lock(&pool->done_mutex);
    atomic_store(&pool->caller_asleep, 1u);
    while (atomic_load(&pool->pending) != 0) pthread_cond_wait(&pool->done, &pool->done_mutex);
    atomic_store(&pool->caller_asleep, 0u);
    pthread_mutex_unlock(&pool->done_mutex);
}

static void *work(void *argument)
{
    slot *s = argument;
    spc_pool *pool = s->pool;
    uint32_t seen = 0;
    for (;;) {
        seen = await_ticket(s, seen);
        int32_t n = pool->active;
        if (n == 0) return NULL;
        s->result = pool->fn(pool->context, s->index, bound(pool->units, s->index, n), bound(pool->units, s->index + 1, n));
        finish(pool);
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
    pool->active = 0;
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

int32_t spc_parallel_for(spc_pool *pool, spc_range_fn fn, void *context, int32_t units, int32_t max_threads)
{
    int32_t n = pool->threads;
    if (units <= 0) return 0;
    if (n > max_threads) n = max_threads;
    if (n > units) n = units;
    if (n <= 1) return fn(context, 0, 0, units);

    pool->fn = fn;
    pool->context = context;
    pool->units = units;
    pool->active = n;
    atomic_store(&pool->pending, n - 1);
    for (int32_t t = 1; t < n; t++) post(&pool->slots[t - 1].body);
    int32_t result = fn(context, 0, 0, bound(units, 1, n));
    await_all(pool);
    for (int32_t t = 1; t < n && result == 0; t++) result = pool->slots[t - 1].body.result;
    return result;
}

#endif
