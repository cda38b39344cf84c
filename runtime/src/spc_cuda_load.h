/* A model on a GPU: its weights and kernels, shared by all sessions on the same weights. */
#ifndef SPC_CUDA_LOAD_H
#define SPC_CUDA_LOAD_H

#include "spc_cuda.h"
#include "spc_cuda_driver.h"

typedef struct spc_cuda_loaded {
    spc_cuda_driver driver;
    const spc_model *model;
    const uint8_t *payload; /* what was uploaded; with the model and the driver it tells loaded models apart */
    spc_device_ptr weights;
    void *context;
    int device;
    int sm;           /* compute capability: 90 is 9.0 */
    int shared_bytes; /* that a block may have */
    void **modules;   /* of each step, NULL where an earlier one has the same kernel */
    void **functions; /* of each step */
    const spc_cuda_kernel **kernels;
    size_t status_offset; /* of the error codes in the arena */
    int32_t status_count; /* 0: no kernel can fail */
    int sessions;
    struct spc_cuda_loaded *next;
} spc_cuda_loaded;

/* Get a model that is on the GPU, or put it there: `prepare` calls spc_cuda_load_kernel() for every step. spc_cuda_unload() for
 * every success. */
int32_t spc_cuda_load(spc_cuda_loaded **loaded, const spc_model *model, const spc_weights *weights,
                      int32_t (*prepare)(spc_cuda_loaded *loaded));
int32_t spc_cuda_load_kernel(spc_cuda_loaded *loaded, int32_t index, const spc_cuda_kernel *kernel);
void spc_cuda_unload(spc_cuda_loaded *loaded);

/* Calls of the driver stand between these two. */
int32_t spc_cuda_enter(const spc_cuda_loaded *loaded);
void spc_cuda_leave(const spc_cuda_loaded *loaded);

#endif
