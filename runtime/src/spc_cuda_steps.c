/* Starts the steps of a model: kernels with their arguments, copies of inputs and outputs. */
#include "spc_cuda_session.h"

enum { DEVICE_ALIGNMENT = 256, MAX_ARGUMENTS = 256 };

size_t spc_cuda_pointer_count(const spc_model *m) { return (size_t)m->input_count + (size_t)m->output_count; }

size_t spc_cuda_staged_offset(const spc_model *m, size_t i)
{
    size_t offset = 0, ins = (size_t)m->input_count;
    for (size_t before = 0; before < i; before++) {
        size_t bytes = before < ins ? m->inputs[before].bytes : m->outputs[before - ins].bytes;
        offset += (bytes + (DEVICE_ALIGNMENT - 1u)) & ~(size_t)(DEVICE_ALIGNMENT - 1u);
    }
    return offset;
}

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

int32_t spc_cuda_prepare(spc_cuda_loaded *loaded)
{
    struct spc_device_session s = {.loaded = loaded, .preparing = 1};
    size_t count = spc_cuda_pointer_count(loaded->model) + 1;
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
    spc_run run = {spc_cuda_address(s->loaded->weights), spc_cuda_address(s->arena), (const void *const *)pointers, pointers + m->input_count, NULL, s};
    return m->run(&run);
}

int32_t spc_cuda_start(struct spc_device_session *s, void **pointers)
{
    const spc_cuda_driver *d = &s->loaded->driver;
    const spc_model *m = s->loaded->model;
    int staged = pointers == s->staged_pointers;
    size_t inputs = spc_cuda_staged_offset(m, (size_t)m->input_count), all = spc_cuda_staged_offset(m, spc_cuda_pointer_count(m));
    int error = 0;
    if (staged && inputs > 0) error = d->upload_async(s->staged, s->pinned, inputs, s->stream);
    if (error == 0 && s->timing) error = d->event_record(s->events[0], s->stream);
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
