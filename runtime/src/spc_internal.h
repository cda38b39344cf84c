/* What the runtime's own files share. */
#ifndef SPC_INTERNAL_H
#define SPC_INTERNAL_H

#include "spc_runtime.h"

/* weights.bin: this header, then the payload. All fields little-endian. */
typedef struct {
    uint8_t magic[8];
    uint32_t version;
    uint32_t byte_order;
    uint64_t model_id;
    uint64_t total_bytes;
    uint64_t payload_offset;
    uint64_t payload_bytes;
    uint64_t payload_checksum;
    uint64_t header_checksum; /* of the bytes before it */
} spc_blob_header;

#define SPC_BLOB_ORDER 0x01020304u

/* 64-bit checksum: sum over little-endian 8-byte words (the last one zero padded) of a bijective mix of the word and its
 * position, mixed with the length. A change in one word is always found. */
uint64_t spc_checksum(const void *data, size_t bytes);

/* --- thread pool --- */

typedef struct spc_pool spc_pool;

/* Computes units [lo, hi); `thread` is 0 for the calling thread and below the pool's size. 0 means success. */
typedef int32_t (*spc_range_fn)(void *context, int32_t thread, int32_t lo, int32_t hi);

/* Bytes of a pool of `threads` threads (`threads` >= 1). */
size_t spc_pool_bytes(int32_t threads);

/* Start threads - 1 workers in `memory` (64-byte aligned, spc_pool_bytes()). */
int32_t spc_pool_start(spc_pool **pool, int32_t threads, void *memory);
void spc_pool_stop(spc_pool *pool);

/* Whether the pool's workers still exist: a forked child inherits the memory but not the threads. */
int spc_pool_alive(const spc_pool *pool);

/* Call fn on contiguous ranges that cover [0, units), up to `pieces` a thread, posted to at most `max_threads` threads, and wait for
 * all. The ranges depend on the numbers of units, threads and pieces only; which thread computes one does not. Returns the
 * non-zero result of the lowest range that has one. One call at a time a pool, and never from within fn. */
int32_t spc_parallel_for(spc_pool *pool, spc_range_fn fn, void *context, int32_t units, int32_t max_threads,
                         int32_t pieces);

/* --- devices: what runs a model whose kernels are not this processor's --- */

typedef struct spc_device {
    /* Upload what is not there yet and prepare all kernels. */
    int32_t (*open)(struct spc_device_session **session, const spc_model *model, const spc_weights *weights);
    /* Run once; `on_device` says whose memory inputs and outputs are. `ns` as for spc_session_profile(), or NULL. */
    int32_t (*run)(struct spc_device_session *session, const void *const *inputs, void *const *outputs, int on_device,
                   uint64_t *ns);
    void (*close)(struct spc_device_session *session);
    void *(*stream)(const struct spc_device_session *session);
    void *(*take)(struct spc_device_session *session, size_t bytes);
    void (*give)(struct spc_device_session *session, void *memory);
    int32_t (*wait)(struct spc_device_session *session);
    const char *(*explain)(void);
} spc_device;

/* SPC_OK, or SPC_E_CPU when the machine lacks something of the mask. */
int32_t spc_cpu_check(uint32_t needed);

#ifndef SPC_NO_HOST
/* --- the operating system --- */

uint64_t spc_now_ns(void);
void *spc_take_memory(size_t bytes);
void spc_give_memory(void *memory);

/* Map a regular file of at least one byte read-only; both results are set only with SPC_OK. */
int32_t spc_map_file(const char *path, void **mapping, size_t *bytes);
void spc_unmap_file(void *mapping, size_t bytes);
#endif

/* Unmap the file of the weights together with the session (spc_open). */
void spc_session_own_weights(spc_session *session);

#endif
