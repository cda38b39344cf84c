/* Times ggml_mul_mat of one weight type: `layers` products y[m, n] = x[m, k] . W[n, k]^T, each with weights and inputs of its own.
 *
 *     ggml_bench TYPE REPACKED N K M LAYERS THREADS
 *
 * Prints "ready BYTES" (of one layer's weights), or "cannot REASON"; then for every line "COUNT" on standard input a line with
 * the nanoseconds of COUNT runs. Quantising the activations is part of ggml_mul_mat and so of the time.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

static const enum ggml_type TYPES[] = {
    GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q2_K, GGML_TYPE_IQ2_XXS, GGML_TYPE_TQ2_0,
};

/* Rows that are quantised; the rest repeats them, because some types take seconds to quantise a matrix. */
#define DISTINCT_ROWS 64

static int cannot(const char *reason) {
    printf("cannot %s\n", reason);
    return 0;
}

static float random_normal(uint64_t *state) { /* sum of four uniform numbers: near enough to normal */
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) / (1 << 24) - 0.5f;
    }
    return sum;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The buffer type that lays weights out anew for this machine, NULL if there is none. */
static ggml_backend_buffer_type_t repacked_type(void) {
    ggml_backend_reg_t reg = ggml_backend_cpu_reg();
    ggml_backend_dev_get_extra_bufts_t extra =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts");
    if (extra == NULL) return NULL;
    for (ggml_backend_buffer_type_t *type = extra(ggml_backend_reg_dev_get(reg, 0)); type && *type; type++) {
        if (strstr(ggml_backend_buft_name(*type), "REPACK")) return *type;
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 8) return fprintf(stderr, "usage: ggml_bench TYPE REPACKED N K M LAYERS THREADS\n"), 2;
    enum ggml_type type = GGML_TYPE_COUNT;
    for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++) {
        if (strcmp(ggml_type_name(TYPES[i]), argv[1]) == 0) type = TYPES[i];
    }
    const int repacked = atoi(argv[2]);
    const int64_t n = atoll(argv[3]), k = atoll(argv[4]), m = atoll(argv[5]);
    const int layers = atoi(argv[6]), threads = atoi(argv[7]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (type == GGML_TYPE_COUNT) return cannot("there is no such type");
    if (k % ggml_blck_size(type)) {
        char text[80];
        snprintf(text, sizeof text, "K = %lld is not a multiple of %lld", (long long)k, (long long)ggml_blck_size(type));
        return cannot(text);
    }

    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, threads);
    /* a pool that spins between products, as a decoding loop keeps it */
    struct ggml_threadpool_params pool = ggml_threadpool_params_default(threads);
    ggml_backend_cpu_set_threadpool(backend, ggml_threadpool_new(&pool));

    struct ggml_init_params small = {.mem_size = ggml_tensor_overhead() * (size_t)(layers + 1), .no_alloc = true};
    struct ggml_context *weights = ggml_init(small);
    struct ggml_tensor **w = malloc(sizeof *w * (size_t)layers);
    for (int i = 0; i < layers; i++) w[i] = ggml_new_tensor_2d(weights, type, k, n);
    ggml_backend_buffer_type_t place = repacked ? repacked_type() : ggml_backend_cpu_buffer_type();
    if (place == NULL) return cannot("this build has no repacked buffer type");
    if (ggml_backend_alloc_ctx_tensors_from_buft(weights, place) == NULL) return cannot("not enough memory");
    if (repacked && w[0]->extra == NULL) return cannot("the type has no repacked form on this machine");

    const int64_t distinct = n < DISTINCT_ROWS ? n : DISTINCT_ROWS;
    const size_t row = ggml_row_size(type, k);
    float *values = malloc(sizeof(float) * (size_t)(distinct * k)), *importance = malloc(sizeof(float) * (size_t)k);
    uint8_t *codes = malloc(row * (size_t)n);
    uint64_t state = 1;
    for (int64_t i = 0; i < k; i++) importance[i] = 1;
    for (int64_t i = 0; i < distinct * k; i++) values[i] = random_normal(&state);
    ggml_quantize_chunk(type, values, codes, 0, distinct, k, importance);
    for (int64_t i = distinct; i < n; i++) memcpy(codes + row * (size_t)i, codes + row * (size_t)(i % distinct), row);
    for (int i = 0; i < layers; i++) ggml_backend_tensor_set(w[i], codes, 0, row * (size_t)n);

    struct ggml_init_params large = {
        .mem_size = ggml_tensor_overhead() * (size_t)(2 * layers + 1) + ggml_graph_overhead_custom((size_t)(2 * layers), false),
        .no_alloc = true,
    };
    struct ggml_context *work = ggml_init(large);
    struct ggml_cgraph *graph = ggml_new_graph_custom(work, (size_t)(2 * layers), false);
    struct ggml_tensor **x = malloc(sizeof *x * (size_t)layers);
    for (int i = 0; i < layers; i++) {
        x[i] = ggml_new_tensor_2d(work, GGML_TYPE_F32, k, m);
        ggml_build_forward_expand(graph, ggml_mul_mat(work, w[i], x[i]));
    }
    if (ggml_backend_alloc_ctx_tensors(work, backend) == NULL) return cannot("not enough memory");
    float *input = malloc(sizeof(float) * (size_t)(m * k));
    for (int64_t i = 0; i < m * k; i++) input[i] = random_normal(&state);
    for (int i = 0; i < layers; i++) ggml_backend_tensor_set(x[i], input, 0, sizeof(float) * (size_t)(m * k));

    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) return cannot("the product failed");
    printf("ready %zu\n", row * (size_t)n);
    for (int count; scanf("%d", &count) == 1;) {
        for (int i = 0; i < count; i++) {
            const int64_t start = now_ns();
            ggml_backend_graph_compute(backend, graph);
            printf("%lld%c", (long long)(now_ns() - start), i + 1 < count ? ' ' : '\n');
        }
    }
    return 0;
}
