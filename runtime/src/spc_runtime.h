/* sparsec runtime: runs one compiled model.
 *
 * C11; needs libc, libm and pthread only. Without an operating system compile with -DSPC_BARE: no threads, no malloc, no
 * files, no clock (give weights and memory as pointers).
 *
 * Objects:
 *   spc_model    what the compiler generated: constant, shared by everybody (<name>_model()).
 *   spc_weights  the weights blob, mapped from a file or lying in memory. Read-only: any number of sessions may share it.
 *   spc_session  the arena, the work areas and the threads of one user. Sessions are independent of each other; one
 *                session must not run on two threads at once (the second call gets SPC_E_BUSY).
 *
 * Functions that can fail return SPC_OK (0) or an error code; spc_status_text() explains it.
 */
#ifndef SPC_RUNTIME_H
#define SPC_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef SPC_BARE
#define SPC_NO_THREADS
#define SPC_NO_HOST
#endif

#if defined(__GNUC__)
#define SPC_API __attribute__((visibility("default")))
#define SPC_WEAK __attribute__((weak))
#else
#define SPC_API
#define SPC_WEAK
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SPC_ABI_VERSION 3u      /* of spc_model: generated code and runtime must agree */
#define SPC_BLOB_VERSION 1u     /* of weights.bin */
#define SPC_ALIGNMENT 64u       /* of arena buffers, work areas and constants */
#define SPC_MAX_THREADS 256

enum {
    SPC_OK = 0,
    SPC_E_ARGUMENT = 1,
    SPC_E_ABI = 2,
    SPC_E_MEMORY = 3,
    SPC_E_THREADS = 4,
    SPC_E_BUSY = 5,
    SPC_E_KERNEL = 6,
    SPC_E_CPU = 7,
    SPC_E_FILE_OPEN = 10,
    SPC_E_FILE_READ = 11,
    SPC_E_BLOB_TRUNCATED = 20,
    SPC_E_BLOB_MAGIC = 21,
    SPC_E_BLOB_ENDIAN = 22,
    SPC_E_BLOB_VERSION = 23,
    SPC_E_BLOB_HEADER = 24,
    SPC_E_BLOB_MODEL = 25,
    SPC_E_BLOB_SIZE = 26,
    SPC_E_BLOB_CHECKSUM = 27,
    SPC_E_CUDA_NO_DRIVER = 40, /* from here on: of GPUs, told by spc_explain() */
    SPC_E_CUDA_OLD_DRIVER = 41,
    SPC_E_CUDA_NO_DEVICE = 42,
    SPC_E_CUDA_ARCH = 43,
    SPC_E_CUDA_MEMORY = 44,
    SPC_E_CUDA_IMAGE = 45,
    SPC_E_CUDA_LAUNCH = 46
};

/* Element types of inputs and outputs. */
enum {
    SPC_FLOAT32 = 1, SPC_FLOAT64 = 2, SPC_FLOAT16 = 3,
    SPC_INT8 = 4, SPC_INT16 = 5, SPC_INT32 = 6, SPC_INT64 = 7,
    SPC_UINT8 = 8, SPC_UINT16 = 9, SPC_UINT32 = 10, SPC_UINT64 = 11,
    SPC_BOOL = 12 /* one byte, 0 or 1 */
};

/* What the kernels were compiled to use (spc_model.cpu). */
enum {
    SPC_CPU_AVX2 = 1, SPC_CPU_FMA = 2, SPC_CPU_AVX512 = 4, /* F, BW, DQ, VL and CD */
    SPC_CPU_DOTPROD = 8, SPC_CPU_AVX_VNNI = 16, SPC_CPU_AVX512_VNNI = 32, SPC_CPU_I8MM = 64,
    SPC_CPU_AVX512_VBMI2 = 128
};

typedef struct {
    const char *name;
    int32_t dtype;
    int32_t rank;
    const int64_t *dims; /* `rank` of them, row-major (C order) */
    size_t bytes;
} spc_tensor_info;

typedef struct {
    const char *node;   /* the ONNX node this step comes from */
    const char *op;     /* its op type */
    const char *kernel; /* symbol of the kernel */
} spc_step_info;

/* What a running model sees; generated code reads it. On a GPU all are addresses of its memory, which only kernels follow. */
typedef struct spc_run {
    const uint8_t *weights;
    uint8_t *arena;
    const void *const *inputs;
    void *const *outputs;
    struct spc_session *session;
    struct spc_device_session *device;
} spc_run;

struct spc_device;

typedef struct spc_model {
    uint32_t abi; /* SPC_ABI_VERSION */
    uint32_t cpu; /* SPC_CPU_* bits the machine must have */
    const char *name;
    const char *target;
    uint64_t id;          /* hash of the program's layout; the blob must carry the same */
    size_t weights_bytes; /* payload of the blob */
    size_t arena_bytes;
    size_t work_bytes; /* scratch of one thread */
    int32_t input_count;
    int32_t output_count;
    int32_t step_count;
    int32_t max_threads; /* the most threads any step can use */
    const spc_tensor_info *inputs;
    const spc_tensor_info *outputs;
    const spc_step_info *steps;
    int32_t (*run)(const spc_run *run);
    const struct spc_device *device; /* what runs the kernels: NULL for this processor, &spc_cuda_device (spc_cuda.h) for a GPU */
} spc_model;

typedef struct {
    const uint8_t *payload;
    size_t payload_bytes;
    uint64_t model_id;
    void *mapping; /* NULL when the blob lies in the caller's memory */
    size_t mapping_bytes;
} spc_weights;

typedef struct spc_session spc_session;

/* One line of English for a status. Never NULL. */
SPC_API const char *spc_status_text(int32_t status);

/* Validate a blob of `bytes` bytes at `blob` for `model`: header, sizes, model, checksum. Memory stays the caller's and must
 * outlive `weights`; 64-byte alignment is best. */
SPC_API int32_t spc_weights_from_memory(spc_weights *weights, const spc_model *model, const void *blob, size_t bytes);

/* Bytes of memory one session needs: control block, arena and work areas for `threads` threads. 0 if an argument is bad.
 * Arena and work areas of a model for a GPU lie in its memory and are not counted. */
SPC_API size_t spc_session_bytes(const spc_model *model, int32_t threads);

/* Open a session with `threads` threads (1..SPC_MAX_THREADS; the calling thread counts as one of them).
 * `memory`: spc_session_bytes() bytes of any alignment that outlive the session, or NULL to take them from malloc.
 * `weights` is copied; what it points to must outlive the session. */
SPC_API int32_t spc_session_open(spc_session **session, const spc_model *model, const spc_weights *weights,
                                 int32_t threads, void *memory, size_t memory_bytes);

/* Run the model once. inputs[i] and outputs[i] follow model->inputs and model->outputs: dense C-order arrays of exactly
 * `.bytes` bytes, of any alignment. Outputs must not overlap inputs or each other. */
SPC_API int32_t spc_session_run(spc_session *session, const void *const *inputs, void *const *outputs);

/* The same with pointers to the GPU's memory, all of them and 16-byte aligned, which are used in place; results are there when it
 * returns. The GPU's work so far is waited for where it is in the stream spc_session_stream(), and nowhere else.
 * SPC_E_ARGUMENT when the model is not for a GPU. */
SPC_API int32_t spc_session_run_device(spc_session *session, const void *const *inputs, void *const *outputs);

/* The CUstream of a session of a model for a GPU; NULL of another. */
SPC_API void *spc_session_stream(const spc_session *session);

/* Memory of the GPU that the session runs on; NULL when there is not enough, or when the model is not for a GPU. */
SPC_API void *spc_device_take(spc_session *session, size_t bytes);
SPC_API void spc_device_give(spc_session *session, void *memory);

/* Wait for everything that the GPU has to do for this process, in whichever stream: memory that others used may be used again then.
 * SPC_E_ARGUMENT when the model is not for a GPU. */
SPC_API int32_t spc_device_wait(spc_session *session);

/* Add each step's nanoseconds to ns[step] in later runs (`step_count` entries, the caller's); NULL stops it. */
SPC_API int32_t spc_session_profile(spc_session *session, uint64_t *ns);

/* Stop the session's threads and free what it owns. NULL is fine. */
SPC_API void spc_session_close(spc_session *session);

#ifndef SPC_NO_HOST
/* Map `path` read-only and validate it as spc_weights_from_memory() does. */
SPC_API int32_t spc_weights_open(spc_weights *weights, const spc_model *model, const char *path);
SPC_API void spc_weights_close(spc_weights *weights);

/* Weights and session in one: the session owns the mapping. */
SPC_API int32_t spc_open(spc_session **session, const spc_model *model, const char *weights_path, int32_t threads);

/* What spc_status_text() says, and for an error of the GPU (SPC_E_CUDA_...) what it was: the last one in this thread. Never NULL. */
SPC_API const char *spc_explain(const spc_model *model, int32_t status);

/* Processors this process may run on. */
SPC_API int32_t spc_cpu_count(void);
#endif

/* --- called by generated code --- */

typedef int32_t (*spc_step_fn)(const spc_run *run, uint8_t *work, int32_t lo, int32_t hi);

/* Run `step` over units [0, units) with up to `threads` threads, in contiguous ranges: each thread's share in up to `pieces`. */
int32_t spc_step(const spc_run *run, int32_t index, spc_step_fn step, int32_t units, int32_t threads, int32_t pieces);

/* Where a kernel's argument lies. Kernels take pointers of any alignment, so void is the honest type. */
static inline const void *spc_weight(const spc_run *run, size_t offset) { return run->weights + offset; }
static inline void *spc_arena(const spc_run *run, size_t offset) { return run->arena + offset; }
static inline const void *spc_input(const spc_run *run, int32_t index, size_t offset)
{
    return (const uint8_t *)run->inputs[index] + offset;
}
static inline void *spc_output(const spc_run *run, int32_t index, size_t offset)
{
    return (uint8_t *)run->outputs[index] + offset;
}
static inline void *spc_work(uint8_t *work, size_t offset) { return work + offset; }

/* The model of a shared library that holds exactly one; the Python binding looks it up. */
SPC_API const spc_model *spc_bundle_model(void);

#ifdef __cplusplus
}
#endif
#endif
