/* Whether this processor can run the kernels: an error is better than an illegal instruction. */
#define _GNU_SOURCE
#include "spc_internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t enabled_state(void) /* which registers the operating system saves */
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

static uint32_t present(void)
{
    uint32_t a, b, c, d, found = 0;
    const uint32_t osxsave = 1u << 27, fma = 1u << 12, avx2 = 1u << 5;
    const uint32_t avx512 = (1u << 16) | (1u << 17) | (1u << 28) | (1u << 30) | (1u << 31); /* F DQ CD BW VL */
    const uint32_t avx512_vnni = 1u << 11, avx_vnni = 1u << 4;
    const uint32_t avx512_vbmi2 = (1u << 1) | (1u << 6); /* VBMI too */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & osxsave)) return 0;
    uint64_t state = enabled_state();
    if ((state & 0x6u) != 0x6u) return 0; /* xmm and ymm */
    if (c & fma) found |= SPC_CPU_FMA;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    if (b & avx2) found |= SPC_CPU_AVX2;
    if ((b & avx512) == avx512 && (state & 0xe6u) == 0xe6u) {
        found |= SPC_CPU_AVX512;
        if (c & avx512_vnni) found |= SPC_CPU_AVX512_VNNI;
        if ((c & avx512_vbmi2) == avx512_vbmi2) found |= SPC_CPU_AVX512_VBMI2;
    }
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & avx_vnni)) found |= SPC_CPU_AVX_VNNI;
    return found;
}

#elif defined(__aarch64__) && defined(__linux__) && !defined(SPC_NO_HOST)
#include <sys/auxv.h>

static uint32_t present(void)
{
    const unsigned long asimddp = 1ul << 20, i8mm = 1ul << 13; /* HWCAP_ASIMDDP, HWCAP2_I8MM */
    uint32_t found = 0;
    if (getauxval(AT_HWCAP) & asimddp) found |= SPC_CPU_DOTPROD;
    if (getauxval(AT_HWCAP2) & i8mm) found |= SPC_CPU_I8MM;
    return found;
}

#else

/* Nothing to ask: the builder of the firmware chose the target. */
static uint32_t present(void) { return UINT32_MAX; }

#endif

int32_t spc_cpu_check(uint32_t needed) { return (needed & ~present()) == 0 ? SPC_OK : SPC_E_CPU; }
