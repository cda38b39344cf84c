/* Runs one kernel of another architecture under an emulator: arguments from standard input, outputs to standard output.
 *
 * Input: uint32 count of pointers; for each: uint32 role (0 in, 1 out, 2 work), uint32 bytes, and the bytes unless it is work;
 * uint32 count of ranges; for each: int32 lo, hi. Output: the bytes of every out, in order. Each in ends where a page without
 * access begins, so that reading past its end is a fault; outs are followed by 64 bytes that must stay as they are. */
#define _DEFAULT_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* KERNEL: the symbol; TYPES: void *, ..., int32_t, int32_t; POINTERS: p[0], p[1], ... */
int32_t KERNEL(TYPES);

enum { MOST = 24, GUARD = 64, FILLER = 0xA5 };

static void get(void *to, size_t bytes) {
    if (bytes && fread(to, 1, bytes, stdin) != bytes) {
        fprintf(stderr, "input ends early\n");
        exit(2);
    }
}

static uint32_t number(void) {
    uint32_t value;
    get(&value, sizeof value);
    return value;
}

static uint8_t *guarded(size_t bytes) {
    size_t page = 65536, whole = (bytes + page - 1) / page * page;
    uint8_t *base = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base + whole, page, PROT_NONE)) {
        perror("mmap");
        exit(2);
    }
    return base + whole - bytes;
}

int main(void) {
    uint8_t *p[MOST] = {0};
    uint32_t bytes[MOST], roles[MOST], count = number();
    if (count > MOST) return 2;
    for (uint32_t i = 0; i < count; i++) {
        roles[i] = number();
        bytes[i] = number();
        p[i] = guarded(bytes[i] + (roles[i] == 1 ? GUARD : 0));
        memset(p[i], FILLER, bytes[i] + (roles[i] == 1 ? GUARD : 0));
        if (roles[i] != 2) get(p[i], bytes[i]);
    }
    uint32_t ranges = number();
    for (uint32_t r = 0; r < ranges; r++) {
        int32_t lo = (int32_t)number(), hi = (int32_t)number();
        int32_t status = KERNEL(POINTERS, lo, hi);
        if (status) {
            fprintf(stderr, "the kernel returned %d\n", status);
            return 3;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        if (roles[i] != 1) continue;
        for (int j = 0; j < GUARD; j++) {
            if (p[i][bytes[i] + j] != FILLER) {
                fprintf(stderr, "the kernel wrote past the end of an output\n");
                return 4;
            }
        }
        if (fwrite(p[i], 1, bytes[i], stdout) != bytes[i]) return 2;
    }
    return 0;
}
