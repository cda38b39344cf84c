/* Runs the model on .npy files: <program> in0.npy [in1.npy ...] out0.npy [out1.npy ...] */
#define _POSIX_C_SOURCE 200809L
#include "spc_npy.h"

#include "spc_internal.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FAILED = 1, USAGE = 2 };

static void show(const char *kind, const spc_tensor_info *info, FILE *to)
{
    static const char *const names[] = {"?", "float32", "float64", "float16", "int8", "int16", "int32",
                                        "int64", "uint8", "uint16", "uint32", "uint64", "bool"};
    int known = info->dtype > 0 && info->dtype < (int32_t)(sizeof names / sizeof *names);
    fprintf(to, "  %s %s: %s[", kind, info->name, names[known ? info->dtype : 0]);
    for (int32_t d = 0; d < info->rank; d++) fprintf(to, d == 0 ? "%lld" : ", %lld", (long long)info->dims[d]);
    fprintf(to, "]\n");
}

static int usage(const spc_model *model, const char *program, FILE *to)
{
    fprintf(to, "usage: %s [-w weights.bin] [-t threads] [-n repeat] in.npy ... out.npy ...\n", program);
    for (int32_t i = 0; i < model->input_count; i++) show("in ", &model->inputs[i], to);
    for (int32_t i = 0; i < model->output_count; i++) show("out", &model->outputs[i], to);
    fprintf(to,
            "  -w  the weights (default: weights.bin beside the program or one folder up)\n"
            "  -t  threads (default 1; 0 = all processors)\n"
            "  -n  run so many times more and print the median time\n");
    return USAGE;
}

/* weights.bin beside the program, else one folder up (bin/ of a bundle). */
static void default_weights(const char *program, char *path, size_t size)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0) self[n] = 0;
    else snprintf(self, sizeof self, "%s", program);
    char *slash = strrchr(self, '/');
    if (slash != NULL) *slash = 0;
    else strcpy(self, ".");
    int used = snprintf(path, size, "%s/weights.bin", self);
    if (used > 0 && (size_t)used < size && access(path, R_OK) == 0) return;
    used = snprintf(path, size, "%s/../weights.bin", self);
    if (used < 0 || (size_t)used >= size) path[0] = 0;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int parse(const char *text, long lowest, long highest, long *value)
{
    char *end;
    errno = 0;
    *value = strtol(text, &end, 10);
    return errno == 0 && end != text && *end == 0 && *value >= lowest && *value <= highest;
}

static int run(spc_session *session, const void *const *in, void *const *out)
{
    int32_t status = spc_session_run(session, in, out);
    if (status != SPC_OK) fprintf(stderr, "error: %s\n", spc_explain(spc_bundle_model(), status));
    return status == SPC_OK ? 0 : FAILED;
}

static int time_runs(spc_session *session, const void *const *in, void *const *out, long repeat)
{
    uint64_t *times = malloc(sizeof *times * (size_t)repeat);
    if (times == NULL) return FAILED;
    for (long i = 0; i < repeat; i++) {
        uint64_t start = spc_now_ns();
        if (run(session, in, out) != 0) {
            free(times);
            return FAILED;
        }
        times[i] = spc_now_ns() - start;
    }
    qsort(times, (size_t)repeat, sizeof *times, compare);
    printf("median of %ld runs: %.3f ms\n", repeat, (double)times[repeat / 2] * 1e-6);
    free(times);
    return 0;
}

static int run_files(const spc_model *model, spc_session *session, char **paths, long repeat)
{
    int32_t ins = model->input_count, outs = model->output_count;
    void **data = calloc((size_t)(ins + outs) + 1, sizeof *data);
    char message[512];
    int result = data == NULL ? FAILED : 0;
    for (int32_t i = 0; i < ins + outs && result == 0; i++) {
        const spc_tensor_info *info = i < ins ? &model->inputs[i] : &model->outputs[i - ins];
        data[i] = malloc(info->bytes + 1);
        const char *problem = data[i] == NULL ? "out of memory"
                              : i < ins       ? spc_npy_read(paths[i], info, data[i], message, sizeof message)
                                              : NULL;
        if (problem != NULL) {
            fprintf(stderr, "error: %s: %s\n", paths[i], problem);
            result = FAILED;
        }
    }
    if (result == 0) {
        const void *const *in = (const void *const *)data;
        void *const *out = data + ins;
        result = run(session, in, out);
        if (result == 0 && repeat > 0) result = time_runs(session, in, out, repeat);
    }
    for (int32_t i = 0; i < outs && result == 0; i++) {
        const char *problem = spc_npy_write(paths[ins + i], &model->outputs[i], data[ins + i], message, sizeof message);
        if (problem != NULL) {
            fprintf(stderr, "error: %s: %s\n", paths[ins + i], problem);
            result = FAILED;
        }
    }
    for (int32_t i = 0; data != NULL && i < ins + outs; i++) free(data[i]);
    free(data);
    return result;
}

int main(int argc, char **argv)
{
    const spc_model *model = spc_bundle_model();
    char beside[PATH_MAX + 32];
    const char *weights = NULL;
    long threads = 1, repeat = 0;
    int option;
    while ((option = getopt(argc, argv, "w:t:n:h")) != -1) {
        switch (option) {
        case 'w': weights = optarg; break;
        case 't':
            if (!parse(optarg, 0, SPC_MAX_THREADS, &threads)) return usage(model, argv[0], stderr);
            break;
        case 'n':
            if (!parse(optarg, 1, 100000000, &repeat)) return usage(model, argv[0], stderr);
            break;
        case 'h': usage(model, argv[0], stdout); return 0;
        default: return usage(model, argv[0], stderr);
        }
    }
    int files = argc - optind, wanted = model->input_count + model->output_count;
    if (files != wanted) {
        fprintf(stderr, "error: %d files given, %d wanted\n", files, wanted);
        return usage(model, argv[0], stderr);
    }
    if (weights == NULL) {
        default_weights(argv[0], beside, sizeof beside);
        weights = beside;
    }
    spc_session *session = NULL;
    int32_t status = spc_open(&session, model, weights, threads == 0 ? spc_cpu_count() : (int32_t)threads);
    if (status != SPC_OK) {
        if (status >= SPC_E_CUDA_NO_DRIVER) fprintf(stderr, "error: %s\n", spc_explain(model, status));
        else fprintf(stderr, "error: %s: %s\n", weights, spc_status_text(status));
        return FAILED;
    }
    int result = run_files(model, session, argv + optind, repeat);
    spc_session_close(session);
    return result;
}
