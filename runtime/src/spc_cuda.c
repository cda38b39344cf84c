/* Sessions on a GPU: arena, staging, and the steps as a graph that is captured once and replayed. */
#include "spc_cuda_load.h"

#include <string.h>

enum { GRAPHS = 4 };      /* kept: one for each set of the caller's pointers, the one used longest ago goes */
enum { NON_BLOCKING = 1 }; /* CU_STREAM_NON_BLOCKING */
enum { CAPTURE_THREAD_LOCAL = 1 };
enum { DEVICE_ALIGNMENT = 256, POINTER_ALIGNMENT = 16, MAX_ARGUMENTS = 64 };

typedef struct {
    void *graph; /* CUgraphExec; NULL: free */
    uint64_t used;
} graph_slot;

struct spc_device_session {
    spc_cuda_loaded *loaded;
    void *stream;
    spc_device_ptr arena;
    spc_device_ptr staged; /* inputs and outputs of callers whose arrays lie in the host's memory */
    uint8_t *pinned;       /* the host's side of them, at the same offsets */
    int32_t *codes;        /* error codes of the last run, in pinned memory; NULL where no kernel can fail */
    graph_slot graphs[GRAPHS];
    void **pointers;       /* of each slot: inputs, then outputs */
    void **staged_pointers;
    void **events;         /* step_count + 1 of them, made when the first profile is taken */
    uint64_t runs;
    int preparing; /* steps load their kernels and do not start them */
    int timing;    /* an event follows each step */
};

static size_t pointer_count(const spc_model *m) { return (size_t)m->input_count + (size_t)m->output_count; }

static const spc_tensor_info *info_of(const spc_model *m, size_t i)
{
    return i < (size_t)m->input_count ? &m->inputs[i] : &m->outputs[i - (size_t)m->input_count];
}

static size_t device_align(size_t n) { return (n + (DEVICE_ALIGNMENT - 1u)) & ~(size_t)(DEVICE_ALIGNMENT - 1u); }

/* Offset of input or output `i` in the staging memory; of one past the last: the size of all. */
static size_t staged_offset(const spc_model *m, size_t i)
{
    size_t offset = 0;
    for (size_t before = 0; before < i; before++) offset += device_align(info_of(m, before)->bytes);
    return offset;
}

static void *address(spc_device_ptr p) { return (void *)(uintptr_t)p; }

/* --- steps --- */

int32_t spc_cuda_status(const spc_run *run, size_t offset, int32_t count)
{
    struct spc_device_session *s = run->device;
    const spc_cuda_driver *d = &s->loaded->driver;
    if (s->preparing) {
        s->loaded->status_offset = offset;
        s->loaded->status_count = count;
        return SPC_OK;
    }
    int error = d->clear_async(s->arena + offset, 0, (size_t)count * sizeof(int32_t), s->stream);
    return spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, "the error codes cannot be cleared");
}

int32_t spc_cuda_step(const spc_run *run, int32_t index, const spc_cuda_kernel *kernel, uint32_t count,
                      const void *const *arguments)
{
    struct spc_device_session *s = run->device;
    const spc_cuda_driver *d = &s->loaded->driver;
    spc_device_ptr values[MAX_ARGUMENTS];
    void *places[MAX_ARGUMENTS];
    if (s->preparing) return spc_cuda_load_kernel(s->loaded, index, kernel);
    if (count != kernel->arg_count || count > MAX_ARGUMENTS) return SPC_E_ABI;
    for (uint32_t i = 0; i < count; i++) {
        values[i] = (spc_device_ptr)(uintptr_t)arguments[i];
        places[i] = &values[i];
    }
    int error = d->launch(s->loaded->functions[index], kernel->grid[0], kernel->grid[1], kernel->grid[2], kernel->block[0],
                          kernel->block[1], kernel->block[2], kernel->shared_bytes, s->stream, places, NULL);
    if (error == 0 && s->timing) error = d->event_record(s->events[index + 1], s->stream);
    return spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, s->loaded->model->steps[index].node);
}

static int32_t prepare(spc_cuda_loaded *loaded)
{
    struct spc_device_session s = {.loaded = loaded, .preparing = 1};
    size_t count = pointer_count(loaded->model) + 1;
    const void **nowhere = spc_take_memory(count * sizeof *nowhere); /* steps add offsets to what is in it */
    if (nowhere == NULL) return SPC_E_MEMORY;
    for (size_t i = 0; i < count; i++) nowhere[i] = loaded;
    spc_run run = {(const uint8_t *)loaded, (uint8_t *)loaded, nowhere, (void *const *)nowhere, NULL, &s};
    int32_t status = loaded->model->run(&run);
    spc_give_memory(nowhere);
    return status;
}

/* Put all steps into the stream. */
static int32_t start_steps(struct spc_device_session *s, void **pointers)
{
    const spc_model *m = s->loaded->model;
    spc_run run = {address(s->loaded->weights), address(s->arena), (const void *const *)pointers, pointers + m->input_count, NULL, s};
    return m->run(&run);
}

/* The same between the copies of staged inputs and outputs. */
static int32_t start_all(struct spc_device_session *s, void **pointers)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    const spc_model *m = s->loaded->model;
    int staged = pointers == s->staged_pointers;
    size_t inputs = staged_offset(m, (size_t)m->input_count), all = staged_offset(m, pointer_count(m));
    int error = 0;
    if (staged && inputs > 0) error = d->upload_async(s->staged, s->pinned, inputs, s->stream);
    int32_t status = spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, "the inputs cannot be uploaded");
    if (status == SPC_OK) status = start_steps(s, pointers);
    if (status == SPC_OK && s->codes != NULL) {
        size_t bytes = (size_t)s->loaded->status_count * sizeof(int32_t);
        error = d->download_async(s->codes, s->arena + s->loaded->status_offset, bytes, s->stream);
        status = spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, "the error codes cannot be downloaded");
    }
    if (status != SPC_OK || !staged || all == inputs) return status;
    error = d->download_async(s->pinned + inputs, s->staged + inputs, all - inputs, s->stream);
    return spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, "the outputs cannot be downloaded");
}

/* --- graphs --- */

static int32_t capture(struct spc_device_session *s, void **pointers, void **made)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    void *graph = NULL;
    int32_t status = spc_cuda_check(d, d->capture_begin(s->stream, CAPTURE_THREAD_LOCAL), SPC_E_CUDA_LAUNCH, "capture of the steps");
    if (status != SPC_OK) return status;
    status = start_all(s, pointers);
    int error = d->capture_end(s->stream, &graph); /* also after a failure: it ends the capture */
    if (status == SPC_OK) status = spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, "capture of the steps");
    if (status == SPC_OK) status = spc_cuda_check(d, d->graph_instantiate(made, graph, 0), SPC_E_CUDA_LAUNCH, "the graph of the steps");
    if (graph != NULL) d->graph_destroy(graph);
    return status;
}

/* The graph of a run with these pointers: the one of an earlier run where they are the same. */
static int32_t find_graph(struct spc_device_session *s, void **pointers, void **graph)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    size_t count = pointer_count(s->loaded->model);
    size_t slot = 0;
    for (size_t i = 0; i < GRAPHS; i++) {
        graph_slot *g = &s->graphs[i];
        if (g->graph != NULL && memcmp(s->pointers + i * count, pointers, count * sizeof *pointers) == 0) {
            g->used = s->runs;
            *graph = g->graph;
            return SPC_OK;
        }
        if (g->used < s->graphs[slot].used) slot = i;
    }
    graph_slot *g = &s->graphs[slot];
    if (g->graph != NULL) d->graph_exec_destroy(g->graph);
    g->graph = NULL;
    int32_t status = capture(s, pointers, &g->graph);
    if (status != SPC_OK) {
        g->graph = NULL;
        g->used = 0;
        return status;
    }
    g->used = s->runs;
    memcpy(s->pointers + slot * count, pointers, count * sizeof *pointers);
    *graph = g->graph;
    return SPC_OK;
}

/* Wait for the stream; SPC_E_KERNEL when a kernel noted an error (an index out of range, say). */
static int32_t wait(struct spc_device_session *s)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    int32_t status = spc_cuda_check(d, d->stream_wait(s->stream), SPC_E_CUDA_LAUNCH, "a kernel failed");
    for (int32_t i = 0; s->codes != NULL && i < s->loaded->status_count && status == SPC_OK; i++)
        if (s->codes[i] != 0) status = SPC_E_KERNEL;
    return status;
}

static int32_t replay(struct spc_device_session *s, void **pointers)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    void *graph = NULL;
    int32_t status = find_graph(s, pointers, &graph);
    if (status == SPC_OK)
        status = spc_cuda_check(d, d->graph_launch(graph, s->stream), SPC_E_CUDA_LAUNCH, "the graph of the steps does not start");
    return status == SPC_OK ? wait(s) : status;
}

/* --- times --- */

/* Run step by step with an event after each, and add up what lies between them. */
static int32_t run_timed(struct spc_device_session *s, void **pointers, uint64_t *ns)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    int32_t steps = s->loaded->model->step_count;
    int error = 0;
    for (int32_t i = 0; i <= steps && error == 0; i++)
        if (s->events[i] == NULL) error = d->event_create(&s->events[i], 0);
    if (error == 0) error = d->event_record(s->events[0], s->stream);
    int32_t status = spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, "events for the times of the steps");
    if (status != SPC_OK) return status;
    s->timing = 1;
    status = start_all(s, pointers);
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

/* --- a run --- */

static int32_t make_staging(struct spc_device_session *s)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    const spc_model *m = s->loaded->model;
    size_t bytes = staged_offset(m, pointer_count(m));
    void *pinned = NULL;
    if (s->pinned != NULL || bytes == 0) return SPC_OK;
    if (s->staged == 0) {
        int error = d->memory_take(&s->staged, bytes);
        if (error != 0) s->staged = 0;
        int32_t status = spc_cuda_check(d, error, SPC_E_CUDA_MEMORY, "no room for inputs and outputs");
        if (status != SPC_OK) return status;
    }
    if (d->pinned_take(&pinned, bytes) != 0)
        return spc_cuda_fail(SPC_E_CUDA_MEMORY, "the machine has no %zu bytes of pinned memory for inputs and outputs", bytes);
    s->pinned = pinned;
    for (size_t i = 0; i < pointer_count(m); i++) s->staged_pointers[i] = address(s->staged + staged_offset(m, i));
    return SPC_OK;
}

static int32_t run_inside(struct spc_device_session *s, const void *const *inputs, void *const *outputs, int on_device, uint64_t *ns)
{
    const spc_model *m = s->loaded->model;
    size_t count = pointer_count(m), ins = (size_t)m->input_count;
    void **pointers = s->staged_pointers;
    int32_t status = SPC_OK;
    s->runs++;
    if (on_device) {
        pointers = s->pointers + GRAPHS * count; /* behind those of the slots */
        for (size_t i = 0; i < count; i++) {
            const void *p = i < ins ? inputs[i] : outputs[i - ins];
            if ((uintptr_t)p % POINTER_ALIGNMENT != 0)
                return spc_cuda_fail(SPC_E_CUDA_LAUNCH, "'%s' is not 16-byte aligned: give a copy", info_of(m, i)->name);
            memcpy(&pointers[i], &p, sizeof p);
        }
    } else {
        status = make_staging(s);
        for (size_t i = 0; i < ins && status == SPC_OK; i++)
            if (m->inputs[i].bytes > 0) memcpy(s->pinned + staged_offset(m, i), inputs[i], m->inputs[i].bytes);
    }
    if (status == SPC_OK) status = ns != NULL ? run_timed(s, pointers, ns) : replay(s, pointers);
    for (size_t i = ins; i < count && status == SPC_OK && !on_device; i++)
        if (info_of(m, i)->bytes > 0) memcpy(outputs[i - ins], s->pinned + staged_offset(m, i), info_of(m, i)->bytes);
    return status;
}

static int32_t device_run(struct spc_device_session *s, const void *const *inputs, void *const *outputs, int on_device, uint64_t *ns)
{
    int32_t status = spc_cuda_enter(s->loaded);
    if (status != SPC_OK) return status;
    status = run_inside(s, inputs, outputs, on_device, ns);
    spc_cuda_leave(s->loaded);
    return status;
}

/* --- opening and closing --- */

static void give_all(struct spc_device_session *s)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    if (s->stream != NULL) d->stream_wait(s->stream);
    for (size_t i = 0; i < GRAPHS; i++)
        if (s->graphs[i].graph != NULL) d->graph_exec_destroy(s->graphs[i].graph);
    for (int32_t i = 0; i <= s->loaded->model->step_count; i++)
        if (s->events[i] != NULL) d->event_destroy(s->events[i]);
    if (s->pinned != NULL) d->pinned_give(s->pinned);
    if (s->codes != NULL) d->pinned_give(s->codes);
    if (s->staged != 0) d->memory_give(s->staged);
    if (s->arena != 0) d->memory_give(s->arena);
    if (s->stream != NULL) d->stream_destroy(s->stream);
}

static void device_close(struct spc_device_session *s)
{
    if (spc_cuda_enter(s->loaded) == SPC_OK) {
        give_all(s);
        spc_cuda_leave(s->loaded);
    }
    spc_cuda_unload(s->loaded);
    spc_give_memory(s);
}

static int32_t take_all(struct spc_device_session *s)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    size_t bytes = s->loaded->model->arena_bytes;
    int error = d->stream_create(&s->stream, NON_BLOCKING);
    if (error != 0) s->stream = NULL;
    int32_t status = spc_cuda_check(d, error, SPC_E_CUDA_LAUNCH, "a stream");
    if (status != SPC_OK || bytes == 0) return status;
    error = d->memory_take(&s->arena, bytes);
    if (error != 0) s->arena = 0;
    status = spc_cuda_check(d, error, SPC_E_CUDA_MEMORY, "no room for the intermediate results");
    if (status != SPC_OK || s->loaded->status_count == 0) return status;
    void *codes = NULL;
    error = d->pinned_take(&codes, (size_t)s->loaded->status_count * sizeof(int32_t));
    if (error == 0) s->codes = codes;
    return spc_cuda_check(d, error, SPC_E_CUDA_MEMORY, "no pinned memory for error codes");
}

static int32_t device_open(struct spc_device_session **session, const spc_model *model, const spc_weights *weights)
{
    size_t pointers = pointer_count(model), events = (size_t)model->step_count + 1;
    size_t bytes = sizeof **session + ((GRAPHS + 2) * pointers + events) * sizeof(void *);
    *session = NULL;
    struct spc_device_session *s = spc_take_memory(bytes);
    if (s == NULL) return SPC_E_MEMORY;
    memset(s, 0, bytes);
    s->pointers = (void **)(s + 1);
    s->staged_pointers = s->pointers + (GRAPHS + 1) * pointers;
    s->events = s->staged_pointers + pointers;
    int32_t status = spc_cuda_load(&s->loaded, model, weights, prepare);
    if (status != SPC_OK) {
        spc_give_memory(s);
        return status;
    }
    status = spc_cuda_enter(s->loaded);
    if (status == SPC_OK) {
        status = take_all(s);
        spc_cuda_leave(s->loaded);
    }
    if (status == SPC_OK) *session = s;
    else device_close(s);
    return status;
}

static void *device_stream(const struct spc_device_session *s) { return s->stream; }

static void *device_take(struct spc_device_session *s, size_t bytes)
{
    spc_device_ptr memory = 0;
    if (spc_cuda_enter(s->loaded) != SPC_OK) return NULL;
    int error = s->loaded->driver.memory_take(&memory, bytes);
    spc_cuda_leave(s->loaded);
    return error == 0 ? address(memory) : NULL;
}

static void device_give(struct spc_device_session *s, void *memory)
{
    if (memory == NULL || spc_cuda_enter(s->loaded) != SPC_OK) return;
    s->loaded->driver.memory_give((spc_device_ptr)(uintptr_t)memory);
    spc_cuda_leave(s->loaded);
}

const spc_device spc_cuda_device = {
    .open = device_open,
    .run = device_run,
    .close = device_close,
    .stream = device_stream,
    .take = device_take,
    .give = device_give,
    .explain = spc_cuda_explain,
};
