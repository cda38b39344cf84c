// A launch of a simulated kernel: what the library of one kernel takes (C and C++). tests/cuda/simulator/__init__.py has the same.
#pragma once

#include <stdint.h>

// order: 0 ascending threads and blocks, 1 descending, 2 shuffled anew after every barrier (by `seed`).
// `message` receives what went wrong, `fault` the address that was touched.
typedef struct sim_launch {
    uint32_t grid[3], block[3];
    uint32_t shared_bytes;
    uint32_t order;
    uint64_t seed;
    void *fault;
    char message[1000];
} sim_launch;
