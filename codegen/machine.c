/* What one core of this machine can do: bytes read and multiply-adds a second. machine.py runs it, in as many threads as
   it wants to load; every function works for about `seconds` and returns a rate. */

#define _POSIX_C_SOURCE 199309L
#include <stdint.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define EXPORT __attribute__((visibility("default")))
/* The compiler must believe that x changes here, so that nothing moves out of a loop. */
#define TOUCH(x) __asm__ volatile("" : "+" REGISTER(x))

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define ROUNDS 4096
#define ACCUMULATORS 12
#define MEASURE(per_round, body)                                                                                             \
    double start = now(), spent = 0;                                                                                         \
    int64_t rounds = 0;                                                                                                      \
    do {                                                                                                                     \
        for (int r = 0; r < ROUNDS; r++) {                                                                                   \
            body                                                                                                             \
        }                                                                                                                    \
        rounds += ROUNDS;                                                                                                    \
        spent = now() - start;                                                                                               \
    } while (spent < seconds);                                                                                               \
    double rate = (double)rounds * (per_round) / spent;

#if defined(__x86_64__)
#define REGISTER "x"

__attribute__((target("avx2,fma"))) static double fma_256(double seconds)
{
    __m256 acc[ACCUMULATORS], a = _mm256_set1_ps(1e-9f), b = _mm256_set1_ps(1e-9f);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = _mm256_setzero_ps();
    MEASURE(2 * 8 * ACCUMULATORS, {
        TOUCH(a);
        _Pragma("unroll") for (int i = 0; i < ACCUMULATORS; i++) acc[i] = _mm256_fmadd_ps(a, b, acc[i]);
    })
    for (int i = 0; i < ACCUMULATORS; i++)
        TOUCH(acc[i]);
    return rate;
}

__attribute__((target("avx2"))) static double int8_256(double seconds)
{
    __m256i acc[ACCUMULATORS], a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(1), one = _mm256_set1_epi16(1);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = _mm256_setzero_si256();
    MEASURE(2 * 32 * ACCUMULATORS, {
        _Pragma("unroll") for (int i = 0; i < ACCUMULATORS; i++)
        {
            TOUCH(a);
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), one));
        }
    })
    for (int i = 0; i < ACCUMULATORS; i++)
        TOUCH(acc[i]);
    return rate;
}

__attribute__((target("avx2,avxvnni"))) static double int8_256_vnni(double seconds)
{
    __m256i acc[ACCUMULATORS], a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(1);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = _mm256_setzero_si256();
    MEASURE(2 * 32 * ACCUMULATORS, {
        TOUCH(a);
        _Pragma("unroll") for (int i = 0; i < ACCUMULATORS; i++) acc[i] = _mm256_dpbusd_avx_epi32(acc[i], a, b);
    })
    for (int i = 0; i < ACCUMULATORS; i++)
        TOUCH(acc[i]);
    return rate;
}

__attribute__((target("avx2"))) static int64_t read_256(const uint8_t *data, int64_t bytes)
{
    __m256i sum[8];
    for (int i = 0; i < 8; i++)
        sum[i] = _mm256_setzero_si256();
    for (int64_t at = 0; at < bytes; at += 256) {
        _Pragma("unroll") for (int i = 0; i < 8; i++) sum[i] =
            _mm256_xor_si256(sum[i], _mm256_loadu_si256((const __m256i *)(data + at + 32 * i)));
    }
    for (int i = 1; i < 8; i++)
        sum[0] = _mm256_xor_si256(sum[0], sum[i]);
    return _mm256_extract_epi64(sum[0], 0);
}

#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl"
#define WIDE __attribute__((target(AVX512)))
#undef REGISTER
#define REGISTER "v"

WIDE static double fma_512(double seconds)
{
    __m512 acc[ACCUMULATORS], a = _mm512_set1_ps(1e-9f), b = _mm512_set1_ps(1e-9f);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = _mm512_setzero_ps();
    MEASURE(2 * 16 * ACCUMULATORS, {
        TOUCH(a);
        _Pragma("unroll") for (int i = 0; i < ACCUMULATORS; i++) acc[i] = _mm512_fmadd_ps(a, b, acc[i]);
    })
    for (int i = 0; i < ACCUMULATORS; i++)
        TOUCH(acc[i]);
    return rate;
}

WIDE static double int8_512(double seconds)
{
    __m512i acc[ACCUMULATORS], a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(1), one = _mm512_set1_epi16(1);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = _mm512_setzero_si512();
    MEASURE(2 * 64 * ACCUMULATORS, {
        _Pragma("unroll") for (int i = 0; i < ACCUMULATORS; i++)
        {
            TOUCH(a);
            acc[i] = _mm512_add_epi32(acc[i], _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), one));
        }
    })
    for (int i = 0; i < ACCUMULATORS; i++)
        TOUCH(acc[i]);
    return rate;
}

__attribute__((target(AVX512 ",avx512vnni"))) static double int8_512_vnni(double seconds)
{
    __m512i acc[ACCUMULATORS], a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(1);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = _mm512_setzero_si512();
    MEASURE(2 * 64 * ACCUMULATORS, {
        TOUCH(a);
        _Pragma("unroll") for (int i = 0; i < ACCUMULATORS; i++) acc[i] = _mm512_dpbusd_epi32(acc[i], a, b);
    })
    for (int i = 0; i < ACCUMULATORS; i++)
        TOUCH(acc[i]);
    return rate;
}

WIDE static int64_t read_512(const uint8_t *data, int64_t bytes)
{
    __m512i sum[8];
    for (int i = 0; i < 8; i++)
        sum[i] = _mm512_setzero_si512();
    for (int64_t at = 0; at < bytes; at += 512) {
        _Pragma("unroll") for (int i = 0; i < 8; i++) sum[i] =
            _mm512_xor_si512(sum[i], _mm512_loadu_si512(data + at + 64 * i));
    }
    for (int i = 1; i < 8; i++)
        sum[0] = _mm512_xor_si512(sum[0], sum[i]);
    return _mm512_reduce_add_epi64(sum[0]);
}

#define FMA(wide, seconds) ((wide) ? fma_512(seconds) : fma_256(seconds))
#define INT8(wide, dot, seconds) \
    ((wide) ? (dot) ? int8_512_vnni(seconds) : int8_512(seconds) : (dot) ? int8_256_vnni(seconds) : int8_256(seconds))
#define READ(wide, data, bytes) ((wide) ? read_512(data, bytes) : read_256(data, bytes))

#elif defined(__aarch64__)
#define REGISTER "w"

static double fma_128(double seconds)
{
    float32x4_t acc[ACCUMULATORS], a = vdupq_n_f32(1e-9f), b = vdupq_n_f32(1e-9f);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = vdupq_n_f32(0);
    MEASURE(2 * 4 * ACCUMULATORS, {
        TOUCH(a);
        _Pragma("unroll") for (int i = 0; i < ACCUMULATORS; i++) acc[i] = vfmaq_f32(acc[i], a, b);
    })
    for (int i = 0; i < ACCUMULATORS; i++)
        TOUCH(acc[i]);
    return rate;
}

__attribute__((target("dotprod"))) static double int8_dot(double seconds)
{
    int32x4_t acc[ACCUMULATORS];
    int8x16_t a = vdupq_n_s8(1), b = vdupq_n_s8(1);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = vdupq_n_s32(0);
    MEASURE(2 * 16 * ACCUMULATORS, {
        TOUCH(a);
        _Pragma("unroll") for (int i = 0; i < ACCUMULATORS; i++) acc[i] = vdotq_s32(acc[i], a, b);
    })
    for (int i = 0; i < ACCUMULATORS; i++)
        TOUCH(acc[i]);
    return rate;
}

__attribute__((target("i8mm"))) static double int8_matrix(double seconds)
{
    int32x4_t acc[ACCUMULATORS];
    int8x16_t a = vdupq_n_s8(1), b = vdupq_n_s8(1);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = vdupq_n_s32(0);
    MEASURE(2 * 32 * ACCUMULATORS, {
        TOUCH(a);
        _Pragma("unroll") for (int i = 0; i < ACCUMULATORS; i++) acc[i] = vmmlaq_s32(acc[i], a, b);
    })
    for (int i = 0; i < ACCUMULATORS; i++)
        TOUCH(acc[i]);
    return rate;
}

static double int8_128(double seconds)
{
    int32x4_t acc[ACCUMULATORS];
    int8x8_t a = vdup_n_s8(1), b = vdup_n_s8(1);
    for (int i = 0; i < ACCUMULATORS; i++)
        acc[i] = vdupq_n_s32(0);
    MEASURE(2 * 8 * ACCUMULATORS, {
        _Pragma("unroll") for (int i = 0; i < ACCUMULATORS; i++)
        {
            TOUCH(a);
            acc[i] = vpadalq_s16(acc[i], vmull_s8(a, b));
        }
    })
    for (int i = 0; i < ACCUMULATORS; i++)
        TOUCH(acc[i]);
    return rate;
}

static int64_t read_128(const uint8_t *data, int64_t bytes)
{
    uint8x16_t sum[8];
    for (int i = 0; i < 8; i++)
        sum[i] = vdupq_n_u8(0);
    for (int64_t at = 0; at < bytes; at += 128) {
        _Pragma("unroll") for (int i = 0; i < 8; i++) sum[i] = veorq_u8(sum[i], vld1q_u8(data + at + 16 * i));
    }
    for (int i = 1; i < 8; i++)
        sum[0] = veorq_u8(sum[0], sum[i]);
    return vgetq_lane_s64(vreinterpretq_s64_u8(sum[0]), 0);
}

#define FMA(wide, seconds) ((void)(wide), fma_128(seconds))
#define INT8(wide, dot, seconds) ((wide) ? int8_matrix(seconds) : (dot) ? int8_dot(seconds) : int8_128(seconds))
#define READ(wide, data, bytes) ((void)(wide), read_128(data, bytes))
#endif

/* Floating-point operations a second (a multiply-add is two). `wide`: AVX-512 on x86-64. */
EXPORT double spc_machine_fma(int wide, double seconds) { return FMA(wide, seconds); }

/* Operations on bytes a second, summed into 32 bits. `wide`: AVX-512 on x86-64, the matrix product on aarch64. `dot`: by the
   instruction that adds four products at once (VNNI, the dot product). */
EXPORT double spc_machine_int8(int wide, int dot, double seconds) { return INT8(wide, dot, seconds); }

/* Bytes read a second, over and over from `data`; `bytes` is a multiple of 512. `wide`: AVX-512 on x86-64. */
EXPORT double spc_machine_read(int wide, const uint8_t *data, int64_t bytes, double seconds)
{
    volatile int64_t keep = 0;
    double start = now(), spent = 0, total = 0;
    int64_t batch = bytes < (1 << 20) ? (1 << 20) / bytes : 1;
    do {
        for (int64_t i = 0; i < batch; i++)
            keep += READ(wide, data, bytes);
        total += (double)batch * (double)bytes;
        spent = now() - start;
    } while (spent < seconds);
    return total / spent;
}
