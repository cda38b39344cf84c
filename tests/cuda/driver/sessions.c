/* Threads that open, run, time and close sessions of one model at once, on one mapping of its weights: compiled with -fsanitize=thread. */
#include "spc_runtime.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 4, ROUNDS = 6 };

static spc_weights weights;
static spc_session *shared;
static int32_t first_error;

static void *use(void *unused)
{
    const spc_model *model = spc_bundle_model();
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        spc_session *own = NULL;
        void *in[8], *out[8];
        uint64_t *ns = calloc((size_t)model->step_count + 1, sizeof *ns);
        for (int32_t i = 0; i < model->input_count; i++) in[i] = calloc(1, model->inputs[i].bytes);
        for (int32_t i = 0; i < model->output_count; i++) out[i] = malloc(model->outputs[i].bytes);
        int32_t status = spc_session_open(&own, model, &weights, 1, NULL, 0);
        if (status == SPC_OK && round % 2) spc_session_profile(own, ns);
        if (status == SPC_OK) status = spc_session_run(own, (const void *const *)in, out);
        if (status == SPC_OK) status = spc_session_run(shared, (const void *const *)in, out);
        if (status == SPC_E_BUSY) status = SPC_OK; /* another thread runs it */
        if (status != SPC_OK) {
            fprintf(stderr, "%s\n", spc_explain(model, status));
            __atomic_store_n(&first_error, status, __ATOMIC_RELAXED);
        }
        spc_session_close(own);
        for (int32_t i = 0; i < model->input_count; i++) free(in[i]);
        for (int32_t i = 0; i < model->output_count; i++) free(out[i]);
        free(ns);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    if (argc != 2 || spc_weights_open(&weights, spc_bundle_model(), argv[1]) != SPC_OK) return 2;
    if (spc_session_open(&shared, spc_bundle_model(), &weights, 1, NULL, 0) != SPC_OK) return 2;
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, use, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    spc_session_close(shared);
    spc_weights_close(&weights);
    puts("ok");
    return first_error;
}
