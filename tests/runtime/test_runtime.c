/* Drives the C runtime without kernels: the pool, sessions, blob validation. Prints "ok" or stops at the first failure. */
#define _GNU_SOURCE
#include "spc_internal.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);      \
            exit(1);                                                             \
        }                                                                        \
    } while (0)

enum { UNITS = 1009, STEPS = 5, PAYLOAD = 100 };

/* The model: y[i] = x[i] + STEPS * w[i % PAYLOAD], STEPS steps that each go through the arena and the work area. */

static int32_t add_weights(const spc_run *run, uint8_t *work, int32_t lo, int32_t hi)
{
    uint8_t *value = spc_arena(run, 0);
    uint8_t *scratch = spc_work(work, 0);
    const uint8_t *w = spc_weight(run, 0);
    for (int32_t i = lo; i < hi; i++) {
        scratch[0] = w[i % PAYLOAD];
        value[i] = (uint8_t)(value[i] + scratch[0]);
    }
    return 0;
}

static int32_t load(const spc_run *run, uint8_t *work, int32_t lo, int32_t hi)
{
    (void)work;
    memcpy((uint8_t *)spc_arena(run, 0) + lo, (const uint8_t *)spc_input(run, 0, 0) + lo, (size_t)(hi - lo));
    return 0;
}

static int32_t save(const spc_run *run, uint8_t *work, int32_t lo, int32_t hi)
{
    (void)work;
    memcpy((uint8_t *)spc_output(run, 0, 0) + lo, (const uint8_t *)spc_arena(run, 0) + lo, (size_t)(hi - lo));
    return 0;
}

static int32_t fail_at_end(const spc_run *run, uint8_t *work, int32_t lo, int32_t hi)
{
    (void)run;
    (void)work;
    (void)lo;
    return hi == UNITS ? 42 : 0;
}

static int32_t run_model(const spc_run *run)
{
    int32_t status = spc_step(run, 0, load, UNITS, 2, 4);
    for (int32_t i = 0; i < STEPS && status == 0; i++) status = spc_step(run, 1 + i, add_weights, UNITS, 1 + 2 * i, 1 + i % 4);
    return status != 0 ? status : spc_step(run, STEPS + 1, save, UNITS, SPC_MAX_THREADS, 4);
}

static int32_t run_failing(const spc_run *run) { return spc_step(run, 0, fail_at_end, UNITS, SPC_MAX_THREADS, 4); }

static const int64_t dims[] = {UNITS};
static const spc_tensor_info in_info = {"x", SPC_UINT8, 1, dims, UNITS};
static const spc_tensor_info out_info = {"y", SPC_UINT8, 1, dims, UNITS};

static spc_model make_model(void)
{
    spc_model model = {.abi = SPC_ABI_VERSION, .name = "test", .target = "host", .id = 0x1122334455667788u,
                       .weights_bytes = PAYLOAD, .arena_bytes = UNITS, .work_bytes = 1, .input_count = 1,
                       .output_count = 1, .step_count = STEPS + 2, .max_threads = 8, .inputs = &in_info,
                       .outputs = &out_info, .run = run_model};
    return model;
}

/* --- blob --- */

typedef struct {
    spc_blob_header header;
    uint8_t payload[PAYLOAD];
} test_blob; /* PAYLOAD is no multiple of 8: the struct has padding, BLOB_BYTES has not */

#define BLOB_BYTES (sizeof(spc_blob_header) + PAYLOAD)

static void seal(test_blob *blob)
{
    blob->header.payload_checksum = spc_checksum(blob->payload, PAYLOAD);
    blob->header.header_checksum = spc_checksum(&blob->header, offsetof(spc_blob_header, header_checksum));
}

static void make_blob(test_blob *blob)
{
    static const uint8_t magic[8] = {0x89, 'S', 'P', 'C', '\r', '\n', 0x1a, '\n'};
    memset(blob, 0, sizeof *blob);
    memcpy(blob->header.magic, magic, 8);
    blob->header.version = SPC_BLOB_VERSION;
    blob->header.byte_order = SPC_BLOB_ORDER;
    blob->header.model_id = make_model().id;
    blob->header.total_bytes = BLOB_BYTES;
    blob->header.payload_offset = sizeof(spc_blob_header);
    blob->header.payload_bytes = PAYLOAD;
    for (int i = 0; i < PAYLOAD; i++) blob->payload[i] = (uint8_t)(i * 7 + 3);
    seal(blob);
}

static int32_t validate(const void *blob, size_t bytes)
{
    /* An exact heap copy: the address sanitizer sees any read past the end. */
    spc_model model = make_model();
    spc_weights weights;
    void *copy = malloc(bytes > 0 ? bytes : 1);
    CHECK(copy != NULL);
    memcpy(copy, blob, bytes);
    int32_t status = spc_weights_from_memory(&weights, &model, copy, bytes);
    CHECK(status == SPC_OK ? weights.payload != NULL : weights.payload == NULL);
    free(copy);
    return status;
}

static void test_blob_validation(void)
{
    test_blob good, bad;
    make_blob(&good);
    CHECK(validate(&good, BLOB_BYTES) == SPC_OK);
    for (size_t i = 0; i < BLOB_BYTES; i++) { /* every single damaged byte is found */
        for (int bit = 0; bit < 8; bit += 7) {
            bad = good;
            ((uint8_t *)&bad)[i] ^= (uint8_t)(1 << bit);
            CHECK(validate(&bad, BLOB_BYTES) != SPC_OK);
        }
    }
    for (size_t n = 0; n < BLOB_BYTES; n++) CHECK(validate(&good, n) == SPC_E_BLOB_TRUNCATED);
    uint8_t longer[sizeof good + 1] = {0};
    memcpy(longer, &good, BLOB_BYTES);
    CHECK(validate(longer, BLOB_BYTES + 1) == SPC_E_BLOB_SIZE);

    bad = good, bad.header.magic[0] = 'P';
    CHECK(validate(&bad, BLOB_BYTES) == SPC_E_BLOB_MAGIC);
    bad = good, bad.header.version++, seal(&bad);
    CHECK(validate(&bad, BLOB_BYTES) == SPC_E_BLOB_VERSION);
    bad = good, bad.header.byte_order = 0x04030201u, seal(&bad);
    CHECK(validate(&bad, BLOB_BYTES) == SPC_E_BLOB_ENDIAN);
    bad = good, bad.header.model_id++, seal(&bad);
    CHECK(validate(&bad, BLOB_BYTES) == SPC_E_BLOB_MODEL);
    bad = good, bad.header.payload_bytes--, bad.header.total_bytes--, seal(&bad);
    CHECK(validate(&bad, BLOB_BYTES - 1) == SPC_E_BLOB_SIZE);
    bad = good, bad.header.payload_offset = UINT64_MAX - 8, seal(&bad);
    CHECK(validate(&bad, BLOB_BYTES) == SPC_E_BLOB_HEADER);
    bad = good, bad.header.payload_offset = 8, bad.header.payload_bytes += 56, seal(&bad);
    CHECK(validate(&bad, BLOB_BYTES) == SPC_E_BLOB_HEADER);
    bad = good, bad.header.total_bytes = UINT64_MAX, bad.header.payload_bytes = UINT64_MAX - sizeof(spc_blob_header);
    seal(&bad);
    CHECK(validate(&bad, BLOB_BYTES) == SPC_E_BLOB_SIZE);
    bad = good, bad.payload[PAYLOAD - 1] ^= 1;
    CHECK(validate(&bad, BLOB_BYTES) == SPC_E_BLOB_CHECKSUM);
}

static void test_blob_file(const char *folder)
{
    char path[4096];
    test_blob blob;
    spc_model model = make_model();
    spc_weights weights;
    spc_session *session;
    make_blob(&blob);
    snprintf(path, sizeof path, "%s/weights.bin", folder);
    CHECK(spc_weights_open(&weights, &model, path) == SPC_E_FILE_OPEN);
    CHECK(spc_weights_open(&weights, &model, folder) == SPC_E_FILE_OPEN); /* a folder opens but is no file */
    for (size_t n = 0; n <= BLOB_BYTES; n += BLOB_BYTES / 4) {
        FILE *file = fopen(path, "wb");
        CHECK(file != NULL);
        CHECK(fwrite(&blob, 1, n, file) == n);
        fclose(file);
        int32_t wanted = n == BLOB_BYTES ? SPC_OK : SPC_E_BLOB_TRUNCATED;
        CHECK(spc_weights_open(&weights, &model, path) == wanted);
        CHECK((weights.mapping != NULL) == (wanted == SPC_OK));
        spc_weights_close(&weights);
        CHECK(spc_open(&session, &model, path, 2) == wanted);
        CHECK((session != NULL) == (wanted == SPC_OK));
        spc_session_close(session);
    }
    CHECK(spc_open(&session, &model, path, 0) == SPC_E_ARGUMENT && session == NULL);
    unlink(path);
}

/* --- sessions --- */

static test_blob shared_blob;
static spc_model shared_model;
static spc_weights shared_weights;

static void check_run(spc_session *session, uint8_t seed)
{
    static const size_t shift = 1; /* inputs and outputs of any alignment */
    uint8_t x[UNITS + 1], y[UNITS + 1];
    for (int i = 0; i < UNITS; i++) x[(size_t)i + shift] = (uint8_t)(i * seed + 1);
    const void *const in[] = {x + shift};
    void *const out[] = {y + shift};
    CHECK(spc_session_run(session, in, out) == SPC_OK);
    for (int i = 0; i < UNITS; i++) {
        uint8_t wanted = (uint8_t)(i * seed + 1 + STEPS * shared_blob.payload[i % PAYLOAD]);
        CHECK(y[(size_t)i + shift] == wanted);
    }
}

static void test_sessions(void)
{
    for (int32_t threads = 1; threads <= 9; threads++) {
        spc_session *session;
        CHECK(spc_session_open(&session, &shared_model, &shared_weights, threads, NULL, 0) == SPC_OK);
        for (int i = 0; i < 60; i++) check_run(session, (uint8_t)(i + threads));
        for (int i = 0; i < 5; i++) { /* workers asleep */
            usleep(3000);
            check_run(session, (uint8_t)i);
        }
        uint64_t ns[STEPS + 2] = {0};
        CHECK(spc_session_profile(session, ns) == SPC_OK);
        check_run(session, 3);
        for (int i = 0; i < STEPS + 2; i++) CHECK(ns[i] > 0);
        spc_session_close(session);
    }
}

static void test_memory_of_caller(void)
{
    size_t needed = spc_session_bytes(&shared_model, 3);
    CHECK(needed > UNITS);
    for (size_t shift = 0; shift < 64; shift += 7) {
        uint8_t *memory = malloc(needed + shift);
        spc_session *session;
        CHECK(memory != NULL);
        CHECK(spc_session_open(&session, &shared_model, &shared_weights, 3, memory + shift, needed - 1) == SPC_E_MEMORY);
        CHECK(session == NULL);
        CHECK(spc_session_open(&session, &shared_model, &shared_weights, 3, memory + shift, needed) == SPC_OK);
        check_run(session, 11);
        spc_session_close(session);
        free(memory);
    }
}

static void test_arguments(void)
{
    spc_session *session;
    spc_model other = shared_model;
    uint8_t y[UNITS];
    void *const out[] = {y};
    const void *const none[] = {NULL};
    CHECK(spc_session_open(NULL, &shared_model, &shared_weights, 1, NULL, 0) == SPC_E_ARGUMENT);
    CHECK(spc_session_open(&session, &shared_model, &shared_weights, 0, NULL, 0) == SPC_E_ARGUMENT);
    CHECK(spc_session_open(&session, &shared_model, &shared_weights, SPC_MAX_THREADS + 1, NULL, 0) == SPC_E_ARGUMENT);
    CHECK(spc_session_open(&session, &shared_model, NULL, 1, NULL, 0) == SPC_E_ARGUMENT);
    other.id++;
    CHECK(spc_session_open(&session, &other, &shared_weights, 1, NULL, 0) == SPC_E_BLOB_MODEL);
    other = shared_model, other.abi++;
    CHECK(spc_session_open(&session, &other, &shared_weights, 1, NULL, 0) == SPC_E_ABI);
    CHECK(spc_session_bytes(&other, 1) == 0);
    other = shared_model, other.arena_bytes = SIZE_MAX - 100;
    CHECK(spc_session_bytes(&other, 1) == 0);
    CHECK(spc_session_open(&session, &other, &shared_weights, 1, NULL, 0) == SPC_E_MEMORY);
    other = shared_model, other.work_bytes = SIZE_MAX / 2;
    CHECK(spc_session_bytes(&other, 3) == 0);
#if defined(__x86_64__)
    const uint32_t foreign[] = {SPC_CPU_DOTPROD, SPC_CPU_I8MM};
    for (size_t i = 0; i < 2; i++) {
        other = shared_model, other.cpu = foreign[i];
        CHECK(spc_session_open(&session, &other, &shared_weights, 1, NULL, 0) == SPC_E_CPU && session == NULL);
    }
#endif
    CHECK(spc_session_open(&session, &shared_model, &shared_weights, 1, NULL, 0) == SPC_OK);
    CHECK(spc_session_run(NULL, none, out) == SPC_E_ARGUMENT);
    CHECK(spc_session_run(session, NULL, out) == SPC_E_ARGUMENT);
    CHECK(spc_session_run(session, none, out) == SPC_E_ARGUMENT);
    spc_session_close(session);
    spc_session_close(NULL);

    other = shared_model, other.run = run_failing;
    for (int32_t threads = 1; threads <= 4; threads++) {
        const void *const in[] = {shared_blob.payload};
        CHECK(spc_session_open(&session, &other, &shared_weights, threads, NULL, 0) == SPC_OK);
        CHECK(spc_session_run(session, in, out) == SPC_E_KERNEL);
        spc_session_close(session);
    }
    for (int32_t status = -1; status < 40; status++) CHECK(strlen(spc_status_text(status)) > 0);
}

/* --- several users --- */

#ifndef SPC_NO_THREADS

static void *use_own_session(void *argument)
{
    int32_t threads = *(int32_t *)argument;
    spc_session *session;
    CHECK(spc_session_open(&session, &shared_model, &shared_weights, threads, NULL, 0) == SPC_OK);
    for (int i = 0; i < 40; i++) check_run(session, (uint8_t)(i * threads));
    spc_session_close(session);
    return NULL;
}

static atomic_int busy_seen;
static spc_session *contended;

static void *use_same_session(void *argument)
{
    uint8_t x[UNITS] = {0}, y[UNITS];
    const void *const in[] = {x};
    void *const out[] = {y};
    (void)argument;
    for (int i = 0; i < 150; i++) {
        int32_t status = spc_session_run(contended, in, out);
        CHECK(status == SPC_OK || status == SPC_E_BUSY);
        if (status == SPC_E_BUSY) atomic_fetch_add(&busy_seen, 1);
    }
    return NULL;
}

static void test_many_users(void)
{
    pthread_t users[4];
    int32_t threads[4] = {1, 2, 3, 4};
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&users[i], NULL, use_own_session, &threads[i]) == 0);
    for (int i = 0; i < 4; i++) pthread_join(users[i], NULL);
    CHECK(spc_session_open(&contended, &shared_model, &shared_weights, 2, NULL, 0) == SPC_OK);
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&users[i], NULL, use_same_session, NULL) == 0);
    for (int i = 0; i < 3; i++) pthread_join(users[i], NULL);
    spc_session_close(contended);
}

#endif

/* --- the pool by itself --- */

typedef struct {
    _Atomic int32_t hits[UNITS];
    _Atomic int32_t ranges;
    _Atomic int32_t second; /* start of the lowest range but the first */
    int32_t units;
} coverage;

static int32_t mark(void *context, int32_t thread, int32_t lo, int32_t hi)
{
    coverage *seen = context;
    CHECK(thread >= 0 && lo >= 0 && lo < hi && hi <= seen->units);
    for (int32_t i = lo; i < hi; i++) atomic_fetch_add(&seen->hits[i], 1);
    atomic_fetch_add(&seen->ranges, 1);
    int32_t second = atomic_load(&seen->second);
    while (lo > 0 && lo < second && !atomic_compare_exchange_weak(&seen->second, &second, lo)) {}
    return lo == 0 ? 0 : 100 + lo;
}

static void test_ranges(void)
{
    static const int32_t sizes[] = {0, 1, 2, 3, 7, 64, UNITS};
    for (int32_t threads = 1; threads <= 6; threads++) {
        void *memory = aligned_alloc(SPC_ALIGNMENT, (spc_pool_bytes(threads) + 63u) & ~(size_t)63u);
        spc_pool *pool;
        CHECK(memory != NULL && spc_pool_start(&pool, threads, memory) == SPC_OK);
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            for (int32_t most = 0; most <= 8; most++) {
                coverage *seen = calloc(1, sizeof *seen);
                CHECK(seen != NULL);
                seen->units = seen->second = sizes[s];
                int32_t pieces = most % 5, result = spc_parallel_for(pool, mark, seen, sizes[s], most, pieces);
                int32_t used = most < 1 ? 1 : most;
                if (used > threads) used = threads;
                if (used > sizes[s]) used = sizes[s];
#ifdef SPC_NO_THREADS
                if (used > 1) used = 1;
#endif
                CHECK(seen->ranges >= used && seen->ranges <= (pieces > 1 ? pieces : 1) * used);
                CHECK(result == (seen->ranges > 1 ? 100 + seen->second : 0)); /* of the lowest range that failed */
                for (int32_t i = 0; i < sizes[s]; i++) CHECK(seen->hits[i] == 1);
                free(seen);
            }
        }
        spc_pool_stop(pool);
        free(memory);
    }
}

#ifndef SPC_NO_THREADS

static int32_t add_up(void *context, int32_t thread, int32_t lo, int32_t hi)
{
    (void)thread;
    int32_t *values = context;
    for (int32_t i = lo; i < hi; i++) values[i]++; /* not atomic: units are nobody else's */
    return 0;
}

/* Many short jobs, far more threads than cores: every unit of every job is computed once. */
static void test_crowded(void)
{
    enum { CROWD = 24, JOBS = 400 };
    void *memory = aligned_alloc(SPC_ALIGNMENT, (spc_pool_bytes(CROWD) + 63u) & ~(size_t)63u);
    spc_pool *pool;
    CHECK(memory != NULL && spc_pool_start(&pool, CROWD, memory) == SPC_OK);
    int32_t values[UNITS] = {0}, wanted[UNITS] = {0};
    for (int32_t job = 0; job < JOBS; job++) {
        int32_t units = 1 + job * 7 % UNITS;
        CHECK(spc_parallel_for(pool, add_up, values, units, 1 + job % CROWD, 4) == 0);
        for (int32_t i = 0; i < units; i++) wanted[i]++;
        for (int32_t i = 0; i < UNITS; i++) CHECK(values[i] == wanted[i]);
    }
    spc_pool_stop(pool);
    free(memory);
}

#endif

static void test_fork(void)
{
#if !defined(TEST_TSAN) && !defined(SPC_NO_THREADS)
    spc_session *session;
    CHECK(spc_session_open(&session, &shared_model, &shared_weights, 4, NULL, 0) == SPC_OK);
    check_run(session, 5);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) { /* the workers stayed in the parent: the first run starts new ones */
        check_run(session, 6);
        spc_session_close(session);
        _exit(0);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    child = fork();
    if (child == 0) { /* closing without a run must not wait for the parent's threads */
        spc_session_close(session);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    check_run(session, 7);
    spc_session_close(session);
#endif
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    make_blob(&shared_blob);
    shared_model = make_model();
    CHECK(spc_weights_from_memory(&shared_weights, &shared_model, &shared_blob, BLOB_BYTES) == SPC_OK);
    test_blob_validation();
    test_blob_file(argv[1]);
    test_ranges();
#ifndef SPC_NO_THREADS
    test_crowded();
#endif
    test_sessions();
    test_memory_of_caller();
    test_arguments();
#ifndef SPC_NO_THREADS
    test_many_users();
#endif
    test_fork();
    CHECK(spc_cpu_count() >= 1);
    printf("ok\n");
    return 0;
}
