/* A session on a GPU, as its three files share it: spc_cuda_steps.c starts kernels, spc_cuda_graph.c replays them, spc_cuda.c does the rest. */
#ifndef SPC_CUDA_SESSION_H
#define SPC_CUDA_SESSION_H

#include "spc_cuda_load.h"

enum { SPC_CUDA_GRAPHS = 4 }; /* kept: one for each set of the caller's pointers, the one used longest ago goes */

typedef struct {
    void *graph; /* CUgraphExec; NULL: its pointers were seen once, or never (`used` is 0 then) */
    uint64_t used;
} spc_cuda_slot;

struct spc_device_session {
    spc_cuda_loaded *loaded;
    void *stream;
    spc_device_ptr arena;
    spc_device_ptr staged; /* inputs and outputs of callers whose arrays lie in the host's memory */
    uint8_t *pinned;       /* the host's side of them, at the same offsets */
    int32_t *codes;        /* error codes of the last run, in pinned memory; NULL where no kernel can fail */
    spc_cuda_slot graphs[SPC_CUDA_GRAPHS];
    void **pointers;       /* of each slot: inputs, then outputs */
    void **staged_pointers;
    void **events;         /* step_count + 1 of them, made when the first profile is taken */
    uint64_t runs;
    int preparing; /* steps load their kernels and do not start them */
    int timing;    /* an event follows each step */
};

/* Inputs, then outputs. */
size_t spc_cuda_pointer_count(const spc_model *model);

/* Offset of input or output `i` in the staging memory; of one past the last: the size of all. */
size_t spc_cuda_staged_offset(const spc_model *model, size_t i);

static inline void *spc_cuda_address(spc_device_ptr p) { return (void *)(uintptr_t)p; }

/* Load the kernels of all steps. */
int32_t spc_cuda_prepare(spc_cuda_loaded *loaded);

/* Put all steps into the stream, and the copies of staged inputs and outputs around them. */
int32_t spc_cuda_start(struct spc_device_session *session, void **pointers);

/* Run with these pointers and wait. */
int32_t spc_cuda_replay(struct spc_device_session *session, void **pointers);

/* The same step by step with an event after each, and add what lies between them to ns[step]. */
int32_t spc_cuda_run_timed(struct spc_device_session *session, void **pointers, uint64_t *ns);

#endif
