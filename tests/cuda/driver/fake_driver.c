/* A libcuda.so.1 without a GPU: the GPU's memory is this process's, kernels are simulated ones (../simulator), one file a kernel in the
 * folder SPC_FAKE_KERNELS. It is stricter than the real one: work waits in its stream until someone waits for it, the GPU's memory
 * cannot be touched by the host, arguments must point into it, and asynchronous copies take pinned memory only.
 *
 * Environment (read by cuInit): SPC_FAKE_NO_DEVICE=1, SPC_FAKE_VERSION=12090, SPC_FAKE_SM=90, SPC_FAKE_FAIL_ALLOC=n (the n-th
 * allocation from cuInit on), SPC_FAKE_FAIL_LAUNCH=n (the n-th kernel that runs), SPC_FAKE_ORDER (sim_launch.order), SPC_FAKE_NO_PTX=1,
 * SPC_FAKE_NO_CUBIN=1.
 */
#define _GNU_SOURCE
#include "../simulator/launch.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define API __attribute__((visibility("default")))

typedef unsigned long long device_ptr;
typedef int (*sim_run_fn)(void **, sim_launch *);

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY = 209,
    UNSUPPORTED_PTX = 222, NOT_FOUND = 500, NOT_READY = 600, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901
};
enum { KERNEL, COPY, CLEAR, EVENT };
enum { MAX_ARGUMENTS = 64, MAX_BLOCKS = 4096, PAGE = 4096, ALIGNMENT = 256, SHARED_WITHOUT_ASKING = 48 * 1024 };

typedef struct function {
    void *library;
    sim_run_fn run;
    int loaded; /* by its first launch, as the driver may do it */
    int arguments, fixed, allowed; /* fixed, allowed: bytes of shared memory that it declares, and that a launch may add */
    char name[200];
    struct function *next; /* of the same module */
} function;

typedef struct operation {
    int kind;
    function *kernel;
    sim_launch launch;
    void *arguments[MAX_ARGUMENTS];
    void *to;
    const void *from;
    size_t bytes;
    struct event *event;
} operation;

typedef struct {
    operation *all;
    size_t count;
} list;

typedef struct event {
    int recorded;
    double at;
} event;

typedef struct {
    list pending, captured;
    int capturing, broken;
} stream;

typedef struct { /* lies at the end of its pages, as far as its alignment allows; pages that trap are around it */
    char *memory, *pages;
    size_t bytes, mapped;
    int pinned;
} block;

static struct {
    int sm, version, no_device, fail_alloc, fail_launch, order, no_ptx, no_cubin;
} settings;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block blocks[MAX_BLOCKS];
static long allocations, launches, live, contexts;
static int sticky;
static stream default_stream, *streams[64];
static _Thread_local stream *capturing; /* captures are thread-local (mode 1): what other threads do meanwhile is theirs */
static char last_problem[1200];
static _Thread_local int current; /* depth of this thread's stack of contexts */

/* --- what tests ask --- */

static struct {
    const char *name;
    long calls;
} counts[64];

static void count(const char *name)
{
    for (int i = 0; i < 64; i++) {
        if (counts[i].name == NULL) counts[i].name = name;
        if (strcmp(counts[i].name, name) == 0) {
            counts[i].calls++;
            return;
        }
    }
}

API long fake_count(const char *name)
{
    for (int i = 0; i < 64 && counts[i].name != NULL; i++)
        if (strcmp(counts[i].name, name) == 0) return counts[i].calls;
    return 0;
}

API void fake_reset(void)
{
    memset(counts, 0, sizeof counts);
    sticky = 0, last_problem[0] = 0;
}

/* Objects of all kinds that were made and not destroyed. */
API long fake_live(void) { return live + contexts; }

API const char *fake_problem(void) { return last_problem; }

static int problem(int error, const char *text)
{
    snprintf(last_problem, sizeof last_problem, "%s", text);
    return error;
}

/* --- memory --- */

static block *find_block(const void *p, size_t bytes)
{
    for (int i = 0; i < MAX_BLOCKS; i++) {
        block *b = &blocks[i];
        const char *at = p;
        if (b->memory != NULL && at >= b->memory && at <= b->memory + b->bytes && bytes <= (size_t)(b->memory + b->bytes - at)) return b;
    }
    return NULL;
}

static void show(int visible)
{
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (blocks[i].memory != NULL && !blocks[i].pinned)
            mprotect(blocks[i].pages, blocks[i].mapped, visible ? PROT_READ | PROT_WRITE : PROT_NONE);
}

API int fake_read(void *to, const void *from, size_t bytes)
{
    if (find_block(from, bytes) == NULL) return INVALID_VALUE;
    show(1);
    memcpy(to, from, bytes);
    show(0);
    return OK;
}

API int fake_write(void *to, const void *from, size_t bytes)
{
    if (find_block(to, bytes) == NULL) return INVALID_VALUE;
    show(1);
    memcpy(to, from, bytes);
    show(0);
    return OK;
}

static int take(void **memory, size_t bytes, int pinned)
{
    if (!current) return INVALID_CONTEXT;
    if (capturing) {
        capturing->broken = 1;
        return CAPTURE_UNSUPPORTED;
    }
    if (!pinned && ++allocations == settings.fail_alloc) return OUT_OF_MEMORY;
    if (bytes == 0) return INVALID_VALUE;
    for (int i = 0; i < MAX_BLOCKS; i++) {
        block *b = &blocks[i];
        if (b->memory != NULL) continue;
        size_t room = (bytes + ALIGNMENT + PAGE - 1) / PAGE * PAGE;
        char *all = mmap(NULL, room + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED) return OUT_OF_MEMORY;
        *b = (block){all + PAGE + (room - bytes) / ALIGNMENT * ALIGNMENT, all + PAGE, bytes, room, pinned};
        mprotect(b->pages, room, PROT_READ | PROT_WRITE);
        memset(b->pages, 0xff, room); /* NaN */
        *memory = b->memory;
        if (!pinned) mprotect(b->pages, room, PROT_NONE);
        live++;
        return OK;
    }
    return OUT_OF_MEMORY;
}

static int give(void *memory, int pinned)
{
    if (!current) return INVALID_CONTEXT;
    for (int i = 0; i < MAX_BLOCKS; i++) {
        block *b = &blocks[i];
        if (b->memory == NULL || b->memory != memory || b->pinned != pinned) continue;
        munmap(b->pages - PAGE, b->mapped + 2 * PAGE);
        b->memory = NULL;
        live--;
        return OK;
    }
    return problem(INVALID_VALUE, "memory is given back that was not taken");
}

/* --- streams --- */

static operation *append(list *to, const operation *one)
{
    to->all = realloc(to->all, (to->count + 1) * sizeof *to->all);
    to->all[to->count] = *one;
    return &to->all[to->count++];
}

static void clear(list *l)
{
    free(l->all);
    *l = (list){0};
}

static int submit(stream *s, const operation *one)
{
    if (!current) return INVALID_CONTEXT;
    if (s == NULL) s = &default_stream;
    if (sticky) return sticky;
    append(s->capturing ? &s->captured : &s->pending, one);
    return OK;
}

static void execute(operation *o)
{
    struct timespec now;
    switch (o->kind) {
    case KERNEL:
        if (++launches == settings.fail_launch) {
            sticky = problem(LAUNCH_FAILED, "a failure that was asked for");
            return;
        }
        o->launch.order = (uint32_t)settings.order;
        if (o->kernel->run(o->arguments, &o->launch) != 0) {
            fprintf(stderr, "%s: %s\n", o->kernel->name, o->launch.message);
            sticky = problem(LAUNCH_FAILED, o->launch.message);
        }
        return;
    case COPY: memcpy(o->to, o->from, o->bytes); return;
    case CLEAR: memset(o->to, 0, o->bytes); return;
    case EVENT:
        clock_gettime(CLOCK_MONOTONIC, &now);
        o->event->at = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
        o->event->recorded = 1;
    }
}

static int flush(stream *s)
{
    if (s->capturing) {
        s->broken = 1;
        return CAPTURE_UNSUPPORTED;
    }
    show(1);
    for (size_t i = 0; i < s->pending.count && !sticky; i++) execute(&s->pending.all[i]);
    show(0);
    clear(&s->pending);
    return sticky;
}

/* --- the driver's functions --- */

#define DEFINE(name, ...) \
    static int do_##name(__VA_ARGS__); \
    API int name(__VA_ARGS__)
#define BODY(name, ...) \
    { \
        pthread_mutex_lock(&lock); \
        count(#name); \
        int result = do_##name(__VA_ARGS__); \
        pthread_mutex_unlock(&lock); \
        return result; \
    } \
    static int do_##name

static int number(const char *name, int otherwise)
{
    const char *text = getenv(name);
    return text != NULL && text[0] != 0 ? atoi(text) : otherwise;
}

DEFINE(cuInit, unsigned flags) BODY(cuInit, flags)(unsigned flags)
{
    (void)flags;
    settings.sm = number("SPC_FAKE_SM", 90);
    settings.no_device = number("SPC_FAKE_NO_DEVICE", 0);
    settings.fail_alloc = number("SPC_FAKE_FAIL_ALLOC", 0);
    settings.fail_launch = number("SPC_FAKE_FAIL_LAUNCH", 0);
    settings.order = number("SPC_FAKE_ORDER", 0);
    settings.no_ptx = number("SPC_FAKE_NO_PTX", 0);
    settings.no_cubin = number("SPC_FAKE_NO_CUBIN", 0);
    allocations = launches = 0;
    return settings.no_device ? NO_DEVICE : OK;
}

DEFINE(cuDriverGetVersion, int *version) BODY(cuDriverGetVersion, version)(int *version)
{
    *version = number("SPC_FAKE_VERSION", 12090);
    return OK;
}

DEFINE(cuDeviceGetCount, int *n) BODY(cuDeviceGetCount, n)(int *n)
{
    *n = 1;
    return OK;
}

DEFINE(cuDeviceGet, int *device, int ordinal) BODY(cuDeviceGet, device, ordinal)(int *device, int ordinal)
{
    *device = 7;
    return ordinal == 0 ? OK : INVALID_VALUE;
}

/* What a block may have when it asks. */
static int shared_limit(void)
{
    switch (settings.sm) {
    case 80: case 87: return 163 * 1024;
    case 86: case 88: case 89: case 120: case 121: return 99 * 1024;
    default: return 227 * 1024;
    }
}

DEFINE(cuDeviceGetAttribute, int *value, int attribute, int device) BODY(cuDeviceGetAttribute, value, attribute, device)
(int *value, int attribute, int device)
{
    if (device != 7) return INVALID_VALUE;
    switch (attribute) {
    case 75: *value = settings.sm / 10; return OK;
    case 76: *value = settings.sm % 10; return OK;
    case 97: *value = shared_limit(); return OK;
    default: return INVALID_VALUE;
    }
}

DEFINE(cuDeviceGetName, char *name, int length, int device) BODY(cuDeviceGetName, name, length, device)
(char *name, int length, int device)
{
    snprintf(name, (size_t)length, "Simulated %d", settings.sm);
    return device == 7 ? OK : INVALID_VALUE;
}

DEFINE(cuDevicePrimaryCtxRetain, void **context, int device) BODY(cuDevicePrimaryCtxRetain, context, device)(void **context, int device)
{
    *context = &contexts;
    contexts++;
    return device == 7 ? OK : INVALID_VALUE;
}

DEFINE(cuDevicePrimaryCtxRelease_v2, int device) BODY(cuDevicePrimaryCtxRelease_v2, device)(int device)
{
    contexts--;
    return device == 7 ? OK : INVALID_VALUE;
}

DEFINE(cuCtxPushCurrent_v2, void *context) BODY(cuCtxPushCurrent_v2, context)(void *context)
{
    if (context != &contexts || contexts < 1) return INVALID_CONTEXT;
    current++;
    return OK;
}

DEFINE(cuCtxPopCurrent_v2, void **context) BODY(cuCtxPopCurrent_v2, context)(void **context)
{
    if (!current) return INVALID_CONTEXT;
    current--;
    *context = &contexts;
    return OK;
}

DEFINE(cuCtxSynchronize, void) BODY(cuCtxSynchronize)(void)
{
    int error = current ? flush(&default_stream) : INVALID_CONTEXT;
    for (int i = 0; i < 64 && error == OK; i++)
        if (streams[i] != NULL) error = flush(streams[i]);
    return error;
}

DEFINE(cuModuleLoadData, void **module, const void *image) BODY(cuModuleLoadData, module, image)(void **module, const void *image)
{
    if (!current) return INVALID_CONTEXT;
    int cubin = memcmp(image, "\177ELF", 4) == 0;
    if (!cubin && strstr(image, ".version") == NULL) return INVALID_IMAGE;
    if (!cubin && settings.no_ptx) return UNSUPPORTED_PTX;
    if (cubin && settings.no_cubin) return NO_BINARY;
    count(cubin ? "cubin" : "ptx");
    live++;
    *module = calloc(1, sizeof(function *));
    return OK;
}

DEFINE(cuModuleGetFunction, void **made, void *module, const char *name) BODY(cuModuleGetFunction, made, module, name)
(void **made, void *module, const char *name)
{
    const char *folder = getenv("SPC_FAKE_KERNELS");
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.so", folder != NULL ? folder : ".", name);
    function *f = calloc(1, sizeof *f);
    f->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (f->library == NULL) {
        free(f);
        return problem(NOT_FOUND, dlerror());
    }
    void *run = dlsym(f->library, "sim_run"), *arguments = dlsym(f->library, "sim_argument_count");
    int (*count_arguments)(void);
    memcpy(&f->run, &run, sizeof run);
    memcpy(&count_arguments, &arguments, sizeof arguments);
    f->arguments = count_arguments();
    int (*count_shared)(void);
    void *declares = dlsym(f->library, "sim_shared_bytes"); /* of kernels that declare some */
    memcpy(&count_shared, &declares, sizeof declares);
    f->fixed = declares != NULL ? count_shared() : 0;
    f->allowed = SHARED_WITHOUT_ASKING - f->fixed;
    snprintf(f->name, sizeof f->name, "%s", name);
    f->next = *(function **)module;
    *(function **)module = f;
    *made = f;
    return OK;
}

DEFINE(cuModuleUnload, void *module) BODY(cuModuleUnload, module)(void *module)
{
    for (function *f = *(function **)module, *next; f != NULL; f = next) {
        next = f->next;
        dlclose(f->library);
        free(f);
    }
    free(module);
    live--;
    return current ? OK : INVALID_CONTEXT;
}

DEFINE(cuFuncSetAttribute, void *f, int attribute, int value) BODY(cuFuncSetAttribute, f, attribute, value)
(void *f, int attribute, int value)
{
    function *kernel = f;
    if (attribute != 8 || value + kernel->fixed > shared_limit()) return INVALID_VALUE;
    kernel->allowed = value;
    return OK;
}

DEFINE(cuMemGetInfo_v2, size_t *free_bytes, size_t *total) BODY(cuMemGetInfo_v2, free_bytes, total)(size_t *free_bytes, size_t *total)
{
    *free_bytes = (size_t)3 << 20;
    *total = (size_t)80 << 30;
    return OK;
}

DEFINE(cuMemAlloc_v2, device_ptr *memory, size_t bytes) BODY(cuMemAlloc_v2, memory, bytes)(device_ptr *memory, size_t bytes)
{
    void *made = NULL;
    int error = take(&made, bytes, 0);
    *memory = (device_ptr)(uintptr_t)made;
    return error;
}

DEFINE(cuMemFree_v2, device_ptr memory) BODY(cuMemFree_v2, memory)(device_ptr memory) { return give((void *)(uintptr_t)memory, 0); }

DEFINE(cuMemAllocHost_v2, void **memory, size_t bytes) BODY(cuMemAllocHost_v2, memory, bytes)(void **memory, size_t bytes)
{
    return take(memory, bytes, 1);
}

DEFINE(cuMemFreeHost, void *memory) BODY(cuMemFreeHost, memory)(void *memory) { return give(memory, 1); }

DEFINE(cuMemcpyHtoD_v2, device_ptr to, const void *from, size_t bytes) BODY(cuMemcpyHtoD_v2, to, from, bytes)
(device_ptr to, const void *from, size_t bytes)
{
    void *p = (void *)(uintptr_t)to;
    const block *b = find_block(p, bytes);
    if (!current || capturing) return INVALID_CONTEXT;
    if (b == NULL || b->pinned) return problem(INVALID_VALUE, "an upload leaves the GPU's memory");
    operation one = {.kind = COPY, .to = p, .from = from, .bytes = bytes};
    append(&default_stream.pending, &one); /* `from` is not pinned: it may not be there yet when the call returns */
    return OK;
}

DEFINE(cuMemcpyDtoH_v2, void *to, device_ptr from, size_t bytes) BODY(cuMemcpyDtoH_v2, to, from, bytes)
(void *to, device_ptr from, size_t bytes)
{
    const void *p = (const void *)(uintptr_t)from;
    const block *b = find_block(p, bytes);
    if (!current || capturing || b == NULL || b->pinned) return INVALID_VALUE;
    flush(&default_stream);
    show(1);
    memcpy(to, p, bytes);
    show(0);
    return sticky;
}

static int copy_async(void *to, const void *from, size_t bytes, void *s, int up)
{
    const block *a = find_block(to, bytes), *b = find_block(from, bytes);
    if (a == NULL || b == NULL || a->pinned == up || b->pinned != up)
        return problem(INVALID_VALUE, "an asynchronous copy wants pinned memory and the GPU's");
    operation one = {.kind = COPY, .to = to, .from = from, .bytes = bytes};
    return submit(s, &one);
}

DEFINE(cuMemcpyHtoDAsync_v2, device_ptr to, const void *from, size_t bytes, void *s) BODY(cuMemcpyHtoDAsync_v2, to, from, bytes, s)
(device_ptr to, const void *from, size_t bytes, void *s)
{
    return copy_async((void *)(uintptr_t)to, from, bytes, s, 1);
}

DEFINE(cuMemcpyDtoHAsync_v2, void *to, device_ptr from, size_t bytes, void *s) BODY(cuMemcpyDtoHAsync_v2, to, from, bytes, s)
(void *to, device_ptr from, size_t bytes, void *s)
{
    return copy_async(to, (void *)(uintptr_t)from, bytes, s, 0);
}

DEFINE(cuMemcpyDtoDAsync_v2, device_ptr to, device_ptr from, size_t bytes, void *s) BODY(cuMemcpyDtoDAsync_v2, to, from, bytes, s)
(device_ptr to, device_ptr from, size_t bytes, void *s)
{
    operation one = {.kind = COPY, .to = (void *)(uintptr_t)to, .from = (const void *)(uintptr_t)from, .bytes = bytes};
    const block *a = find_block(one.to, bytes), *b = find_block(one.from, bytes);
    if (a == NULL || b == NULL || a->pinned || b->pinned) return problem(INVALID_VALUE, "a copy leaves the GPU's memory");
    return submit(s, &one);
}

DEFINE(cuMemsetD8Async, device_ptr to, unsigned char value, size_t bytes, void *s) BODY(cuMemsetD8Async, to, value, bytes, s)
(device_ptr to, unsigned char value, size_t bytes, void *s)
{
    operation one = {.kind = CLEAR, .to = (void *)(uintptr_t)to, .bytes = bytes};
    const block *b = find_block(one.to, bytes);
    if (b == NULL || b->pinned || value != 0) return problem(INVALID_VALUE, "a memset leaves the GPU's memory");
    return submit(s, &one);
}

DEFINE(cuStreamCreate, void **made, unsigned flags) BODY(cuStreamCreate, made, flags)(void **made, unsigned flags)
{
    if (!current || flags > 1) return INVALID_CONTEXT;
    *made = calloc(1, sizeof(stream));
    for (int i = 0; i < 64; i++) {
        if (streams[i] != NULL) continue;
        streams[i] = *made;
        live++;
        return OK;
    }
    return OUT_OF_MEMORY;
}

DEFINE(cuStreamDestroy_v2, void *s) BODY(cuStreamDestroy_v2, s)(void *s)
{
    stream *one = s;
    flush(one);
    clear(&one->captured);
    for (int i = 0; i < 64; i++)
        if (streams[i] == one) streams[i] = NULL;
    free(one);
    live--;
    return current ? OK : INVALID_CONTEXT;
}

DEFINE(cuStreamSynchronize, void *s) BODY(cuStreamSynchronize, s)(void *s)
{
    return current ? flush(s != NULL ? s : &default_stream) : INVALID_CONTEXT;
}

DEFINE(cuStreamQuery, void *s) BODY(cuStreamQuery, s)(void *s)
{
    return current ? flush(s != NULL ? s : &default_stream) : INVALID_CONTEXT;
}

DEFINE(cuStreamBeginCapture_v2, void *s, int mode) BODY(cuStreamBeginCapture_v2, s, mode)(void *s, int mode)
{
    stream *one = s;
    if (one->capturing || mode != 1) return INVALID_VALUE;
    one->capturing = 1, one->broken = 0;
    capturing = one;
    return sticky;
}

DEFINE(cuStreamEndCapture, void *s, void **graph) BODY(cuStreamEndCapture, s, graph)(void *s, void **graph)
{
    stream *one = s;
    if (!one->capturing) return INVALID_VALUE;
    one->capturing = 0;
    capturing = NULL;
    *graph = NULL;
    if (one->broken) {
        clear(&one->captured);
        return CAPTURE_INVALIDATED;
    }
    list *made = malloc(sizeof *made);
    *made = one->captured;
    one->captured = (list){0};
    *graph = made;
    live++;
    return OK;
}

DEFINE(cuGraphInstantiateWithFlags, void **made, void *graph, unsigned long long flags) BODY(cuGraphInstantiateWithFlags, made, graph, flags)
(void **made, void *graph, unsigned long long flags)
{
    list *copy = calloc(1, sizeof *copy);
    const list *from = graph;
    for (size_t i = 0; i < from->count; i++) append(copy, &from->all[i]);
    *made = copy;
    live++;
    return flags == 0 ? OK : INVALID_VALUE;
}

DEFINE(cuGraphLaunch, void *graph, void *s) BODY(cuGraphLaunch, graph, s)(void *graph, void *s)
{
    const list *from = graph;
    int error = OK;
    for (size_t i = 0; i < from->count && error == OK; i++) error = submit(s, &from->all[i]);
    return error;
}

static int drop_graph(void *graph)
{
    clear(graph);
    free(graph);
    live--;
    return current ? OK : INVALID_CONTEXT;
}

DEFINE(cuGraphDestroy, void *graph) BODY(cuGraphDestroy, graph)(void *graph) { return drop_graph(graph); }
DEFINE(cuGraphExecDestroy, void *graph) BODY(cuGraphExecDestroy, graph)(void *graph) { return drop_graph(graph); }

DEFINE(cuEventCreate, void **made, unsigned flags) BODY(cuEventCreate, made, flags)(void **made, unsigned flags)
{
    *made = calloc(1, sizeof(event));
    live++;
    return current && flags == 0 ? OK : INVALID_VALUE;
}

DEFINE(cuEventRecord, void *e, void *s) BODY(cuEventRecord, e, s)(void *e, void *s)
{
    operation one = {.kind = EVENT, .event = e};
    ((event *)e)->recorded = 0;
    return submit(s, &one);
}

DEFINE(cuEventElapsedTime, float *ms, void *from, void *to) BODY(cuEventElapsedTime, ms, from, to)(float *ms, void *from, void *to)
{
    const event *a = from, *b = to;
    if (!a->recorded || !b->recorded) return NOT_READY;
    *ms = (float)(b->at - a->at);
    return OK;
}

DEFINE(cuEventDestroy_v2, void *e) BODY(cuEventDestroy_v2, e)(void *e)
{
    free(e);
    live--;
    return OK;
}

DEFINE(cuLaunchKernel, void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *s,
       void **arguments, void **extra)
BODY(cuLaunchKernel, f, gx, gy, gz, bx, by, bz, shared, s, arguments, extra)
(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *s, void **arguments,
 void **extra)
{
    function *kernel = f;
    if (gx < 1 || gy < 1 || gz < 1 || gx > 0x7fffffff || gy > 65535 || gz > 65535 || bx < 1 || by < 1 || bz < 1 || bx * by * bz > 1024 ||
        bz > 64 || (int)shared > kernel->allowed || extra != NULL)
        return problem(INVALID_VALUE, "a launch that no GPU takes");
    if (capturing && !kernel->loaded) {
        capturing->broken = 1;
        return problem(CAPTURE_UNSUPPORTED, "a kernel is loaded inside a capture");
    }
    kernel->loaded = 1;
    operation one = {.kind = KERNEL, .kernel = kernel, .launch = {.grid = {gx, gy, gz}, .block = {bx, by, bz}, .shared_bytes = shared}};
    for (int i = 0; i < kernel->arguments; i++) {
        one.arguments[i] = (void *)(uintptr_t) * (device_ptr *)arguments[i];
        const block *b = find_block(one.arguments[i], 0);
        if (b == NULL || b->pinned) return problem(INVALID_VALUE, "an argument does not point into the GPU's memory");
    }
    return submit(s, &one);
}

DEFINE(cuGetErrorName, int error, const char **name) BODY(cuGetErrorName, error, name)(int error, const char **name)
{
    *name = error == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : error == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR";
    return OK;
}
