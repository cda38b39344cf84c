/* What hide_cpuid.c needs between a program and its C library: LD_PRELOAD=hide_cpuinfo.so PROGRAM.
 *
 * Programs that read of the processor's features in /proc/cpuinfo (DeepSparse) read the file SPARSEC_CPUINFO instead. A handler of the program's own for
 * illegal instructions is never installed, since that of hide_cpuid.c is: a true illegal instruction ends the program.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The function that ours hides. */
#define NEXT(name) \
    __typeof__(&name) next; \
    *(void **)&next = dlsym(RTLD_NEXT, #name)

static const char *instead_of(const char *path)
{
    const char *other = getenv("SPARSEC_CPUINFO");
    return other && strcmp(path, "/proc/cpuinfo") == 0 ? other : path;
}

/* The mode of a file that is made, the last argument then. */
static mode_t mode_of(int flags, va_list rest)
{
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        NEXT(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = mode_of(flags, rest); \
        va_end(rest); \
        return next(instead_of(path), flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        NEXT(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = mode_of(flags, rest); \
        va_end(rest); \
        return next(folder, instead_of(path), flags, mode); \
    }
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) \
    { \
        NEXT(name); \
        return next(instead_of(path), mode); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    NEXT(sigaction);
    return next(number, number == SIGILL ? NULL : action, old);
}

sighandler_t signal(int number, sighandler_t handler)
{
    NEXT(signal);
    return number == SIGILL ? SIG_DFL : next(number, handler);
}
