/* What needs an operating system: mapped files, malloc, the clock, the number of processors. Calls nothing of the runtime. */
#define _GNU_SOURCE
#include "spc_internal.h"

#ifndef SPC_NO_HOST

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int32_t spc_map_file(const char *path, void **mapping, size_t *bytes)
{
    struct stat info;
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
    *bytes = (size_t)info.st_size;
    *mapping = mmap(NULL, *bytes, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    return *mapping == MAP_FAILED ? SPC_E_FILE_READ : SPC_OK;
}

void spc_unmap_file(void *mapping, size_t bytes) { munmap(mapping, bytes); }

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
