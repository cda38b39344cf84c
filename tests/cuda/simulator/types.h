// CUDA's number types in plain C++: half and bfloat16 as in device.cuh, vectors with their alignment.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;

template <class To, class From> inline To sim_bits(const From &from)
{
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(static_cast<void *>(&to), static_cast<const void *>(&from), sizeof to);
    return to;
}

// Bits of the nearest half, ties to even.
inline uint16_t sim_to_half(float value)
{
    uint16_t sign = uint16_t(sim_bits<uint32_t>(value) >> 16 & 0x8000);
    float size = fabsf(value);
    if (value != value) return uint16_t(sign | 0x7fff);
    if (size >= 65520.0f) return uint16_t(sign | 0x7c00);
    int exponent = size >= 6.103515625e-05f ? ilogbf(size) : -14;
    float units = nearbyintf(ldexpf(size, 10 - exponent));  // a whole number up to 2048
    return uint16_t(sign | (unsigned(units) + (unsigned(exponent + 14) << 10)));
}

inline float sim_from_half(uint16_t bits)
{
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                 : exponent     ? ldexpf(float(mantissa + 1024), exponent - 25)
                                : ldexpf(float(mantissa), -24);
    return bits & 0x8000 ? -size : size;
}

inline uint16_t sim_to_bfloat16(float value)
{
    uint32_t bits = sim_bits<uint32_t>(value);
    if (value != value) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float sim_from_bfloat16(uint16_t bits) { return sim_bits<float>(uint32_t(bits) << 16); }

// A 16-bit float in memory, as in device.cuh: arithmetic is float.
template <uint16_t (*Round)(float), float (*Value)(uint16_t)> struct sim_float16 {
    ushort bits;

    sim_float16() = default;
    sim_float16(float value) : bits(Round(value)) {}
    operator float() const { return Value(bits); }
};
typedef sim_float16<sim_to_half, sim_from_half> half;
typedef sim_float16<sim_to_bfloat16, sim_from_bfloat16> nv_bfloat16;

// Copies go member by member through a reference: the compiler's check of references finds addresses that are not aligned.
#define SIM_COPIES(type, members) \
    type() = default; \
    type(const type &from) { *this = from; } \
    type &operator=(const type &from) { members; return *this; }

#define SIM_VECTORS(name, type, align2, align4) \
    struct name##1 { type x; }; \
    struct alignas(align2) name##2 { \
        type x, y; \
        name##2(type x, type y) : x(x), y(y) {} \
        SIM_COPIES(name##2, (x = from.x, y = from.y)) \
    }; \
    struct name##3 { type x, y, z; }; \
    struct alignas(align4) name##4 { \
        type x, y, z, w; \
        name##4(type x, type y, type z, type w) : x(x), y(y), z(z), w(w) {} \
        SIM_COPIES(name##4, (x = from.x, y = from.y, z = from.z, w = from.w)) \
    }; \
    inline name##1 make_##name##1(type x) { return {x}; } \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

SIM_VECTORS(char, signed char, 2, 4)
SIM_VECTORS(uchar, unsigned char, 2, 4)
SIM_VECTORS(short, short, 4, 8)
SIM_VECTORS(ushort, unsigned short, 4, 8)
SIM_VECTORS(int, int, 8, 16)
SIM_VECTORS(uint, unsigned, 8, 16)
SIM_VECTORS(longlong, long long, 16, 16)
SIM_VECTORS(ulonglong, unsigned long long, 16, 16)
SIM_VECTORS(float, float, 8, 16)
SIM_VECTORS(double, double, 16, 16)
