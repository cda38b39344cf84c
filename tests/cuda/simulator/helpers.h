// Twins of those functions of device.cuh that are assembly there. Fragments lie as the PTX ISA says.
#pragma once

#include "intrinsics.h"

inline uint spc_fma2_f16(uint a, uint b, uint c)
{
    uint result = 0;
    for (int i = 0; i < 32; i += 16) {
        half x, y, z;
        x.bits = ushort(a >> i), y.bits = ushort(b >> i), z.bits = ushort(c >> i);
        result |= uint(half(float(double(x) * double(y) + double(z))).bits) << i;
    }
    return result;
}
inline uint spc_fma2_bf16(uint a, uint b, uint c)
{
    uint result = 0;
    for (int i = 0; i < 32; i += 16) {
        nv_bfloat16 x, y, z;
        x.bits = ushort(a >> i), y.bits = ushort(b >> i), z.bits = ushort(c >> i);
        result |= uint(nv_bfloat16(float(double(x) * double(y) + double(z))).bits) << i;
    }
    return result;
}

inline void spc_stream4(uint *to, const uint *from)
{
    uint4 found = *(const uint4 *)from;
    to[0] = found.x, to[1] = found.y, to[2] = found.z, to[3] = found.w;
}
inline void spc_stream2(uint *to, const uint *from)
{
    uint2 found = *(const uint2 *)from;
    to[0] = found.x, to[1] = found.y;
}
inline void spc_stream1(uint *to, const uint *from) { to[0] = from[0]; }
// Reads what is asked for, since an address that is not there would be a mistake.
template <class T> inline void spc_prefetch(const T *place) { (void)*(const volatile char *)place; }
inline void spc_hand_over(uint *to, float value) { *to = sim_bits<uint>(value); }
inline float spc_take_over(const uint *from) { return sim_bits<float>(*from); }

struct sim_operands {
    uint a[4], b[2];
};
// Lane 4 g + q holds of a rows g and g + 8, columns 2 q, 2 q + 1 and 8 further; of b the same rows of column g; of the sums
// columns 2 q, 2 q + 1 of both rows.
template <class Half> void sim_mma(const char *what, int line, float *sums, const sim_operands &mine)
{
    const sim_operands *all = sim::gather(what, line, 0xffffffffu, mine);
    int g = int(sim::self->lane) / 4, q = int(sim::self->lane) % 4;
    for (int out = 0; out < 4; out++) {
        int row = g + out / 2 * 8, column = 2 * q + out % 2;
        float total = sums[out];
        for (int k = 0; k < 16; k++) {
            Half a, b;
            a.bits = ushort(all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2] >> 16 * (k % 2));
            b.bits = ushort(all[column * 4 + k % 8 / 2].b[k / 8] >> 16 * (k % 2));
            total += float(a) * float(b);
        }
        sums[out] = total;
    }
}
inline void sim_mma_f16(int line, float *sums, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1)
{
    sim_mma<half>("spc_mma_f16", line, sums, {{a0, a1, a2, a3}, {b0, b1}});
}
inline void sim_mma_bf16(int line, float *sums, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1)
{
    sim_mma<nv_bfloat16>("spc_mma_bf16", line, sums, {{a0, a1, a2, a3}, {b0, b1}});
}
#define spc_mma_f16(...) sim_mma_f16(__LINE__, __VA_ARGS__)
#define spc_mma_bf16(...) sim_mma_bf16(__LINE__, __VA_ARGS__)

inline void spc_copy_async(void *to, const void *from, int bytes) { sim::copy_async(to, from, 16, unsigned(bytes)); }
inline void spc_copy_commit() { sim::copy_commit(); }
template <int PENDING> void spc_copy_wait() { sim::copy_wait(PENDING); }

struct sim_pair_operands {
    uint a[4], b[4], stored;
};
// As spc_mma, but column s of a is the one of four columns of row s / 2 * 4 of b on that `stored` names.
template <class Half, int LANES> void sim_mma_pairs(const char *what, int line, float *sums, const sim_pair_operands &mine)
{
    const sim_pair_operands *all = sim::gather(what, line, 0xffffffffu, mine);
    int g = int(sim::self->lane) / 4, q = int(sim::self->lane) % 4;
    for (int out = 0; out < 4; out++) {
        int row = g + out / 2 * 8, column = 2 * q + out % 2;
        float total = sums[out];
        for (int s = 0; s < 16; s++) {
            int four = s / 2;
            uint stored = all[row % 8 * 4 + 2 * LANES + four / 4].stored >> (row / 8 * 16 + four % 4 * 4);
            if ((stored & 3) >= (stored >> 2 & 3)) sim::fail("mma.sp: columns %u and %u of four", stored & 3, stored >> 2 & 3);
            int k = four * 4 + int(stored >> (s % 2 * 2) & 3);
            Half a, b;
            a.bits = ushort(all[row % 8 * 4 + s % 8 / 2].a[row / 8 + s / 8 * 2] >> 16 * (s % 2));
            b.bits = ushort(all[column * 4 + k % 8 / 2].b[k / 8] >> 16 * (k % 2));
            total += float(a) * float(b);
        }
        sums[out] = total;
    }
}
template <int LANES>
void spc_mma_pairs_f16(float *sums, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, uint b2, uint b3, uint stored)
{
    sim_mma_pairs<half, LANES>("spc_mma_pairs_f16", LANES, sums, {{a0, a1, a2, a3}, {b0, b1, b2, b3}, stored});
}
template <int LANES>
void spc_mma_pairs_bf16(float *sums, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, uint b2, uint b3, uint stored)
{
    sim_mma_pairs<nv_bfloat16, LANES>("spc_mma_pairs_bf16", LANES, sums, {{a0, a1, a2, a3}, {b0, b1, b2, b3}, stored});
}

inline void sim_load_matrices(int line, uint *to, const float *from)
{
    if (reinterpret_cast<uintptr_t>(from) % 16) sim::fail("ldmatrix in line %d needs addresses that are multiples of 16", line);
    const float *const *rows = sim::gather("spc_load_matrices", line, 0xffffffffu, from);
    int g = int(sim::self->lane) / 4, q = int(sim::self->lane) % 4;
    for (int i = 0; i < 4; i++) to[i] = reinterpret_cast<const uint *>(rows[8 * i + g])[q];
}
#define spc_load_matrices(...) sim_load_matrices(__LINE__, __VA_ARGS__)

inline void sim_load_turned(int line, uint *to, const float *from)
{
    if (reinterpret_cast<uintptr_t>(from) % 16) sim::fail("ldmatrix in line %d needs addresses that are multiples of 16", line);
    const float *const *rows = sim::gather("spc_load_turned", line, 0xffffffffu, from);
    int g = int(sim::self->lane) / 4, q = int(sim::self->lane) % 4;
    for (int i = 0; i < 4; i++) {
        const float *const *pair = rows + 8 * i + 2 * q;
        to[i] = reinterpret_cast<const ushort *>(pair[0])[g] | uint(reinterpret_cast<const ushort *>(pair[1])[g]) << 16;
    }
}
#define spc_load_turned(...) sim_load_turned(__LINE__, __VA_ARGS__)
