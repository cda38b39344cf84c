// What generated GPU kernels are written in: halves, and small device functions around the machine's instructions.
// Inline assembly lives here alone. No header of the CUDA toolkit is needed.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

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
