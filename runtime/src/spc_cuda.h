/* A GPU kernel as it lies in a bundle: its machine code, and how it is started. codegen/cuda makes one object file of each kernel,
 * with one constant of this type that has the kernel's C symbol. */
#ifndef SPC_CUDA_H
#define SPC_CUDA_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *name;         /* of the function in the image */
    const void *cubin;        /* machine code for compute capability `sm` */
    size_t cubin_bytes;
    const char *ptx;          /* for newer GPUs, where the driver translates it; ends with a zero byte, which ptx_bytes counts */
    size_t ptx_bytes;
    uint32_t grid[3];         /* blocks */
    uint32_t block[3];        /* threads of a block */
    uint32_t shared_bytes;    /* dynamic shared memory of a block */
    uint32_t static_bytes;    /* what the image declares beside it */
    uint32_t arg_count;       /* device pointers, in the order of the kernel's signature */
    uint32_t sm;              /* 90 for sm_90 */
} spc_cuda_kernel;

struct spc_run;

/* What runs the models of a bundle for a GPU (spc_model.device). */
extern const struct spc_device spc_cuda_device;

/* --- called by generated code --- */

/* Before the first step: clear the error codes of the steps, `count` of them (int32_t) at `offset` bytes of the arena. After a run they
 * are looked at. */
int32_t spc_cuda_status(const struct spc_run *run, size_t offset, int32_t count);

/* Start step `index`: `kernel` with `count` pointers to memory of the GPU, in the order of its signature. */
int32_t spc_cuda_step(const struct spc_run *run, int32_t index, const spc_cuda_kernel *kernel, uint32_t count,
                      const void *const *arguments);

#endif
