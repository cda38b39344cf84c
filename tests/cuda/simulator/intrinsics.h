// What CUDA offers to every kernel: indices, barriers, warp collectives, conversions, bit operations, atomics.
#pragma once

#include "engine.h"
#include "types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

#define threadIdx (sim::self->thread)
#define blockIdx (sim::block_index)
#define blockDim (sim::block_size)
#define gridDim (sim::grid_size)
#define warpSize 32

// `__shared__ T name[n]` and `extern __shared__ T name[]` are rewritten to these (tests/cuda/simulator/__init__.py).
#define SIM_SHARED(type, name, count) \
    static const char name##_tag[] = #name; \
    type *const name = static_cast<type *>(sim::shared_memory(name##_tag, sizeof(type) * (count), 16))
#define SIM_SHARED_DYNAMIC(type, name) \
    static const char name##_tag[] = #name; \
    type *const name = static_cast<type *>(sim::shared_memory(name##_tag, sim::dynamic_bytes, 16))

#define __syncthreads() sim::block_barrier(__LINE__)
#define __syncwarp(...) sim_syncwarp(__LINE__, ##__VA_ARGS__)
inline void sim_syncwarp(int line, unsigned mask = 0xffffffffu) { sim::warp_barrier("__syncwarp", line, mask); }

template <class T> T sim_poison()
{
    T value;
    memset(static_cast<void *>(&value), sim::POISON, sizeof value);
    return value;
}

// The value of lane `source` (poison when that lane takes no part).
template <class T> T sim_pick(const T *values, unsigned mask, int source)
{
    return mask >> source & 1 ? values[source] : sim_poison<T>();
}

template <class T> T sim_shfl(const char *what, int line, char kind, unsigned mask, T value, int by, int width = 32)
{
    const T *values = sim::gather(what, line, mask, value);
    int lane = int(sim::self->lane), first = lane & ~(width - 1), source = lane;
    switch (kind) {
    case 'i': source = first + (by & (width - 1)); break;
    case 'x': source = (lane ^ by) < first + width ? lane ^ by : lane; break;
    case 'd': source = lane + by < first + width ? lane + by : lane; break;
    case 'u': source = lane - by >= first ? lane - by : lane; break;
    }
    return sim_pick(values, mask, source);
}
#define __shfl_sync(...) sim_shfl("__shfl_sync", __LINE__, 'i', __VA_ARGS__)
#define __shfl_xor_sync(...) sim_shfl("__shfl_xor_sync", __LINE__, 'x', __VA_ARGS__)
#define __shfl_down_sync(...) sim_shfl("__shfl_down_sync", __LINE__, 'd', __VA_ARGS__)
#define __shfl_up_sync(...) sim_shfl("__shfl_up_sync", __LINE__, 'u', __VA_ARGS__)

inline unsigned sim_ballot(const char *what, int line, unsigned mask, int predicate)
{
    const int *values = sim::gather(what, line, mask, predicate);
    unsigned bits = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        if (mask >> lane & 1 && values[lane]) bits |= 1u << lane;
    return bits;
}
#define __ballot_sync(mask, predicate) sim_ballot("__ballot_sync", __LINE__, mask, predicate)
#define __any_sync(mask, predicate) (sim_ballot("__any_sync", __LINE__, mask, predicate) != 0)
#define __all_sync(mask, predicate) (sim_ballot("__all_sync", __LINE__, mask, predicate) == (mask))
inline unsigned __activemask() { return 0xffffffffu; }

// --- conversions ---

inline int __float_as_int(float a) { return sim_bits<int>(a); }
inline unsigned __float_as_uint(float a) { return sim_bits<unsigned>(a); }
inline float __int_as_float(int a) { return sim_bits<float>(a); }
inline float __uint_as_float(unsigned a) { return sim_bits<float>(a); }
inline int __float2int_rn(float a) { return int(rintf(a)); }
inline int __float2int_rz(float a) { return int(a); }
inline float __int2float_rn(int a) { return float(a); }

// --- arithmetic ---

template <class T> T sim_min(T a, T b) { return b < a ? b : a; }
template <class T> T sim_max(T a, T b) { return a < b ? b : a; }
inline int min(int a, int b) { return sim_min(a, b); }
inline int max(int a, int b) { return sim_max(a, b); }
inline unsigned min(unsigned a, unsigned b) { return sim_min(a, b); }
inline unsigned max(unsigned a, unsigned b) { return sim_max(a, b); }
inline long long min(long long a, long long b) { return sim_min(a, b); }
inline long min(long a, long b) { return sim_min(a, b); }  // int64_t here
inline long long max(long long a, long long b) { return sim_max(a, b); }
inline long max(long a, long b) { return sim_max(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __log2f(float a) { return log2f(a); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __sinf(float a) { return sinf(a); }
inline float __cosf(float a) { return cosf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float a) { return a < 1.0f ? (a > 0.0f ? a : 0.0f) : (a == a ? 1.0f : 0.0f); }

// --- bits ---

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __clz(int a) { return a ? __builtin_clz(unsigned(a)) : 32; }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline unsigned __brev(unsigned a) { return __builtin_bitreverse32(a); }

// PTX prmt, default mode: byte i of the result is the byte that nibble i of the selector names; its bit 3 repeats the sign instead.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned nibble = selector >> 4 * i & 15, byte = unsigned(bytes >> 8 * (nibble & 7)) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by)
{
    return unsigned((uint64_t(high) << 32 | low) >> (by & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by)
{
    return unsigned((uint64_t(high) << 32 | low) << (by & 31) >> 32);
}
inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++) c += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
    return c;
}

// --- memory ---

template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldca(const T *p) { return *p; }
template <class T> void __stcs(T *p, T value) { *p = value; }
template <class T> void __stcg(T *p, T value) { *p = value; }
inline void __threadfence() {}
inline void __threadfence_block() {}

// Blocks run one after the other and fibers are never interrupted, so plain reads and writes are atomic.
template <class T> T atomicAdd(T *p, T value)
{
    T old = *p;
    *p = old + value;
    return old;
}
template <class T> T atomicMax(T *p, T value)
{
    T old = *p;
    if (old < value) *p = value;
    return old;
}
template <class T> T atomicExch(T *p, T value)
{
    T old = *p;
    *p = value;
    return old;
}
template <class T> T atomicCAS(T *p, T compare, T value)
{
    T old = *p;
    if (old == compare) *p = value;
    return old;
}
inline unsigned atomicInc(unsigned *p, unsigned limit)
{
    unsigned old = *p;
    *p = old >= limit ? 0 : old + 1;
    return old;
}
