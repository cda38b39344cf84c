// What generated GPU kernels are written in: halves, and small device functions around the machine's instructions.
// Inline assembly lives here alone. No header of the CUDA toolkit is needed.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
#ifdef __CUDACC_RTC__ // nvcc has those of the host's C library, where int64_t may be `long`
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

#define SPC_DEVICE static __device__ __forceinline__

// ---------------------------------------------------------------- halves: storage types, all arithmetic is float

// IEEE half in memory.
struct half {
  ushort bits;
  half() = default;
  __device__ __forceinline__ half(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
  __device__ __forceinline__ operator float() const {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
};

// bfloat16 in memory: the upper half of a float, rounded to nearest even.
struct nv_bfloat16 {
  ushort bits;
  nv_bfloat16() = default;
  __device__ __forceinline__ nv_bfloat16(float value) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
  __device__ __forceinline__ operator float() const { return __uint_as_float((uint)bits << 16); }
};

// ---------------------------------------------------------------- warps

// What the lane with `bits` of its number flipped has.
template <class T> SPC_DEVICE T spc_lane_xor(T value, int bits) { return __shfl_xor_sync(0xffffffffu, value, bits); }
// Sum over the 32 lanes of a warp, in every lane.
SPC_DEVICE float spc_warp_sum(float value) {
  for (int lane = 16; lane; lane >>= 1) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

// ---------------------------------------------------------------- runs of neighbouring elements

SPC_DEVICE bool spc_aligned16(const void *place) { return ((size_t)place & 15) == 0; }
SPC_DEVICE bool spc_aligned8(const void *place) { return ((size_t)place & 7) == 0; }
// 16 or 8 bytes at once, both places aligned.
SPC_DEVICE void spc_move16(void *to, const void *from) { *(uint4 *)to = *(const uint4 *)from; }
SPC_DEVICE void spc_move8(void *to, const void *from) { *(uint2 *)to = *(const uint2 *)from; }

// ---------------------------------------------------------------- what processor families ask of a machine (generic.py)

#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fc00000)
#define CUDART_INF ((double)CUDART_INF_F)
#define CUDART_NAN ((double)CUDART_NAN_F)

SPC_DEVICE float spc_fma(float a, float b, float c) { return fmaf(a, b, c); }
SPC_DEVICE double spc_fma(double a, double b, double c) { return fma(a, b, c); }
SPC_DEVICE float spc_ceil(float x) { return ceilf(x); }
SPC_DEVICE double spc_ceil(double x) { return ceil(x); }
SPC_DEVICE float spc_floor(float x) { return floorf(x); }
SPC_DEVICE double spc_floor(double x) { return floor(x); }
SPC_DEVICE float spc_rint(float x) { return rintf(x); }
SPC_DEVICE double spc_rint(double x) { return rint(x); }
// Maximum and minimum of which NaN is either operand's.
SPC_DEVICE float spc_maximum(float a, float b) { return a != a ? a : b != b ? b : a > b ? a : b; }
SPC_DEVICE double spc_maximum(double a, double b) { return a != a ? a : b != b ? b : a > b ? a : b; }
SPC_DEVICE float spc_minimum(float a, float b) { return a != a ? a : b != b ? b : a < b ? a : b; }
SPC_DEVICE double spc_minimum(double a, double b) { return a != a ? a : b != b ? b : a < b ? a : b; }
// Maximum and minimum that are b where either operand is NaN.
SPC_DEVICE float spc_larger(float a, float b) { return a > b ? a : b; }
SPC_DEVICE double spc_larger(double a, double b) { return a > b ? a : b; }
SPC_DEVICE float spc_smaller(float a, float b) { return a < b ? a : b; }
SPC_DEVICE double spc_smaller(double a, double b) { return a < b ? a : b; }
// Note an error for the host: the code of the first thread that finds one stays.
SPC_DEVICE int spc_fail(int *status, int code) { return atomicCAS(status, 0, code); }

// ---------------------------------------------------------------- activations (sparsec/activations.py)

SPC_DEVICE float spc_clip(float x, float low, float high) { return x < low ? low : x > high ? high : x; }  // NaN stays
SPC_DEVICE float spc_relu(float x) { return x < 0.0f ? 0.0f : x; }
SPC_DEVICE float spc_relu6(float x) { return spc_clip(x, 0.0f, 6.0f); }
SPC_DEVICE float spc_sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }
SPC_DEVICE float spc_silu(float x) { return x / (1.0f + __expf(-x)); }
SPC_DEVICE float spc_tanh(float x) { return tanhf(x); }
SPC_DEVICE float spc_gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
// 0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
SPC_DEVICE float spc_gelu_tanh(float x) { return x * spc_sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }
SPC_DEVICE float spc_hardsigmoid(float x, float alpha, float beta) { return spc_clip(alpha * x + beta, 0.0f, 1.0f); }
SPC_DEVICE float spc_hardswish(float x) { return x * spc_hardsigmoid(x, 0.16666667f, 0.5f); }
SPC_DEVICE float spc_leakyrelu(float x, float alpha) { return x < 0.0f ? alpha * x : x; }

// ---------------------------------------------------------------- pairs: two halves in a word, the first one low

SPC_DEVICE uint spc_pair_f16(float low, float high) { return half(low).bits | (uint)half(high).bits << 16; }
SPC_DEVICE uint spc_pair_bf16(float low, float high) {
  return nv_bfloat16(low).bits | (uint)nv_bfloat16(high).bits << 16;
}

// a * b + c on both halves, rounded once.
SPC_DEVICE uint spc_fma2_f16(uint a, uint b, uint c) {
  uint result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
SPC_DEVICE uint spc_fma2_bf16(uint a, uint b, uint c) {
  uint result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// ---------------------------------------------------------------- codes (codegen/cuda/decode.py)

// Words that are read once: they go past the first level of cache.
SPC_DEVICE void spc_stream4(uint *to, const uint *from) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "l"(from));
}
SPC_DEVICE void spc_stream2(uint *to, const uint *from) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from));
}
SPC_DEVICE void spc_stream1(uint *to, const uint *from) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(to[0]) : "l"(from));
}

// WORDS words at once.
template <int WORDS, class T>
SPC_DEVICE void spc_read(uint *to, const T *from) {
  if (WORDS == 1) to[0] = *(const uint *)from;
  if (WORDS == 2) {
    uint2 found = *(const uint2 *)from;
    to[0] = found.x, to[1] = found.y;
  }
  if (WORDS == 4) {
    uint4 found = *(const uint4 *)from;
    to[0] = found.x, to[1] = found.y, to[2] = found.z, to[3] = found.w;
  }
}

// 2, 4 or 8 bytes at once.
template <int BYTES>
SPC_DEVICE void spc_read_bytes(uint *to, const uchar *from) {
  if (BYTES == 2) to[0] = *(const ushort *)from;
  if (BYTES == 4) to[0] = *(const uint *)from;
  if (BYTES == 8) {
    uint2 found = *(const uint2 *)from;
    to[0] = found.x, to[1] = found.y;
  }
}

// Ask for what is going to be read: it comes to the second level of cache.
template <class T> SPC_DEVICE void spc_prefetch(const T *place) { asm volatile("prefetch.global.L2 [%0];" ::"l"(place)); }
// The fp16 scale at bit `shift` of a word.
SPC_DEVICE float spc_scale(uint word, int shift) {
  half scale;
  scale.bits = (ushort)(word >> shift);
  return scale;
}
// The same twice, as the storage type.
SPC_DEVICE uint spc_scale_f16(uint word, int shift) { return __byte_perm(word, 0, shift ? 0x3232 : 0x1010); }
SPC_DEVICE uint spc_scale_bf16(uint word, int shift) {
  half scale;
  scale.bits = (ushort)(word >> shift);
  return spc_pair_bf16(scale, scale);
}

// Minus the byte at bit `shift` of a word, twice.
SPC_DEVICE uint spc_minus_f16(uint word, int shift) {
  float value = -(float)((word >> shift) & 255u);
  return spc_pair_f16(value, value);
}
SPC_DEVICE uint spc_minus_bf16(uint word, int shift) {
  float value = -(float)((word >> shift) & 255u);
  return spc_pair_bf16(value, value);
}

// What the lanes before this one count, in the warp and in the lane's four.
template <int LANES>
SPC_DEVICE int spc_before(int count) {
  int sum = count, lane = threadIdx.x & (LANES - 1);
  for (int by = 1; by < LANES; by <<= 1) {
    int other = __shfl_up_sync(0xffffffffu, sum, by);
    if (lane >= by) sum += other;
  }
  return sum - count;
}
SPC_DEVICE int spc_warp_before(int count) { return spc_before<32>(count); }
SPC_DEVICE int spc_quad_before(int count) { return spc_before<4>(count); }

// The code at `bit` of what a mask says is stored, 0 where nothing is; those of the mask begin with number `first`.
template <int BITS>
SPC_DEVICE uint spc_stored(const uchar *codes, uint mask, int bit, int first) {
  if (!(mask >> bit & 1u)) return 0;
  uint number = first + __popc(mask & ((1u << bit) - 1u));
  if (BITS == 32) return ((const uint *)codes)[number];
  if (BITS == 16) return ((const ushort *)codes)[number];
  const uint each = BITS < 8 ? 8 / BITS : 1;  // of a byte; bits are not counted, there may be more than 2^32
  return codes[number / each] >> number % each * BITS & ((1u << BITS % 32) - 1u);
}

// (value - zero) * scale for both halves of a word, nothing where `there` is 0.
SPC_DEVICE uint spc_scaled_f16(uint word, float zero, float scale, int there) {
  half low, high;
  low.bits = (ushort)word, high.bits = (ushort)(word >> 16);
  return there ? spc_pair_f16(((float)low - zero) * scale, ((float)high - zero) * scale) : 0;
}
SPC_DEVICE uint spc_scaled_bf16(uint word, float zero, float scale, int there) {
  nv_bfloat16 low, high;
  low.bits = (ushort)word, high.bits = (ushort)(word >> 16);
  return there ? spc_pair_bf16(((float)low - zero) * scale, ((float)high - zero) * scale) : 0;
}

// A field of each half of a word, as the mantissa of a float ("magic" is its exponent).
SPC_DEVICE uint spc_field(uint word, int shift, uint mask, uint magic) { return ((word >> shift) & mask) | magic; }

// Where the entry of a table lies: `bits` bits from bit `at` of two words on, times 2^shift, plus `copy` below 2^shift.
SPC_DEVICE uint spc_index(uint low, uint high, int at, int bits, int shift, uint copy) {
  uint moved = at >= shift ? __funnelshift_r(low, high, at - shift) : low << (shift - at);
  return (moved & (((1u << bits) - 1u) << shift)) | copy;
}

// An entry of a table in shared memory, `offset` bytes from its start.
template <int WORDS>
SPC_DEVICE void spc_entry(uint *to, const float *table, uint offset) {
  spc_read<WORDS>(to, (const char *)table + offset);
}

// A table of entries of WORDS words, each COPIES times in a row, written to shared memory by all threads of a block. Neighbouring
// threads begin at different columns, so that they write to different banks.
template <int WORDS, int COPIES>
SPC_DEVICE void spc_fill_table(float *to, const uint *from, int entries, int thread, int threads) {
  const int row = WORDS * COPIES;
  for (int entry = thread; entry < entries; entry += threads) {
    uint *line = (uint *)to + entry * row;
    uint found[WORDS];
    for (int i = 0; i < WORDS; i++) found[i] = from[entry * WORDS + i];
    if (row % 4 == 0) {
      for (int i = 0; i < row / 4; i++) {
        int column = (i + thread) % (row / 4) * 4;
        *(uint4 *)(line + column) = make_uint4(found[0], found[1 % WORDS], found[2 % WORDS], found[3 % WORDS]);
      }
    } else {
      for (int i = 0; i < row; i++) line[i] = found[i % WORDS];
    }
  }
}

// ---------------------------------------------------------------- sums of several blocks (codegen/cuda/shares.py)

// A float that another block reads: multiprocessors do not share the first level of cache, so it goes past that.
SPC_DEVICE void spc_hand_over(uint *to, float value) { asm volatile("st.global.cg.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory"); }
SPC_DEVICE float spc_take_over(const uint *from) {
  float value;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
  return value;
}

// Called by all threads of a block when they have handed over: whether it is the last of `parts` blocks, and so may take over from all.
// The counter is zero before the first one and after the last. `flag`: a word of shared memory.
SPC_DEVICE int spc_is_last(int *counter, int parts, float *flag) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *(int *)flag = atomicInc((uint *)counter, (uint)parts - 1u) == (uint)parts - 1u;
    __threadfence();
  }
  __syncthreads();
  return *(int *)flag;
}

// ---------------------------------------------------------------- the other operand: 16 inputs of a row as 8 pairs

// `left` inputs are there, zeros follow; VECTOR: inputs that may be read at once (8: addresses and `left` are multiples of that).
template <int VECTOR, class T>
SPC_DEVICE void spc_inputs_f16(uint *to, const T *from, int left) {
  for (int i = 0; i < 8; i++) {
    float low = 2 * i < left ? (float)from[2 * i] : 0.0f, high = 2 * i + 1 < left ? (float)from[2 * i + 1] : 0.0f;
    to[i] = spc_pair_f16(low, high);
  }
}
template <int VECTOR, class T>
SPC_DEVICE void spc_inputs_bf16(uint *to, const T *from, int left) {
  for (int i = 0; i < 8; i++) {
    float low = 2 * i < left ? (float)from[2 * i] : 0.0f, high = 2 * i + 1 < left ? (float)from[2 * i + 1] : 0.0f;
    to[i] = spc_pair_bf16(low, high);
  }
}
// The same of inputs that are stored as they are multiplied.
template <int VECTOR>
SPC_DEVICE void spc_words16(uint *to, const ushort *from, int left) {
  for (int i = 0; i < 2; i++) {
    uint4 found = make_uint4(0, 0, 0, 0);
    if (VECTOR == 8) {
      if (8 * i < left) found = *(const uint4 *)(from + 8 * i);
      to[4 * i] = found.x, to[4 * i + 1] = found.y, to[4 * i + 2] = found.z, to[4 * i + 3] = found.w;
    } else {
      for (int j = 8 * i; j < 8 * i + 8; j += 2) {
        uint low = j < left ? from[j] : 0, high = j + 1 < left ? from[j + 1] : 0;
        to[j / 2] = low | high << 16;
      }
    }
  }
}
template <int VECTOR>
SPC_DEVICE void spc_inputs_f16(uint *to, const half *from, int left) { spc_words16<VECTOR>(to, (const ushort *)from, left); }
template <int VECTOR>
SPC_DEVICE void spc_inputs_bf16(uint *to, const nv_bfloat16 *from, int left) {
  spc_words16<VECTOR>(to, (const ushort *)from, left);
}

// 128 inputs of a row in steps of 8: pairs 2 q, 2 q + 1 of each, as spc_mma_pairs takes them; `left` inputs are there.
template <int VECTOR, class T>
SPC_DEVICE void spc_pairs_f16(uint *to, const T *from, int q, int left) {
  for (int i = 0; i < 16; i++) {
    int at = 8 * i + 2 * q;
    float low = at < left ? (float)from[at] : 0.0f, high = at + 1 < left ? (float)from[at + 1] : 0.0f;
    to[i] = spc_pair_f16(low, high);
  }
}
template <int VECTOR, class T>
SPC_DEVICE void spc_pairs_bf16(uint *to, const T *from, int q, int left) {
  for (int i = 0; i < 16; i++) {
    int at = 8 * i + 2 * q;
    float low = at < left ? (float)from[at] : 0.0f, high = at + 1 < left ? (float)from[at + 1] : 0.0f;
    to[i] = spc_pair_bf16(low, high);
  }
}
template <int VECTOR>
SPC_DEVICE void spc_pair_words(uint *to, const ushort *from, int q, int left) {
  for (int i = 0; i < 16; i++) {
    int at = 8 * i + 2 * q;
    if (VECTOR == 8) {
      to[i] = at < left ? *(const uint *)(from + at) : 0;
    } else {
      uint low = at < left ? from[at] : 0, high = at + 1 < left ? from[at + 1] : 0;
      to[i] = low | high << 16;
    }
  }
}
template <int VECTOR>
SPC_DEVICE void spc_pairs_f16(uint *to, const half *from, int q, int left) {
  spc_pair_words<VECTOR>(to, (const ushort *)from, q, left);
}
template <int VECTOR>
SPC_DEVICE void spc_pairs_bf16(uint *to, const nv_bfloat16 *from, int q, int left) {
  spc_pair_words<VECTOR>(to, (const ushort *)from, q, left);
}

// ---------------------------------------------------------------- inputs of strips (codegen/cuda/strips.py)

SPC_DEVICE ushort spc_bits_f16(half value) { return value.bits; }
SPC_DEVICE ushort spc_bits_f16(float value) { return half(value).bits; }
SPC_DEVICE ushort spc_bits_bf16(nv_bfloat16 value) { return value.bits; }
SPC_DEVICE ushort spc_bits_bf16(float value) { return nv_bfloat16(value).bits; }

// The stored positions of a strip, in order, from its bitmap; all threads of a block. ranks: how many are stored before every 256
// positions, and in all. From the last one on, up to `padded`, the list has 65535.
SPC_DEVICE void spc_list_positions(float *to, const uint *bitmap, const ushort *ranks, int octets, int padded, int thread, int threads) {
  ushort *list = (ushort *)to;
  for (int place = thread; place < octets * 32; place += threads) {
    int rank = ranks[place / 32];
    for (int word = place / 32 * 8; word < place / 4; word++) rank += __popc(bitmap[word]);
    uint bits = bitmap[place / 4];
    rank += __popc(bits & ((1u << place % 4 * 8) - 1u));
    bits = bits >> place % 4 * 8;
    for (int i = 0; i < 8; i++)
      if (bits >> i & 1u) list[rank++] = (ushort)(place * 8 + i);
  }
  for (int rank = ranks[octets] + thread; rank < padded; rank += threads) list[rank] = 65535;
}

// 16 inputs of a row, in codes of DIM neighbours at the positions of a list. `inputs`: how many the row has, 0 for no row.
template <int DIM, class T>
SPC_DEVICE void spc_listed_f16(uint *to, const T *row, const float *list, int at, int inputs) {
  ushort found[16];
  for (int i = 0; i < 16 / DIM; i++) {
    int first = ((const ushort *)list)[at + i] * DIM;
    for (int j = 0; j < DIM; j++) found[DIM * i + j] = first + j < inputs ? spc_bits_f16(row[first + j]) : (ushort)0;
  }
  for (int i = 0; i < 8; i++) to[i] = found[2 * i] | (uint)found[2 * i + 1] << 16;
}
template <int DIM, class T>
SPC_DEVICE void spc_listed_bf16(uint *to, const T *row, const float *list, int at, int inputs) {
  ushort found[16];
  for (int i = 0; i < 16 / DIM; i++) {
    int first = ((const ushort *)list)[at + i] * DIM;
    for (int j = 0; j < DIM; j++) found[DIM * i + j] = first + j < inputs ? spc_bits_bf16(row[first + j]) : (ushort)0;
  }
  for (int i = 0; i < 8; i++) to[i] = found[2 * i] | (uint)found[2 * i + 1] << 16;
}

// ---------------------------------------------------------------- inputs in shared memory (codegen/cuda/kernels/gemm.py)

// 16 bytes from global to shared memory while the thread goes on; only the first `bytes` of them are read, zeros follow.
SPC_DEVICE void spc_copy_async(void *to, const void *from, int bytes) {
  uint place = (uint)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(bytes));
}
// Everything this thread began to copy since the last commit is one group.
SPC_DEVICE void spc_copy_commit() { asm volatile("cp.async.commit_group;"); }
// Wait until all but the last PENDING groups of this thread have arrived.
template <int PENDING>
SPC_DEVICE void spc_copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING)); }

// 8 inputs of a row to shared memory: converted, or (VECTOR 8, as they are multiplied) copied without waiting.
template <int VECTOR, class T>
SPC_DEVICE void spc_stage_f16(float *to, const T *from, int left) {
  uint pairs[4];
  for (int i = 0; i < 4; i++) {
    float low = 2 * i < left ? (float)from[2 * i] : 0.0f, high = 2 * i + 1 < left ? (float)from[2 * i + 1] : 0.0f;
    pairs[i] = spc_pair_f16(low, high);
  }
  *(uint4 *)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
template <int VECTOR, class T>
SPC_DEVICE void spc_stage_bf16(float *to, const T *from, int left) {
  uint pairs[4];
  for (int i = 0; i < 4; i++) {
    float low = 2 * i < left ? (float)from[2 * i] : 0.0f, high = 2 * i + 1 < left ? (float)from[2 * i + 1] : 0.0f;
    pairs[i] = spc_pair_bf16(low, high);
  }
  *(uint4 *)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
template <int VECTOR>
SPC_DEVICE void spc_stage_words(float *to, const ushort *from, int left) {
  if (VECTOR == 8) {
    spc_copy_async(to, from, left > 0 ? 16 : 0);
    return;
  }
  uint pairs[4];
  for (int i = 0; i < 4; i++) {
    uint low = 2 * i < left ? from[2 * i] : 0, high = 2 * i + 1 < left ? from[2 * i + 1] : 0;
    pairs[i] = low | high << 16;
  }
  *(uint4 *)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
template <int VECTOR>
SPC_DEVICE void spc_stage_f16(float *to, const half *from, int left) {
  spc_stage_words<VECTOR>(to, (const ushort *)from, left);
}
template <int VECTOR>
SPC_DEVICE void spc_stage_bf16(float *to, const nv_bfloat16 *from, int left) {
  spc_stage_words<VECTOR>(to, (const ushort *)from, left);
}

// 8 neighbours to shared memory, of which `left` are there: copied without waiting where they are stored as they are multiplied and their
// address allows it.
SPC_DEVICE void spc_fetch_words(float *to, const ushort *from, int left) {
  if (left >= 8 && spc_aligned16(from))
    spc_copy_async(to, from, 16);
  else
    spc_stage_words<1>(to, from, left);
}
template <class T> SPC_DEVICE void spc_fetch_f16(float *to, const T *from, int left) { spc_stage_f16<1>(to, from, left); }
template <class T> SPC_DEVICE void spc_fetch_bf16(float *to, const T *from, int left) { spc_stage_bf16<1>(to, from, left); }
SPC_DEVICE void spc_fetch_f16(float *to, const half *from, int left) { spc_fetch_words(to, (const ushort *)from, left); }
SPC_DEVICE void spc_fetch_bf16(float *to, const nv_bfloat16 *from, int left) { spc_fetch_words(to, (const ushort *)from, left); }

// Where an input of a receptive field lies in an image, -1 if outside. first: where the field's first pixel would be, in line y, column x;
// place: how many elements further the input is, and how many lines (upper 16 bits) and columns.
SPC_DEVICE int spc_place(const int *place, int first, int y, int x, int height, int width) {
  int line = y + (place[1] >> 16), column = x + (place[1] & 65535);
  return line >= 0 && line < height && column >= 0 && column < width ? first + place[0] : -1;
}
// 8 inputs of a receptive field to shared memory, each from its own of `places`; zeros in place of what is outside, and behind `left` inputs.
template <class T>
SPC_DEVICE void spc_stage_taps_f16(float *to, const T *image, int first, const int *places, int y, int x, int height, int width, int left) {
  uint pairs[4] = {0, 0, 0, 0};
  for (int i = 0; i < 8; i++) {
    int at = i < left ? spc_place(places + 2 * i, first, y, x, height, width) : -1;
    if (at >= 0) pairs[i / 2] |= (uint)spc_bits_f16(image[at]) << i % 2 * 16;
  }
  *(uint4 *)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}
template <class T>
SPC_DEVICE void spc_stage_taps_bf16(float *to, const T *image, int first, const int *places, int y, int x, int height, int width, int left) {
  uint pairs[4] = {0, 0, 0, 0};
  for (int i = 0; i < 8; i++) {
    int at = i < left ? spc_place(places + 2 * i, first, y, x, height, width) : -1;
    if (at >= 0) pairs[i / 2] |= (uint)spc_bits_bf16(image[at]) << i % 2 * 16;
  }
  *(uint4 *)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// ---------------------------------------------------------------- tensor cores

// sums[16 x 8] += a[16 x 16] * b[16 x 8]. Lane 4 g + q: a0 (row g, columns 2 q, 2 q + 1), a1 (row g + 8), a2 and a3 the same 8 columns
// further; b0 (rows 2 q, 2 q + 1 of column g), b1 8 rows further; sums (row g, columns 2 q, 2 q + 1), (row g + 8, the same).
SPC_DEVICE void spc_mma_f16(float *sums, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
SPC_DEVICE void spc_mma_bf16(float *sums, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same where a stores two of every four columns: sums[16 x 8] += a[16 x 32] * b[32 x 8]. a has the stored ones in order; b0 to b3: rows
// 2 q, 2 q + 1 and 8, 16, 24 further; `stored` comes from lanes 4 g + 2 LANES (columns 0 to 15) and the next one (16 to 31): for every
// four columns of row g two numbers of two bits, low bits first, and 16 bits higher those of row g + 8.
template <int LANES>
SPC_DEVICE void spc_mma_pairs_f16(float *sums, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, uint b2, uint b3, uint stored) {
  asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
               "{%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(b2), "r"(b3), "r"(stored), "n"(LANES));
}
template <int LANES>
SPC_DEVICE void spc_mma_pairs_bf16(float *sums, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1, uint b2, uint b3, uint stored) {
  asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
               "{%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(b2), "r"(b3), "r"(stored), "n"(LANES));
}

// Four 8 x 8 matrices of halves from shared memory: lane l says where 8 neighbours of row l % 8 of matrix l / 8 lie; lane 4 g + q gets
// elements 2 q, 2 q + 1 of row g of each.
SPC_DEVICE void spc_load_matrices(uint *to, const float *from) {
  uint place = (uint)__cvta_generic_to_shared(from);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(place));
}
// The same four, turned: lane 4 g + q gets elements g of rows 2 q and 2 q + 1 of each.
SPC_DEVICE void spc_load_turned(uint *to, const float *from) {
  uint place = (uint)__cvta_generic_to_shared(from);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(place));
}
