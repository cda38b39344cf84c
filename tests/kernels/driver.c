/* Runs one kernel of another architecture under an emulator: arguments from standard input, outputs to standard output.
 *
 * Input: uint32 count of pointers; for each: uint32 role (0 in, 1 out, 2 work), uint32 bytes, and the bytes unless it is work;
 * uint32 count of ranges; for each: int32 lo, hi. Output: the bytes of every out, in order. Each in ends where a page without
 * access begins, so that reading past its end is a fault; outs are followed by 64 bytes that must stay as they are.
 *
 * Without a C library: a program is then one call of the linker. What kernels call of it (memcpy, memmove, memset) is defined here. */
#include <stdint.h>

/* COUNT pointers; TYPES: void *, ..., int32_t, int32_t; POINTERS: p[0], p[1], ... The linker binds `kernel`. */
int32_t kernel(TYPES);

enum { GUARD = 64, FILLER = 0xA5 };

#if defined(__aarch64__)
enum { READ = 63, WRITE = 64, EXIT = 93, MMAP = 222, MPROTECT = 226 };
static long call(long number, long a, long b, long c, long d) {
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
                  x3 __asm__("x3") = d, x4 __asm__("x4") = -1, x5 __asm__("x5") = 0;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#elif defined(__x86_64__)
enum { READ = 0, WRITE = 1, EXIT = 60, MMAP = 9, MPROTECT = 10 };
static long call(long number, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = -1, r9 __asm__("r9") = 0;
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return number;
}
#else
#error "no system calls for this architecture"
#endif

void *memset(void *to, int value, unsigned long bytes) {
    for (volatile uint8_t *p = to; bytes; bytes--) *p++ = (uint8_t)value;
    return to;
}

void *memcpy(void *restrict to, const void *restrict from, unsigned long bytes) {
    const uint8_t *f = from;
    for (volatile uint8_t *p = to; bytes; bytes--) *p++ = *f++;
    return to;
}

void *memmove(void *to, const void *from, unsigned long bytes) {
    const uint8_t *f = from;
    volatile uint8_t *p = to;
    if (to < from)
        for (unsigned long i = 0; i < bytes; i++) p[i] = f[i];
    else
        for (; bytes; bytes--) p[bytes - 1] = f[bytes - 1];
    return to;
}

static void stop(const char *why) {
    unsigned long length = 0;
    while (why[length]) length++;
    call(WRITE, 2, (long)why, (long)length, 0);
    call(EXIT, 1, 0, 0, 0);
}

static void get(void *to, uint64_t bytes) {
    while (bytes) {
        long got = call(READ, 0, (long)to, (long)bytes, 0);
        if (got <= 0) stop("input ends early");
        to = (uint8_t *)to + got;
        bytes -= (uint64_t)got;
    }
}

static void put(const void *from, uint64_t bytes) {
    while (bytes) {
        long done = call(WRITE, 1, (long)from, (long)bytes, 0);
        if (done <= 0) stop("the outputs cannot be written");
        from = (const uint8_t *)from + done;
        bytes -= (uint64_t)done;
    }
}

static uint32_t number(void) {
    uint32_t value;
    get(&value, sizeof value);
    return value;
}

static uint8_t *guarded(uint64_t bytes) {
    uint64_t page = 65536, whole = (bytes + page - 1) / page * page;
    long base = call(MMAP, 0, (long)(whole + page), 3, 0x22); /* read and write; private, anonymous */
    if (base < 0 && base > -4096) stop("no memory");
    if (call(MPROTECT, base + (long)whole, (long)page, 0, 0)) stop("no guard page");
    return (uint8_t *)base + whole - bytes;
}

/* The stack is aligned to 16 bytes at the entry of a program, and a C function expects it as after a call. */
#if defined(__x86_64__)
__attribute__((force_align_arg_pointer))
#endif
void _start(void) {
    uint8_t *p[COUNT];
    uint32_t bytes[COUNT], roles[COUNT];
    if (number() != COUNT) stop("another number of pointers");
    for (uint32_t i = 0; i < COUNT; i++) {
        roles[i] = number();
        bytes[i] = number();
        uint64_t all = bytes[i] + (roles[i] == 1 ? GUARD : 0);
        p[i] = guarded(all);
        memset(p[i], FILLER, all);
        if (roles[i] != 2) get(p[i], bytes[i]);
    }
    uint32_t ranges = number();
    for (uint32_t r = 0; r < ranges; r++) {
        int32_t lo = (int32_t)number(), hi = (int32_t)number();
        if (kernel(POINTERS, lo, hi)) stop("the kernel did not return 0");
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        if (roles[i] != 1) continue;
        for (int j = 0; j < GUARD; j++) {
            if (p[i][bytes[i] + j] != FILLER) stop("the kernel wrote past the end of an output");
        }
        put(p[i], bytes[i]);
    }
    call(EXIT, 0, 0, 0, 0);
}
