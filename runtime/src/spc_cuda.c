/* Sessions on a GPU: arena, staging, and what the rest of the runtime calls. */
#include "spc_cuda_session.h"

#include <string.h>

enum { NON_BLOCKING = 1 }; /* CU_STREAM_NON_BLOCKING */
enum { POINTER_ALIGNMENT = 16 };

static const spc_tensor_info *info_of(const spc_model *m, size_t i)
{
    return i < (size_t)m->input_count ? &m->inputs[i] : &m->outputs[i - (size_t)m->input_count];
}

/* --- a run --- */

static int32_t make_staging(struct spc_device_session *s)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    const spc_model *m = s->loaded->model;
    size_t bytes = spc_cuda_staged_offset(m, spc_cuda_pointer_count(m));
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
    for (size_t i = 0; i < spc_cuda_pointer_count(m); i++) s->staged_pointers[i] = spc_cuda_address(s->staged + spc_cuda_staged_offset(m, i));
    return SPC_OK;
}

static int32_t run_inside(struct spc_device_session *s, const void *const *inputs, void *const *outputs, int on_device, uint64_t *ns)
{
    const spc_model *m = s->loaded->model;
    size_t count = spc_cuda_pointer_count(m), ins = (size_t)m->input_count;
    void **pointers = s->staged_pointers;
    int32_t status = SPC_OK;
    s->runs++;
    if (on_device) {
        pointers = s->pointers + SPC_CUDA_GRAPHS * count; /* behind those of the slots */
        for (size_t i = 0; i < count; i++) {
            const void *p = i < ins ? inputs[i] : outputs[i - ins];
            if ((uintptr_t)p % POINTER_ALIGNMENT != 0)
                return spc_cuda_fail(SPC_E_CUDA_LAUNCH, "'%s' is not 16-byte aligned: give a copy", info_of(m, i)->name);
            memcpy(&pointers[i], &p, sizeof p);
        }
    } else {
        status = make_staging(s);
        for (size_t i = 0; i < ins && status == SPC_OK; i++)
            if (m->inputs[i].bytes > 0) memcpy(s->pinned + spc_cuda_staged_offset(m, i), inputs[i], m->inputs[i].bytes);
    }
    if (status == SPC_OK) status = ns != NULL ? spc_cuda_run_timed(s, pointers, ns) : spc_cuda_replay(s, pointers);
    for (size_t i = ins; i < count && status == SPC_OK && !on_device; i++)
        if (info_of(m, i)->bytes > 0) memcpy(outputs[i - ins], s->pinned + spc_cuda_staged_offset(m, i), info_of(m, i)->bytes);
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
    for (size_t i = 0; i < SPC_CUDA_GRAPHS; i++)
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
    size_t pointers = spc_cuda_pointer_count(model), events = (size_t)model->step_count + 1;
    size_t bytes = sizeof **session + ((SPC_CUDA_GRAPHS + 2) * pointers + events) * sizeof(void *);
    *session = NULL;
    struct spc_device_session *s = spc_take_memory(bytes);
    if (s == NULL) return SPC_E_MEMORY;
    memset(s, 0, bytes);
    s->pointers = (void **)(s + 1);
    s->staged_pointers = s->pointers + (SPC_CUDA_GRAPHS + 1) * pointers;
    s->events = s->staged_pointers + pointers;
    int32_t status = spc_cuda_load(&s->loaded, model, weights, spc_cuda_prepare);
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
    return error == 0 ? spc_cuda_address(memory) : NULL;
}

static void device_give(struct spc_device_session *s, void *memory)
{
    if (memory == NULL || spc_cuda_enter(s->loaded) != SPC_OK) return;
    s->loaded->driver.memory_give((spc_device_ptr)(uintptr_t)memory);
    spc_cuda_leave(s->loaded);
}

static int32_t device_wait(struct spc_device_session *s)
{
    int32_t status = spc_cuda_enter(s->loaded);
    if (status != SPC_OK) return status;
    status = spc_cuda_check(&s->loaded->driver, s->loaded->driver.context_wait(), SPC_E_CUDA_LAUNCH, "work of others failed");
    spc_cuda_leave(s->loaded);
    return status;
}

const spc_device spc_cuda_device = {
    .open = device_open,
    .run = device_run,
    .close = device_close,
    .stream = device_stream,
    .take = device_take,
    .give = device_give,
    .wait = device_wait,
    .explain = spc_cuda_explain,
};
