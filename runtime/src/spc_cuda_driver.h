/* The CUDA driver's functions as far as the runtime uses them, found in libcuda.so.1 when the first session opens. */
#ifndef SPC_CUDA_DRIVER_H
#define SPC_CUDA_DRIVER_H

#include "spc_internal.h"

typedef unsigned long long spc_device_ptr;

/* result name, symbol of the library (the newest version of it that CUDA 12 has), arguments */
#define SPC_CUDA_FUNCTIONS(X) \
    X(init, "cuInit", (unsigned flags)) \
    X(driver_version, "cuDriverGetVersion", (int *version)) \
    X(device_count, "cuDeviceGetCount", (int *count)) \
    X(device_get, "cuDeviceGet", (int *device, int ordinal)) \
    X(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, int device)) \
    X(device_name, "cuDeviceGetName", (char *name, int length, int device)) \
    X(context_retain, "cuDevicePrimaryCtxRetain", (void **context, int device)) \
    X(context_release, "cuDevicePrimaryCtxRelease_v2", (int device)) \
    X(context_push, "cuCtxPushCurrent_v2", (void *context)) \
    X(context_pop, "cuCtxPopCurrent_v2", (void **context)) \
    X(context_wait, "cuCtxSynchronize", (void)) \
    X(module_load, "cuModuleLoadData", (void **module, const void *image)) \
    X(module_function, "cuModuleGetFunction", (void **function, void *module, const char *name)) \
    X(module_unload, "cuModuleUnload", (void *module)) \
    X(function_set, "cuFuncSetAttribute", (void *function, int attribute, int value)) \
    X(memory_info, "cuMemGetInfo_v2", (size_t *free_bytes, size_t *total)) \
    X(memory_take, "cuMemAlloc_v2", (spc_device_ptr *memory, size_t bytes)) \
    X(memory_give, "cuMemFree_v2", (spc_device_ptr memory)) \
    X(pinned_take, "cuMemAllocHost_v2", (void **memory, size_t bytes)) \
    X(pinned_give, "cuMemFreeHost", (void *memory)) \
    X(upload, "cuMemcpyHtoD_v2", (spc_device_ptr to, const void *from, size_t bytes)) \
    X(upload_async, "cuMemcpyHtoDAsync_v2", (spc_device_ptr to, const void *from, size_t bytes, void *stream)) \
    X(download_async, "cuMemcpyDtoHAsync_v2", (void *to, spc_device_ptr from, size_t bytes, void *stream)) \
    X(clear_async, "cuMemsetD8Async", (spc_device_ptr to, unsigned char value, size_t bytes, void *stream)) \
    X(stream_create, "cuStreamCreate", (void **stream, unsigned flags)) \
    X(stream_destroy, "cuStreamDestroy_v2", (void *stream)) \
    X(stream_wait, "cuStreamSynchronize", (void *stream)) \
    X(capture_begin, "cuStreamBeginCapture_v2", (void *stream, int mode)) \
    X(capture_end, "cuStreamEndCapture", (void *stream, void **graph)) \
    X(graph_instantiate, "cuGraphInstantiateWithFlags", (void **made, void *graph, unsigned long long flags)) \
    X(graph_launch, "cuGraphLaunch", (void *graph, void *stream)) \
    X(graph_destroy, "cuGraphDestroy", (void *graph)) \
    X(graph_exec_destroy, "cuGraphExecDestroy", (void *graph)) \
    X(event_create, "cuEventCreate", (void **event, unsigned flags)) \
    X(event_record, "cuEventRecord", (void *event, void *stream)) \
    X(event_elapsed, "cuEventElapsedTime", (float *milliseconds, void *from, void *to)) \
    X(event_destroy, "cuEventDestroy_v2", (void *event)) \
    X(launch, "cuLaunchKernel", (void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, \
                                 unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **arguments, \
                                 void **extra)) \
    X(error_name, "cuGetErrorName", (int error, const char **name))

typedef struct {
#define SPC_CUDA_FIELD(field, symbol, arguments) int (*field) arguments;
    SPC_CUDA_FUNCTIONS(SPC_CUDA_FIELD)
#undef SPC_CUDA_FIELD
} spc_cuda_driver;

enum { /* CUresult, as far as they are told apart */
    SPC_CU_OUT_OF_MEMORY = 2, SPC_CU_NO_DEVICE = 100, SPC_CU_NO_BINARY = 209, SPC_CU_UNSUPPORTED_PTX = 222
};

/* The driver: libcuda.so.1, or the library that $SPC_CUDA_DRIVER names, which then stays loaded. */
int32_t spc_cuda_load_driver(spc_cuda_driver *driver);

/* Remember what went wrong in words (this thread's, up to 399 characters) and return `status`. */
int32_t spc_cuda_fail(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Status of a call of the driver that returned `error`: SPC_OK for 0, SPC_E_CUDA_MEMORY when memory ran out, else `otherwise`. */
int32_t spc_cuda_check(const spc_cuda_driver *driver, int error, int32_t otherwise, const char *what);

/* What went wrong last in this thread. Never NULL. */
const char *spc_cuda_explain(void);

#endif
