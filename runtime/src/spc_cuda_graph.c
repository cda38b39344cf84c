/* Runs the steps: once as they are, from then on as a graph that is captured once and replayed; or one by one with the time of each. */
#include "spc_cuda_session.h"

#include <string.h>

enum { CAPTURE_THREAD_LOCAL = 1 };

/* Wait for the stream; SPC_E_KERNEL when a kernel noted an error (an index out of range, say). */
static int32_t wait(struct spc_device_session *s)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    int32_t status = spc_cuda_check(d, d->stream_wait(s->stream), SPC_E_CUDA_LAUNCH, "a kernel failed");
    for (int32_t i = 0; s->codes != NULL && i < s->loaded->status_count && status == SPC_OK; i++)
        if (s->codes[i] != 0) status = SPC_E_KERNEL;
    return status;
}

static int32_t capture(struct spc_device_session *s, void **pointers, void **made)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    void *graph = NULL;
    int32_t status = spc_cuda_check(d, d->capture_begin(s->stream, CAPTURE_THREAD_LOCAL), SPC_E_CUDA_LAUNCH, "capture of the steps");
    if (status != SPC_OK) return status;
    status = spc_cuda_start(s, pointers);
    int error = d->capture_end(s->stream, &graph); /* also after a failure: it ends the capture */
    if (status == SPC_OK) status = spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, "capture of the steps");
    if (status == SPC_OK) status = spc_cuda_check(d, d->graph_instantiate(made, graph, 0), SPC_E_CUDA_LAUNCH, "the graph of the steps");
    if (graph != NULL) d->graph_destroy(graph);
    return status;
}

/* The slot of these pointers, else the one used longest ago, which then is theirs. */
static spc_cuda_slot *find_slot(struct spc_device_session *s, void **pointers)
{
    size_t count = spc_cuda_pointer_count(s->loaded->model), oldest = 0;
    for (size_t i = 0; i < SPC_CUDA_GRAPHS; i++) {
        const spc_cuda_slot *g = &s->graphs[i];
        if (g->used > 0 && memcmp(s->pointers + i * count, pointers, count * sizeof *pointers) == 0) return &s->graphs[i];
        if (g->used < s->graphs[oldest].used) oldest = i;
    }
    spc_cuda_slot *g = &s->graphs[oldest];
    if (g->graph != NULL) s->loaded->driver.graph_exec_destroy(g->graph);
    *g = (spc_cuda_slot){NULL, 0};
    memcpy(s->pointers + oldest * count, pointers, count * sizeof *pointers);
    return g;
}

int32_t spc_cuda_replay(struct spc_device_session *s, void **pointers)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    spc_cuda_slot *slot = find_slot(s, pointers);
    /* Pointers are worth a graph when they come again: making one takes as long as a few runs without. And the driver may load kernels
     * when they first run, which it must not do inside a capture. */
    int again = slot->used > 0;
    int32_t status = SPC_OK;
    slot->used = s->runs;
    if (slot->graph == NULL && again) status = capture(s, pointers, &slot->graph);
    if (status != SPC_OK) {
        slot->graph = NULL;
        return status;
    }
    if (slot->graph != NULL)
        status = spc_cuda_check(d, d->graph_launch(slot->graph, s->stream), SPC_E_CUDA_LAUNCH, "the graph of the steps does not start");
    else
        status = spc_cuda_start(s, pointers);
    int32_t waited = wait(s); /* also after a failure: what was started still uses the pointers */
    return status != SPC_OK ? status : waited;
}

int32_t spc_cuda_run_timed(struct spc_device_session *s, void **pointers, uint64_t *ns)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    int32_t steps = s->loaded->model->step_count;
    int error = 0;
    for (int32_t i = 0; i <= steps && error == 0; i++)
        if (s->events[i] == NULL) error = d->event_create(&s->events[i], 0);
    int32_t status = spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, "events for the times of the steps");
    if (status != SPC_OK) return status;
    s->timing = 1;
    status = spc_cuda_start(s, pointers);
    s->timing = 0;
    int32_t waited = wait(s);
    if (status == SPC_OK) status = waited;
    for (int32_t i = 0; i < steps && status == SPC_OK; i++) {
        float milliseconds = 0;
        error = d->event_elapsed(&milliseconds, s->events[i], s->events[i + 1]);
        status = spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, "the time of a step");
        if (status == SPC_OK) ns[i] += (uint64_t)((double)milliseconds * 1e6);
    }
    return status;
}
