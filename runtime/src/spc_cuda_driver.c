/* Finds the CUDA driver and puts its errors into words. */
#define _POSIX_C_SOURCE 200809L
#include "spc_cuda_driver.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OLDEST_DRIVER = 12000 }; /* images of CUDA 12 load on every driver of CUDA 12 and newer */

static _Thread_local char problem[400];

int32_t spc_cuda_fail(int32_t status, const char *format, ...)
{
    va_list rest;
    va_start(rest, format);
    vsnprintf(problem, sizeof problem, format, rest);
    va_end(rest);
    return status;
}

const char *spc_cuda_explain(void)
{
    return problem[0] != 0 ? problem : "an error of the GPU in another thread";
}

int32_t spc_cuda_check(const spc_cuda_driver *driver, int error, int32_t otherwise, const char *what)
{
    const char *name = NULL;
    size_t free_bytes = 0, total = 0;
    if (error == 0) return SPC_OK;
    if (error == SPC_CU_OUT_OF_MEMORY) {
        if (driver->memory_info(&free_bytes, &total) != 0) free_bytes = total = 0;
        return spc_cuda_fail(SPC_E_CUDA_MEMORY, "the GPU is out of memory: %s; %zu of its %zu MiB are free", what,
                             free_bytes >> 20, total >> 20);
    }
    if (driver->error_name(error, &name) != 0 || name == NULL) name = "an unknown error";
    return spc_cuda_fail(otherwise, "%s: %s (%d)", what, name, error);
}

static int32_t find_functions(spc_cuda_driver *driver, const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return spc_cuda_fail(SPC_E_CUDA_NO_DRIVER, "there is no CUDA driver (%s): install NVIDIA's driver, or compile for a cpu target",
                             dlerror());
    const char *missing = NULL;
    void *found;
#define SPC_CUDA_FIND(field, symbol, arguments) \
    found = dlsym(library, symbol); \
    if (found == NULL && missing == NULL) missing = symbol; \
    memcpy(&driver->field, &found, sizeof found);
    SPC_CUDA_FUNCTIONS(SPC_CUDA_FIND)
#undef SPC_CUDA_FIND
    if (missing == NULL) return SPC_OK;
    dlclose(library);
    return spc_cuda_fail(SPC_E_CUDA_OLD_DRIVER, "the CUDA driver is too old (%s has no %s): install one of CUDA 12.0 or newer", path,
                         missing);
}

int32_t spc_cuda_load_driver(spc_cuda_driver *driver)
{
    const char *path = getenv("SPC_CUDA_DRIVER");
    int version = 0;
    int32_t status = find_functions(driver, path != NULL && path[0] != 0 ? path : "libcuda.so.1");
    if (status != SPC_OK) return status;
    if (driver->driver_version(&version) == 0 && version < OLDEST_DRIVER)
        return spc_cuda_fail(SPC_E_CUDA_OLD_DRIVER, "the CUDA driver is too old (CUDA %d.%d): install one of CUDA 12.0 or newer",
                             version / 1000, version % 1000 / 10);
    int error = driver->init(0);
    if (error == SPC_CU_NO_DEVICE) return spc_cuda_fail(SPC_E_CUDA_NO_DEVICE, "the CUDA driver finds no GPU");
    return spc_cuda_check(driver, error, SPC_E_CUDA_NO_DEVICE, "the CUDA driver does not start");
}
