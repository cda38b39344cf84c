/* What needs an operating system: mapped files, malloc, the clock, the number of processors. */
#define _GNU_SOURCE
#include "spc_internal.h"

#ifndef SPC_NO_HOST

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int32_t spc_weights_open(spc_weights *weights, const spc_model *model, const char *path)
{
    struct stat info;
    if (weights == NULL || model == NULL || path == NULL) return SPC_E_ARGUMENT;
    memset(weights, 0, sizeof *weights);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return SPC_E_FILE_OPEN;
    if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(file);
        return SPC_E_FILE_OPEN;
    }
    if (info.st_size <= 0) {
        close(file);
        return SPC_E_BLOB_TRUNCATED; /* an empty file cannot be mapped */
    }
    size_t bytes = (size_t)info.st_size;
    void *mapping = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (mapping == MAP_FAILED) return SPC_E_FILE_READ;
    int32_t status = spc_weights_from_memory(weights, model, mapping, bytes);
    if (status != SPC_OK) {
        munmap(mapping, bytes);
        return status;
    }
    weights->mapping = mapping;
    weights->mapping_bytes = bytes;
    return SPC_OK;
}

void spc_weights_close(spc_weights *weights)
{
    if (weights == NULL) return;
    if (weights->mapping != NULL) munmap(weights->mapping, weights->mapping_bytes);
    memset(weights, 0, sizeof *weights);
}

int32_t spc_open(spc_session **session, const spc_model *model, const char *weights_path, int32_t threads)
{
    spc_weights weights;
    if (session == NULL) return SPC_E_ARGUMENT;
    *session = NULL;
    int32_t status = spc_weights_open(&weights, model, weights_path);
    if (status != SPC_OK) return status;
    status = spc_session_open(session, model, &weights, threads, NULL, 0);
    if (status != SPC_OK) {
        spc_weights_close(&weights);
        return status;
    }
    spc_session_own_weights(*session);
    return SPC_OK;
}

int32_t spc_cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int count = CPU_COUNT(&set);
        return count < 1 ? 1 : count > SPC_MAX_THREADS ? SPC_MAX_THREADS : count;
    }
    return 1;
}

uint64_t spc_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void *spc_take_memory(size_t bytes) { return malloc(bytes); }

void spc_give_memory(void *memory) { free(memory); }

#endif
