/* Sessions: memory, run, profile; and the texts of the status codes. */
#include "spc_internal.h"

#include <string.h>
#ifndef SPC_NO_THREADS
#include <stdatomic.h>
#endif

struct spc_session {
    const spc_model *model;
    spc_weights weights;
    uint8_t *arena;
    uint8_t *work; /* work_stride bytes for each thread */
    size_t work_stride;
    spc_pool *pool; /* NULL where a device runs the kernels */
    void *pool_memory;
    struct spc_device_session *device;
    uint64_t *profile;
    void *owned; /* the whole block, when it came from malloc */
    int32_t threads;
    int owns_weights;
#ifndef SPC_NO_THREADS
    atomic_flag busy;
#endif
};

const char *spc_status_text(int32_t status)
{
    switch (status) {
    case SPC_OK: return "success";
    case SPC_E_ARGUMENT: return "bad argument: a null pointer, or a number of threads outside 1..256";
    case SPC_E_ABI: return "the generated model and the runtime have different versions: compile the model again";
    case SPC_E_MEMORY: return "out of memory, or the memory given is smaller than spc_session_bytes()";
    case SPC_E_THREADS: return "a thread could not be started";
    case SPC_E_BUSY: return "the session is running on another thread: use one session a thread";
    case SPC_E_KERNEL: return "a kernel reported a failure";
    case SPC_E_CPU: return "this processor lacks instructions the model was compiled for: compile it for another target";
    case SPC_E_FILE_OPEN: return "the weights file cannot be opened";
    case SPC_E_FILE_READ: return "the weights file cannot be mapped";
    case SPC_E_BLOB_TRUNCATED: return "the weights are truncated";
    case SPC_E_BLOB_MAGIC: return "not a sparsec weights file";
    case SPC_E_BLOB_ENDIAN: return "the weights have the byte order of another machine";
    case SPC_E_BLOB_VERSION: return "the weights have another format version: compile the model again";
    case SPC_E_BLOB_HEADER: return "the header of the weights is damaged";
    case SPC_E_BLOB_MODEL: return "the weights belong to another model";
    case SPC_E_BLOB_SIZE: return "the weights have another size than the model needs";
    case SPC_E_BLOB_CHECKSUM: return "the weights are damaged: their checksum does not match";
    default: return "unknown status";
    }
}

static size_t align_up(size_t n) { return (n + (SPC_ALIGNMENT - 1u)) & ~(size_t)(SPC_ALIGNMENT - 1u); }

/* *total += align_up(n) unless that overflows. */
static int add(size_t *total, size_t n)
{
    if (n > SIZE_MAX - SPC_ALIGNMENT || align_up(n) > SIZE_MAX - *total) return 0;
    *total += align_up(n);
    return 1;
}

size_t spc_session_bytes(const spc_model *model, int32_t threads)
{
    size_t total = SPC_ALIGNMENT; /* to align the block itself */
    if (model == NULL || model->abi != SPC_ABI_VERSION || threads < 1 || threads > SPC_MAX_THREADS) return 0;
    if (!add(&total, sizeof(spc_session))) return 0;
    if (model->device != NULL) return total;
    if (!add(&total, spc_pool_bytes(threads)) || !add(&total, model->arena_bytes)) return 0;
    for (int32_t t = 0; t < threads; t++)
        if (!add(&total, model->work_bytes)) return 0;
    return total;
}

int32_t spc_session_open(spc_session **session, const spc_model *model, const spc_weights *weights, int32_t threads,
                         void *memory, size_t memory_bytes)
{
    if (session == NULL) return SPC_E_ARGUMENT;
    *session = NULL;
    if (model == NULL || weights == NULL || weights->payload == NULL) return SPC_E_ARGUMENT;
    if (model->abi != SPC_ABI_VERSION) return SPC_E_ABI;
    if (threads < 1 || threads > SPC_MAX_THREADS) return SPC_E_ARGUMENT;
    if (weights->model_id != model->id) return SPC_E_BLOB_MODEL;
    if (weights->payload_bytes != model->weights_bytes) return SPC_E_BLOB_SIZE;
    int32_t status = spc_cpu_check(model->cpu);
    if (status != SPC_OK) return status;

    size_t needed = spc_session_bytes(model, threads);
    void *owned = NULL;
    if (needed == 0) return SPC_E_MEMORY;
    if (memory == NULL) {
#ifdef SPC_NO_HOST
        return SPC_E_MEMORY;
#else
        memory = owned = spc_take_memory(needed);
        if (memory == NULL) return SPC_E_MEMORY;
#endif
    } else if (memory_bytes < needed) {
        return SPC_E_MEMORY;
    }

    uint8_t *at = memory;
    at += (SPC_ALIGNMENT - (uintptr_t)at % SPC_ALIGNMENT) % SPC_ALIGNMENT;
    spc_session *s = (void *)at;
    memset(s, 0, sizeof *s);
    at += align_up(sizeof *s);
    if (model->device == NULL) {
        s->pool_memory = at;
        at += align_up(spc_pool_bytes(threads));
        s->arena = at;
        at += align_up(model->arena_bytes);
        s->work = at;
        s->work_stride = align_up(model->work_bytes);
    }
    s->model = model;
    s->weights = *weights;
    s->threads = threads;
    s->owned = owned;
#ifndef SPC_NO_THREADS
    atomic_flag_clear(&s->busy);
#endif
    status = model->device != NULL ? model->device->open(&s->device, model, weights)
                                   : spc_pool_start(&s->pool, threads, s->pool_memory);
    if (status != SPC_OK) {
#ifndef SPC_NO_HOST
        spc_give_memory(owned);
#endif
        return status;
    }
    *session = s;
    return SPC_OK;
}

void spc_session_own_weights(spc_session *session) { session->owns_weights = 1; }

void spc_session_close(spc_session *session)
{
    if (session == NULL) return;
    if (session->device != NULL) session->model->device->close(session->device);
    else spc_pool_stop(session->pool);
#ifndef SPC_NO_HOST
    if (session->owns_weights) spc_unmap_file(session->weights.mapping, session->weights.mapping_bytes);
    spc_give_memory(session->owned);
#endif
}

int32_t spc_session_profile(spc_session *session, uint64_t *ns)
{
    if (session == NULL) return SPC_E_ARGUMENT;
    session->profile = ns;
    return SPC_OK;
}

void *spc_session_stream(const spc_session *session)
{
    return session == NULL || session->device == NULL ? NULL : session->model->device->stream(session->device);
}

void *spc_device_take(spc_session *session, size_t bytes)
{
    return session == NULL || session->device == NULL ? NULL : session->model->device->take(session->device, bytes);
}

void spc_device_give(spc_session *session, void *memory)
{
    if (session != NULL && session->device != NULL) session->model->device->give(session->device, memory);
}

int32_t spc_device_wait(spc_session *session)
{
    return session == NULL || session->device == NULL ? SPC_E_ARGUMENT : session->model->device->wait(session->device);
}

static int32_t run_model(spc_session *s, const void *const *inputs, void *const *outputs, int on_device)
{
    if (s->device != NULL) return s->model->device->run(s->device, inputs, outputs, on_device, s->profile);
    spc_run run = {s->weights.payload, s->arena, inputs, outputs, s, NULL};
    if (!spc_pool_alive(s->pool)) {
        int32_t status = spc_pool_start(&s->pool, s->threads, s->pool_memory);
        if (status != SPC_OK) return status;
    }
    return s->model->run(&run) == 0 ? SPC_OK : SPC_E_KERNEL;
}

static int32_t check_and_run(spc_session *session, const void *const *inputs, void *const *outputs, int on_device)
{
    if (session == NULL || (on_device && session->device == NULL)) return SPC_E_ARGUMENT;
    const spc_model *model = session->model;
    if ((inputs == NULL && model->input_count > 0) || (outputs == NULL && model->output_count > 0)) return SPC_E_ARGUMENT;
    for (int32_t i = 0; i < model->input_count; i++)
        if (inputs[i] == NULL && model->inputs[i].bytes > 0) return SPC_E_ARGUMENT;
    for (int32_t i = 0; i < model->output_count; i++)
        if (outputs[i] == NULL && model->outputs[i].bytes > 0) return SPC_E_ARGUMENT;
#ifdef SPC_NO_THREADS
    return run_model(session, inputs, outputs, on_device);
#else
    if (atomic_flag_test_and_set_explicit(&session->busy, memory_order_acquire)) return SPC_E_BUSY;
    int32_t status = run_model(session, inputs, outputs, on_device);
    atomic_flag_clear_explicit(&session->busy, memory_order_release);
    return status;
#endif
}

int32_t spc_session_run(spc_session *session, const void *const *inputs, void *const *outputs)
{
    return check_and_run(session, inputs, outputs, 0);
}

int32_t spc_session_run_device(spc_session *session, const void *const *inputs, void *const *outputs)
{
    return check_and_run(session, inputs, outputs, 1);
}

typedef struct {
    const spc_run *run;
    spc_step_fn step;
} step_call;

static int32_t run_range(void *context, int32_t thread, int32_t lo, int32_t hi)
{
    const step_call *call = context;
    const spc_session *s = call->run->session;
    return call->step(call->run, s->work + (size_t)thread * s->work_stride, lo, hi);
}

int32_t spc_step(const spc_run *run, int32_t index, spc_step_fn step, int32_t units, int32_t threads, int32_t pieces)
{
    spc_session *s = run->session;
    step_call call = {run, step};
#ifndef SPC_NO_HOST
    if (s->profile != NULL) {
        uint64_t start = spc_now_ns();
        int32_t result = spc_parallel_for(s->pool, run_range, &call, units, threads, pieces);
        s->profile[index] += spc_now_ns() - start;
        return result;
    }
#else
    (void)index;
#endif
    return spc_parallel_for(s->pool, run_range, &call, units, threads, pieces);
}
