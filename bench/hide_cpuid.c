/* Hides features of the processor from a process, and counts which instructions it runs. An audit library: LD_AUDIT=hide_cpuid.so PROGRAM.
 *
 *     SPARSEC_CPUID_MASK    "LEAF.SUBLEAF:EAX,EBX,ECX,EDX;...", hexadecimal: bits that cpuid answers 0 in; SUBLEAF * is any
 *     SPARSEC_CPUID_TABLE   file of lines "PATH\tBYTES\tNANOSECONDS\tADDRESS ADDRESS ...\n": size and time of change of ELF files, and
 *                           the hexadecimal addresses of their cpuid instructions (cpuid_table.py)
 *     SPARSEC_CPUID_COUNTS  file of `struct counts` that is added to
 *
 * cpuid is as long as ud2. The loader tells an audit library of every object after it is mapped and before anything of it runs (resolvers
 * of indirect functions and constructors ask first): here each cpuid becomes ud2, and the handler of the signal answers. An object
 * that is not in the table ends the process, if it has the bytes of a cpuid: nothing is measured that could know better. Nothing
 * changes on disk. A cpuid in code made at run time, or in a static program, is not found; the counts show what is run in the end.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define MOST_MASKS 32
#define MOST_PLACES 65536
#define SAMPLE_NS 1000000
#define ANY UINT32_MAX

static const unsigned char CPUID[2] = {0x0f, 0xa2}, UD2[2] = {0x0f, 0x0b};

struct mask {
    uint32_t leaf, subleaf, clear[4];
};
struct place {
    uintptr_t address, owner;
};
struct counts {
    uint64_t samples, hidden, asked;
};

static struct mask masks[MOST_MASKS];
static int mask_count;
static struct place places[MOST_PLACES];
static int place_count; /* written under the loader's lock, read by the handler */
static const char *table;
static size_t table_bytes;
static struct counts *counts;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list rest;
    va_start(rest, format);
    fputs("hide_cpuid: ", stderr);
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    va_end(rest);
    _exit(97);
}

/* The bytes of a file, NULL if there is none or it is empty. */
static const char *map_file(const char *path, size_t *bytes)
{
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return NULL;
    void *data = fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0
                     ? mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0)
                     : MAP_FAILED;
    close(file);
    if (data == MAP_FAILED)
        return NULL;
    *bytes = (size_t)status.st_size;
    return data;
}

/* --- the answer in place of cpuid's --- */

static void answer(ucontext_t *context)
{
    greg_t *g = context->uc_mcontext.gregs;
    uint32_t leaf = (uint32_t)g[REG_RAX], subleaf = (uint32_t)g[REG_RCX], r[4];
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
    for (int i = 0; i < mask_count; i++) {
        if (masks[i].leaf != leaf || (masks[i].subleaf != ANY && masks[i].subleaf != subleaf))
            continue;
        for (int j = 0; j < 4; j++)
            r[j] &= ~masks[i].clear[j];
    }
    g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
    g[REG_RIP] += sizeof UD2;
    if (counts)
        __atomic_add_fetch(&counts->asked, 1, __ATOMIC_RELAXED);
}

static void on_illegal(int number, siginfo_t *info, void *context)
{
    (void)info;
    uintptr_t at = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    for (int i = __atomic_load_n(&place_count, __ATOMIC_ACQUIRE); i-- > 0;) {
        if (places[i].address == at) {
            answer(context);
            return;
        }
    }
    signal(number, SIG_DFL); /* an illegal instruction of the program's own: it runs into it again */
}

/* --- which instructions are run --- */

/* Whether the instruction, which is about to run, is one that AVX2 processors lack: EVEX (AVX-512), or of those encoded in VEX: dot products (VNNI),
   masks, IFMA, conversions, AMX, GFNI. Reads no byte behind it. */
static int is_hidden(const unsigned char *at)
{
    while (*at == 0x64 || *at == 0x65 || *at == 0x67 || *at == 0x2e || *at == 0x3e)
        at++;
    if (*at == 0x62)
        return 1;
    if (*at != 0xc4 && *at != 0xc5)
        return 0;
    int map = at[0] == 0xc5 ? 1 : at[1] & 31, op = at[0] == 0xc5 ? at[2] : at[3];
    if (map == 1)
        return (op >= 0x41 && op <= 0x4b) || (op >= 0x90 && op <= 0x93) || op == 0x98 || op == 0x99;
    if (map == 2) {
        int dot = (op >= 0x50 && op <= 0x53) || op == 0xd2 || op == 0xd3, wide = op == 0xb4 || op == 0xb5;
        return dot || wide || op == 0xb0 || op == 0xb1 || op == 0x72 || op == 0x49 || op == 0x4b || op == 0x5c || op == 0x5e || op == 0xcf;
    }
    return map == 3 && (op == 0xce || op == 0xcf);
}

static void on_tick(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    const unsigned char *at = (const unsigned char *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    __atomic_add_fetch(&counts->samples, 1, __ATOMIC_RELAXED);
    if (is_hidden(at))
        __atomic_add_fetch(&counts->hidden, 1, __ATOMIC_RELAXED);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&action.sa_mask);
    if (sigaction(number, &action, NULL))
        fail("no handler for signal %d", number);
}

static void start_counting(const char *path)
{
    int file = open(path, O_RDWR | O_CLOEXEC);
    void *shared = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED)
        fail("cannot map %s", path);
    close(file);
    counts = shared;
    handle(SIGPROF, on_tick);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGPROF};
    struct itimerspec every = {{0, SAMPLE_NS}, {0, SAMPLE_NS}};
    timer_t timer;
    /* of the process: newer kernels interrupt the thread that is running */
    if (timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer) || timer_settime(timer, 0, &every, NULL))
        fail("no timer");
}

/* --- objects that are loaded --- */

static void read_masks(const char *text)
{
    while (*text) {
        if (mask_count == MOST_MASKS)
            fail("more than %d masks", MOST_MASKS);
        struct mask *m = &masks[mask_count++];
        int used = 0;
        if (sscanf(text, "%x.*:%x,%x,%x,%x%n", &m->leaf, &m->clear[0], &m->clear[1], &m->clear[2], &m->clear[3], &used) == 5)
            m->subleaf = ANY;
        else if (sscanf(text, "%x.%x:%x,%x,%x,%x%n", &m->leaf, &m->subleaf, &m->clear[0], &m->clear[1], &m->clear[2], &m->clear[3], &used) != 6)
            fail("not a mask: %s", text);
        text += used + (text[used] == ';');
    }
}

/* Where the line of a file goes on behind its name, size and time; NULL if there is none, or it is about another version of the file. */
static const char *find_line(const char *path)
{
    struct stat status;
    char wanted[PATH_MAX + 64];
    if (stat(path, &status))
        return NULL;
    long long time = (long long)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec;
    int length = snprintf(wanted, sizeof wanted, "\n%s\t%lld\t%lld\t", path, (long long)status.st_size, time);
    const char *found = memmem(table, table_bytes, wanted, (size_t)length);
    return found ? found + length : NULL;
}

/* Whether code of an ELF file has the bytes of a cpuid, in whatever meaning. */
static int may_ask(const char *path)
{
    size_t bytes;
    const char *data = map_file(path, &bytes);
    if (data == NULL)
        return 0;
    const ElfW(Ehdr) *header = (const void *)data;
    const ElfW(Phdr) *segment = (const void *)(data + header->e_phoff);
    int found = 0;
    for (int i = 0; i < header->e_phnum && !found; i++)
        found = segment[i].p_type == PT_LOAD && (segment[i].p_flags & PF_X) &&
                memmem(data + segment[i].p_offset, segment[i].p_filesz, CPUID, sizeof CPUID) != NULL;
    munmap((void *)(uintptr_t)data, bytes);
    return found;
}

static void patch(const char *path, uintptr_t address, uintptr_t owner)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = address & -page;
    size_t length = address + sizeof UD2 - first;
    if (memcmp((const void *)address, CPUID, sizeof CPUID) != 0)
        fail("no cpuid at %#lx of %s", (unsigned long)address, path);
    if (place_count == MOST_PLACES)
        fail("more than %d cpuid instructions", MOST_PLACES);
    places[place_count] = (struct place){address, owner};
    __atomic_store_n(&place_count, place_count + 1, __ATOMIC_RELEASE);
    if (mprotect((void *)first, length, PROT_READ | PROT_WRITE | PROT_EXEC))
        fail("cannot write to code of %s", path);
    memcpy((void *)address, UD2, sizeof UD2);
    mprotect((void *)first, length, PROT_READ | PROT_EXEC);
}

unsigned int la_version(unsigned int version)
{
    const char *text = getenv("SPARSEC_CPUID_MASK"), *file = getenv("SPARSEC_CPUID_TABLE"), *into = getenv("SPARSEC_CPUID_COUNTS");
    if (text && *text) {
        read_masks(text);
        if (file == NULL || (table = map_file(file, &table_bytes)) == NULL)
            fail("SPARSEC_CPUID_TABLE names no file");
        handle(SIGILL, on_illegal);
    }
    if (into)
        start_counting(into);
    return version < LAV_CURRENT ? version : LAV_CURRENT;
}

unsigned int la_objopen(struct link_map *map, Lmid_t space, uintptr_t *cookie)
{
    (void)space;
    char path[PATH_MAX];
    if (mask_count == 0 || realpath(*map->l_name ? map->l_name : "/proc/self/exe", path) == NULL)
        return 0; /* the kernel's own object has no file */
    const char *line = find_line(path);
    if (line == NULL) {
        if (may_ask(path))
            fail("%s is not in the table", path);
        return 0;
    }
    while (*line != '\n') {
        char *end;
        patch(path, map->l_addr + strtoul(line, &end, 16), *cookie);
        line = end + (*end == ' ');
    }
    return 0;
}

unsigned int la_objclose(uintptr_t *cookie)
{
    for (int i = 0; i < place_count; i++) {
        if (places[i].owner == *cookie)
            places[i].address = 0;
    }
    return 0;
}
