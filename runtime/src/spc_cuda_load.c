/* Weights and kernels of a model on the GPU: uploaded and loaded once, whoever uses them. */
#include "spc_cuda_load.h"

#include <pthread.h>
#include <string.h>

enum { /* CUdevice_attribute, CUfunction_attribute */
    CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, SHARED_OF_A_BLOCK = 97, DYNAMIC_SHARED = 8
};
enum { SHARED_WITHOUT_ASKING = 48 * 1024 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static spc_cuda_loaded *all;

int32_t spc_cuda_enter(const spc_cuda_loaded *l)
{
    return spc_cuda_check(&l->driver, l->driver.context_push(l->context), SPC_E_CUDA_LAUNCH, "the GPU's context is lost");
}

void spc_cuda_leave(const spc_cuda_loaded *l)
{
    void *context;
    l->driver.context_pop(&context);
}

/* Look at device 0 (CUDA_VISIBLE_DEVICES says which that is) and hold its primary context. */
static int32_t open_device(spc_cuda_loaded *l)
{
    const spc_cuda_driver *d = &l->driver;
    int count = 0, major = 0, minor = 0;
    if (d->device_count(&count) != 0 || count < 1) return spc_cuda_fail(SPC_E_CUDA_NO_DEVICE, "the CUDA driver finds no GPU");
    int error = d->device_get(&l->device, 0);
    if (error == 0) error = d->device_attribute(&major, CAPABILITY_MAJOR, l->device);
    if (error == 0) error = d->device_attribute(&minor, CAPABILITY_MINOR, l->device);
    if (error == 0) error = d->device_attribute(&l->shared_bytes, SHARED_OF_A_BLOCK, l->device);
    int32_t status = spc_cuda_check(d, error, SPC_E_CUDA_NO_DEVICE, "the GPU cannot be asked what it is");
    if (status != SPC_OK) return status;
    l->sm = 10 * major + minor;
    error = d->context_retain(&l->context, l->device);
    if (error != 0) l->context = NULL;
    return spc_cuda_check(d, error, SPC_E_CUDA_NO_DEVICE, "the GPU's context cannot be made");
}

static int32_t upload(spc_cuda_loaded *l)
{
    const spc_cuda_driver *d = &l->driver;
    size_t bytes = l->model->weights_bytes;
    if (bytes == 0) return SPC_OK;
    int error = d->memory_take(&l->weights, bytes);
    if (error != 0) l->weights = 0;
    int32_t status = spc_cuda_check(d, error, SPC_E_CUDA_MEMORY, "no room for the model's weights");
    if (status != SPC_OK) return status;
    error = d->upload(l->weights, l->payload, bytes);
    if (error == 0) error = d->stream_wait(NULL); /* from memory that is not pinned the last bytes may still be on their way */
    return spc_cuda_check(d, error, SPC_E_CUDA_MEMORY, "the weights cannot be uploaded");
}

/* The image that this GPU runs: machine code of the same major and not newer minor version if the driver takes it, else PTX. */
static int32_t load_image(spc_cuda_loaded *l, int32_t index, const spc_cuda_kernel *kernel)
{
    const spc_cuda_driver *d = &l->driver;
    char name[128] = "a GPU";
    int sm = (int)kernel->sm;
    int native = l->sm / 10 == sm / 10 && l->sm >= sm;
    uint64_t shared = (uint64_t)kernel->shared_bytes + kernel->static_bytes;
    if (!native && l->sm < sm) {
        d->device_name(name, sizeof name, l->device);
        return spc_cuda_fail(SPC_E_CUDA_ARCH, "the model is compiled for sm_%d, this GPU is sm_%d (%s): compile it for cuda:sm_%d",
                             sm, l->sm, name, l->sm);
    }
    if (shared > (uint64_t)l->shared_bytes) { /* PTX runs on newer GPUs, some of which have less */
        d->device_name(name, sizeof name, l->device);
        return spc_cuda_fail(SPC_E_CUDA_ARCH, "the model is compiled for sm_%d, and %s takes %llu bytes of shared memory; this GPU, sm_%d "
                             "(%s), has %d: compile the model for cuda:sm_%d",
                             sm, kernel->name, (unsigned long long)shared, l->sm, name, l->shared_bytes, l->sm);
    }
    int error = d->module_load(&l->modules[index], native ? kernel->cubin : (const void *)kernel->ptx);
    if (native && error == SPC_CU_NO_BINARY) /* a Jetson does not take machine code of other GPUs of its major version */
        error = d->module_load(&l->modules[index], (const void *)kernel->ptx);
    if (error != 0) l->modules[index] = NULL;
    if (error == SPC_CU_UNSUPPORTED_PTX || error == SPC_CU_NO_BINARY)
        return spc_cuda_fail(error == SPC_CU_NO_BINARY ? SPC_E_CUDA_ARCH : SPC_E_CUDA_OLD_DRIVER,
                             "this GPU is sm_%d, the model is compiled for sm_%d and the driver cannot translate it: "
                             "install a newer driver, or compile it for cuda:sm_%d",
                             l->sm, sm, l->sm);
    if (error == 0) error = d->module_function(&l->functions[index], l->modules[index], kernel->name);
    if (error == 0 && shared > SHARED_WITHOUT_ASKING)
        error = d->function_set(l->functions[index], DYNAMIC_SHARED, (int)kernel->shared_bytes);
    return spc_cuda_check(d, error, SPC_E_CUDA_IMAGE, kernel->name);
}

int32_t spc_cuda_load_kernel(spc_cuda_loaded *l, int32_t index, const spc_cuda_kernel *kernel)
{
    l->kernels[index] = kernel;
    for (int32_t i = 0; i < index; i++) {
        if (l->kernels[i] != kernel) continue;
        l->functions[index] = l->functions[i];
        return SPC_OK;
    }
    return load_image(l, index, kernel);
}

static void destroy(spc_cuda_loaded *l)
{
    const spc_cuda_driver *d = &l->driver;
    if (l->context != NULL && spc_cuda_enter(l) == SPC_OK) {
        for (int32_t i = 0; i < l->model->step_count; i++)
            if (l->modules[i] != NULL) d->module_unload(l->modules[i]);
        if (l->weights != 0) d->memory_give(l->weights);
        spc_cuda_leave(l);
    }
    if (l->context != NULL) d->context_release(l->device);
    spc_give_memory(l);
}

static int32_t create(spc_cuda_loaded **made, const spc_cuda_driver *driver, const spc_model *model, const uint8_t *payload,
                      int32_t (*prepare)(spc_cuda_loaded *))
{
    size_t steps = (size_t)model->step_count, bytes = sizeof **made + 3 * steps * sizeof(void *);
    spc_cuda_loaded *l = spc_take_memory(bytes);
    if (l == NULL) return SPC_E_MEMORY;
    memset(l, 0, bytes);
    l->driver = *driver;
    l->model = model;
    l->payload = payload;
    l->modules = (void **)(l + 1);
    l->functions = l->modules + steps;
    l->kernels = (const spc_cuda_kernel **)(l->functions + steps);
    int32_t status = open_device(l);
    if (status == SPC_OK && (status = spc_cuda_enter(l)) == SPC_OK) {
        status = prepare(l); /* first: a wrong GPU is found before anything is uploaded */
        if (status == SPC_OK) status = upload(l);
        spc_cuda_leave(l);
    }
    if (status == SPC_OK) *made = l;
    else destroy(l);
    return status;
}

int32_t spc_cuda_load(spc_cuda_loaded **loaded, const spc_model *model, const spc_weights *weights,
                      int32_t (*prepare)(spc_cuda_loaded *))
{
    spc_cuda_driver driver;
    spc_cuda_loaded *l;
    int32_t status = spc_cuda_load_driver(&driver);
    if (status != SPC_OK) return status;
    pthread_mutex_lock(&lock);
    for (l = all; l != NULL; l = l->next)
        if (l->model == model && l->payload == weights->payload && l->driver.launch == driver.launch) break;
    if (l == NULL && (status = create(&l, &driver, model, weights->payload, prepare)) == SPC_OK) {
        l->next = all;
        all = l;
    }
    if (status == SPC_OK) l->sessions++;
    pthread_mutex_unlock(&lock);
    *loaded = status == SPC_OK ? l : NULL;
    return status;
}

void spc_cuda_unload(spc_cuda_loaded *l)
{
    pthread_mutex_lock(&lock);
    if (--l->sessions == 0) {
        spc_cuda_loaded **link = &all;
        while (*link != l) link = &(*link)->next;
        *link = l->next;
        destroy(l);
    }
    pthread_mutex_unlock(&lock);
}
