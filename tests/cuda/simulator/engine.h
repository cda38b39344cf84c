// Runs one launch of a kernel on the CPU: blocks one after the other, every thread of a block a fiber.
//
// Fibers run until they meet a barrier or a warp collective, so the order in which they are started is the only freedom there is;
// a kernel whose result depends on it lacks a barrier. What goes wrong ends the launch with a message: a barrier some threads
// never reach, an access outside of its array (guard pages and canaries), an unaligned vector access (compiler traps).
#pragma once

#include "launch.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct sim_index {
    unsigned x, y, z;
};

namespace sim {

constexpr unsigned WARP = 32, PAGE = 4096, STACK = 64 * 1024, MAX_THREADS = 1024, MAX_SHARED = 64, MAX_COPIES = 256;
constexpr unsigned char POISON = 0xff;  // NaN as a float of any size, -1 as a whole number
constexpr unsigned char CANARY = 0xc5;

enum state { READY, AT_BLOCK, AT_WARP, DONE };

struct copy {  // a cp.async that nobody waited for yet
    void *to;
    const void *from;
    unsigned bytes, taken, group;
};

struct fiber {
    state where;
    int line;            // of the barrier it waits at
    const char *what;    // the call it waits in
    unsigned mask;       // lanes that take part
    sim_index thread;
    unsigned lane, warp, collectives;
    copy copies[MAX_COPIES];
    unsigned copy_count, group;
    char *stack;
#if defined(__x86_64__)
    void *sp;
#else
    ucontext_t context;
#endif
};

struct shared_array {  // lies at the end of its pages; a guard page follows and one is in front
    const char *name;
    char *pages, *data;
    size_t bytes, mapped;
};

struct warp_slots {  // two sets: lanes may still read one while the next collective fills the other
    alignas(16) unsigned char in[2][WARP][64];
};

static fiber *fibers, *self;
static unsigned thread_count;
static sim_index grid_size, block_size, block_index;
static shared_array shared[MAX_SHARED];
static unsigned shared_count;
static size_t dynamic_bytes;
static warp_slots *slots;
static void (*entry)(void **);
static void **arguments;
static sim_launch *launch;
static sigjmp_buf out;
static pthread_t runner;

#if defined(__x86_64__)
static void *scheduler_sp;
extern "C" void sim_switch(void **save, void *load);
asm(R"(
.text
.hidden sim_switch
.globl sim_switch
sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
static void enter(fiber *f) { sim_switch(&scheduler_sp, f->sp); }
static void leave() { sim_switch(&self->sp, scheduler_sp); }
#else
static ucontext_t scheduler;
static void enter(fiber *f) { swapcontext(&scheduler, &f->context); }
static void leave() { swapcontext(&self->context, &scheduler); }
#endif

// End the launch: `text` says what is wrong; where it happened is put in front.
[[noreturn]] __attribute__((format(printf, 1, 2))) static void fail(const char *text, ...)
{
    char *to = launch->message;
    size_t left = sizeof launch->message;
    int used = snprintf(to, left, "block (%u, %u, %u)", block_index.x, block_index.y, block_index.z);
    if (self) {
        to += used, left -= used;
        used = snprintf(to, left, ", thread (%u, %u, %u)", self->thread.x, self->thread.y, self->thread.z);
    }
    to += used, left -= used;
    used = snprintf(to, left, ": ");
    to += used, left -= used;
    va_list rest;
    va_start(rest, text);
    vsnprintf(to, left, text, rest);
    va_end(rest);
    siglongjmp(out, 1);
}

static char *map(size_t bytes)
{
    void *pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) fail("the simulator is out of memory (%zu bytes)", bytes);
    return static_cast<char *>(pages);
}

// --- shared memory ---

// The memory of one __shared__ array, the same for all threads of a block. `name`: an object of its own for each array.
static void *shared_memory(const char *name, size_t bytes, size_t align)
{
    for (unsigned i = 0; i < shared_count; i++)
        if (shared[i].name == name) return shared[i].data;
    if (shared_count == MAX_SHARED) fail("more than %u shared arrays", MAX_SHARED);
    shared_array &a = shared[shared_count++];
    size_t room = (bytes + align + PAGE - 1) / PAGE * PAGE;
    a.name = name, a.bytes = bytes, a.mapped = room + 2 * PAGE;
    a.pages = map(a.mapped);
    a.data = a.pages + PAGE + (room - bytes) / align * align;
    memset(a.pages + PAGE, CANARY, room);
    memset(a.data, POISON, bytes);
    mprotect(a.pages, PAGE, PROT_NONE);
    mprotect(a.pages + PAGE + room, PAGE, PROT_NONE);
    return a.data;
}

static void check_canaries()
{
    self = nullptr;
    for (unsigned i = 0; i < shared_count; i++) {
        const shared_array &a = shared[i];
        const char *end = a.pages + a.mapped - PAGE;
        for (const char *p = a.pages + PAGE; p < end; p++)
            if ((p < a.data || p >= a.data + a.bytes) && static_cast<unsigned char>(*p) != CANARY)
                fail("shared array %s was written %td bytes from its start; it has %zu bytes", a.name, p - a.data, a.bytes);
    }
}

// --- barriers ---

static void list_threads(char *to, size_t left, state where, int line)
{
    unsigned shown = 0, count = 0;
    *to = 0;
    for (unsigned i = 0; i < thread_count; i++) {
        if (fibers[i].where != where || fibers[i].line != line) continue;
        if (shown++ < 4) {
            int used = snprintf(to, left, "%s%u", shown > 1 ? ", " : "", i);
            to += used, left -= used;
        }
        count++;
    }
    if (count > 4) snprintf(to, left, " ... (%u in all)", count);
}

// Threads cannot go on: say who waits where and who is gone.
[[noreturn]] static void deadlock()
{
    char text[700] = "";
    size_t used = 0;
    self = nullptr;
    for (unsigned i = 0; i < thread_count; i++) {
        const fiber &f = fibers[i];
        bool seen = false;
        for (unsigned j = 0; j < i; j++) seen = seen || (fibers[j].where == f.where && fibers[j].line == f.line);
        if (seen || used > sizeof text - 200) continue;
        char who[100];
        list_threads(who, sizeof who, f.where, f.line);
        used += f.where == DONE ? snprintf(text + used, sizeof text - used, "%sthread %s ended", used ? "; " : "", who)
                                : snprintf(text + used, sizeof text - used, "%sthread %s waits in %s in line %d",
                                           used ? "; " : "", who, f.what, f.line);
    }
    fail("barrier that not all threads reach: %s", text);
}

static void wait(state where, const char *what, int line, unsigned mask)
{
    self->where = where, self->what = what, self->line = line, self->mask = mask;
    leave();
}

// Whether all of a group of threads wait at one barrier; then they go on.
static void release(unsigned first, unsigned last, state where)
{
    const fiber *one = nullptr;
    for (unsigned i = first; i < last; i++) {
        const fiber &f = fibers[i];
        if (where == AT_WARP && self && !(self->mask >> f.lane & 1)) continue;
        if (f.where != where) return;
        if (!one) one = &f;
        if (f.line != one->line || f.mask != one->mask || f.what != one->what) deadlock();
    }
    for (unsigned i = first; i < last; i++)
        if (where == AT_BLOCK || (self->mask >> fibers[i].lane & 1)) fibers[i].where = READY;
}

static void block_barrier(int line) { wait(AT_BLOCK, "__syncthreads", line, 0); }

static void warp_barrier(const char *what, int line, unsigned mask)
{
    if (!(mask >> self->lane & 1)) fail("%s in line %d: the mask %08x lacks lane %u that calls it", what, line, mask, self->lane);
    wait(AT_WARP, what, line, mask);
}

// Every lane of `mask` brings a value; returns the values of all 32 lanes (those of other lanes mean nothing).
template <class T> const T *gather(const char *what, int line, unsigned mask, const T &value)
{
    static_assert(sizeof(T) <= 64, "slots are too small");
    auto &set = slots[self->warp].in[self->collectives++ & 1];
    T *values = reinterpret_cast<T *>(set);
    static_assert(sizeof set == WARP * 64, "");
    memcpy(static_cast<void *>(values + self->lane), &value, sizeof value);
    warp_barrier(what, line, mask);
    return values;
}

// --- asynchronous copies: the bytes arrive when the thread waits for their group, and not before ---

static void copy_async(void *to, const void *from, unsigned bytes, unsigned taken)
{
    if (self->copy_count == MAX_COPIES) fail("more than %u copies in flight", MAX_COPIES);
    if (reinterpret_cast<uintptr_t>(to) % bytes || (taken && reinterpret_cast<uintptr_t>(from) % bytes))
        fail("cp.async of %u bytes needs addresses that are multiples of it", bytes);
    memset(to, POISON, bytes);
    self->copies[self->copy_count++] = {to, from, bytes, taken, self->group};
}

static void copy_commit() { self->group++; }

// All groups but the last `pending` have arrived.
static void copy_wait(unsigned pending)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < self->copy_count; i++) {
        copy &c = self->copies[i];
        if (c.group + pending >= self->group) {
            self->copies[kept++] = c;
            continue;
        }
        memset(c.to, 0, c.bytes);
        if (c.taken) memcpy(c.to, c.from, c.taken);
    }
    self->copy_count = kept;
}

// --- a launch ---

static void body()
{
    entry(arguments);
    self->where = DONE, self->line = 0;
    leave();
}

static void start(fiber &f, unsigned number)
{
    char *stack = f.stack;
    memset(static_cast<void *>(&f), 0, sizeof f);
    f.stack = stack;
    f.thread = {number % block_size.x, number / block_size.x % block_size.y, number / block_size.x / block_size.y};
    f.lane = number % WARP, f.warp = number / WARP;
#if defined(__x86_64__)
    void **top = reinterpret_cast<void **>(stack + STACK);
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void *>(body);
    f.sp = top - 6;
#else
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, body, 0);
#endif
}

static uint64_t next_random()
{
    launch->seed = launch->seed * 6364136223846793005u + 1442695040888963407u;
    return launch->seed >> 33;
}

static void order_threads(unsigned *order)
{
    for (unsigned i = 0; i < thread_count; i++) order[i] = launch->order == 1 ? thread_count - 1 - i : i;
    if (launch->order != 2) return;
    for (unsigned i = thread_count; i > 1; i--) {
        unsigned j = static_cast<unsigned>(next_random() % i), t = order[i - 1];
        order[i - 1] = order[j], order[j] = t;
    }
}

static void run_block()
{
    static unsigned order[MAX_THREADS];
    for (unsigned i = 0; i < shared_count; i++) memset(shared[i].data, POISON, shared[i].bytes);
    for (unsigned i = 0; i < thread_count; i++) start(fibers[i], i);
    memset(static_cast<void *>(slots), POISON, sizeof *slots * (thread_count / WARP + 1));
    for (unsigned done = 0; done < thread_count;) {
        bool moved = false;
        order_threads(order);
        for (unsigned i = 0; i < thread_count; i++) {
            fiber &f = fibers[order[i]];
            if (f.where != READY) continue;
            moved = true;
            self = &f;
            enter(&f);
            if (f.where == DONE) {
                done++;
            } else if (f.where == AT_BLOCK) {
                release(0, thread_count, AT_BLOCK);
            } else if (f.where == AT_WARP) {
                unsigned end = (f.warp + 1) * WARP;
                release(f.warp * WARP, end < thread_count ? end : thread_count, AT_WARP);
            }
            self = nullptr;
        }
        if (!moved) deadlock();
    }
    check_canaries();
}

static void on_signal(int number, siginfo_t *info, void *)
{
    if (!pthread_equal(runner, pthread_self())) {  // not ours: let it happen again without us
        signal(number, SIG_DFL);
        return;
    }
    if (number == SIGILL) {
        fail("unaligned vector access, index outside of its array, or overflow of a whole number (trap of the compiler)");
    }
    launch->fault = info->si_addr;
    for (unsigned i = 0; i < shared_count; i++) {
        const shared_array &a = shared[i];
        char *at = static_cast<char *>(info->si_addr);
        if (at >= a.pages && at < a.pages + a.mapped)
            fail("shared array %s was touched %td bytes from its start; it has %zu bytes", a.name, at - a.data, a.bytes);
    }
    fail("%s at address %p", number == SIGFPE ? "division by zero" : "access outside of all arrays", info->si_addr);
}

static int run(void (*kernel)(void **), void **args, sim_launch *how)
{
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    static char signal_stack[64 * 1024];
    struct sigaction old[4], ours;
    stack_t old_stack, stack = {};
    entry = kernel, arguments = args, launch = how;
    grid_size = {how->grid[0], how->grid[1], how->grid[2]};
    block_size = {how->block[0], how->block[1], how->block[2]};
    thread_count = block_size.x * block_size.y * block_size.z;
    dynamic_bytes = how->shared_bytes;
    how->message[0] = 0, how->fault = nullptr;
    self = nullptr, runner = pthread_self();

    stack.ss_sp = signal_stack, stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, &old_stack);
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_signal;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; i++) sigaction(signals[i], &ours, &old[i]);

    static char *stacks;
    stacks = nullptr;
    if (sigsetjmp(out, 1) == 0) {
        if (thread_count < 1 || thread_count > MAX_THREADS) fail("%u threads in a block; 1 to 1024 are possible", thread_count);
        stacks = map(size_t(thread_count) * STACK);
        fibers = static_cast<fiber *>(calloc(thread_count, sizeof(fiber)));
        slots = static_cast<warp_slots *>(aligned_alloc(16, sizeof(warp_slots) * (thread_count / WARP + 1)));
        for (unsigned i = 0; i < thread_count; i++) fibers[i].stack = stacks + size_t(i) * STACK;
        uint64_t blocks = uint64_t(grid_size.x) * grid_size.y * grid_size.z;
        for (uint64_t n = 0; n < blocks; n++) {
            uint64_t b = how->order == 1 ? blocks - 1 - n : n;
            block_index.x = static_cast<unsigned>(b % grid_size.x);
            block_index.y = static_cast<unsigned>(b / grid_size.x % grid_size.y);
            block_index.z = static_cast<unsigned>(b / grid_size.x / grid_size.y);
            run_block();
        }
    }
    for (int i = 0; i < 4; i++) sigaction(signals[i], &old[i], nullptr);
    sigaltstack(&old_stack, nullptr);
    for (unsigned i = 0; i < shared_count; i++) munmap(shared[i].pages, shared[i].mapped);
    shared_count = 0;
    if (stacks) munmap(stacks, size_t(thread_count) * STACK);
    free(fibers);
    free(slots);
    fibers = nullptr, slots = nullptr, self = nullptr;
    return how->message[0] ? 1 : 0;
}

// --- calling a kernel whose arguments are all pointers ---

template <class T, T... I> struct sequence {};

template <class... A, int... I> void call(void (*kernel)(A...), void **args, sequence<int, I...>)
{
    kernel((A)args[I]...);
}

template <class... A> void call_kernel(void (*kernel)(A...), void **args)
{
    call(kernel, args, __make_integer_seq<sequence, int, sizeof...(A)>{});
}

template <class... A> constexpr int count_arguments(void (*)(A...)) { return sizeof...(A); }

}  // namespace sim
