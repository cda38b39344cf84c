#include "spc_npy.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HEADER 65536u

static const uint8_t MAGIC[6] = {0x93, 'N', 'U', 'M', 'P', 'Y'};

/* NumPy's name of an element type on a little-endian machine. */
static const char *descr(int32_t dtype)
{
    switch (dtype) {
    case SPC_FLOAT32: return "<f4";
    case SPC_FLOAT64: return "<f8";
    case SPC_FLOAT16: return "<f2";
    case SPC_INT8: return "|i1";
    case SPC_INT16: return "<i2";
    case SPC_INT32: return "<i4";
    case SPC_INT64: return "<i8";
    case SPC_UINT8: return "|u1";
    case SPC_UINT16: return "<u2";
    case SPC_UINT32: return "<u4";
    case SPC_UINT64: return "<u8";
    case SPC_BOOL: return "|b1";
    default: return "?";
    }
}

static void shape_text(const spc_tensor_info *info, char *text, size_t size)
{
    size_t used = 0;
    text[0] = 0;
    for (int32_t d = 0; d < info->rank && used < size; d++) {
        int n = snprintf(text + used, size - used, d == 0 ? "%" PRId64 : ", %" PRId64, info->dims[d]);
        if (n < 0) return;
        used += (size_t)n;
    }
    if (info->rank == 1 && used < size) snprintf(text + used, size - used, ",");
}

/* The value after 'key': in the header's dictionary, or NULL. */
static const char *find(const char *header, const char *key)
{
    char quoted[32];
    snprintf(quoted, sizeof quoted, "'%s'", key);
    const char *at = strstr(header, quoted);
    if (at == NULL) return NULL;
    at += strlen(quoted);
    at += strspn(at, " ");
    if (*at != ':') return NULL;
    at++;
    return at + strspn(at, " ");
}

static int same_shape(const char *at, const spc_tensor_info *info)
{
    if (*at++ != '(') return 0;
    for (int32_t d = 0; d < info->rank; d++) {
        char *end;
        at += strspn(at, " ,");
        if (*at < '0' || *at > '9') return 0;
        if (strtoll(at, &end, 10) != info->dims[d]) return 0;
        at = end;
    }
    at += strspn(at, " ,");
    return *at == ')';
}

static const char *check_header(const char *header, const spc_tensor_info *info, char *message, size_t size)
{
    char wanted[256];
    const char *type = find(header, "descr"), *order = find(header, "fortran_order"), *shape = find(header, "shape");
    shape_text(info, wanted, sizeof wanted);
    if (type == NULL || order == NULL || shape == NULL) {
        snprintf(message, size, "its .npy header cannot be read");
        return message;
    }
    const char *name = descr(info->dtype);
    if (type[0] != '\'' || strncmp(type + 1, name, strlen(name)) != 0 || type[1 + strlen(name)] != '\'') {
        snprintf(message, size, "dtype %.*s where '%s' takes '%s'", (int)strcspn(type, ","), type, info->name, name);
        return message;
    }
    if (!same_shape(shape, info)) {
        snprintf(message, size, "shape %.*s where '%s' takes (%s)", (int)strcspn(shape, ")") + 1, shape, info->name, wanted);
        return message;
    }
    if (strncmp(order, "True", 4) == 0 && info->rank > 1) {
        snprintf(message, size, "Fortran order; save it with numpy.ascontiguousarray()");
        return message;
    }
    return NULL;
}

static const char *read_open(FILE *file, const spc_tensor_info *info, void *data, char *message, size_t size)
{
    uint8_t start[12];
    char *header;
    snprintf(message, size, "not a .npy file");
    if (fread(start, 1, 10, file) != 10 || memcmp(start, MAGIC, sizeof MAGIC) != 0) return message;
    size_t length = (size_t)start[8] | (size_t)start[9] << 8;
    if (start[6] > 1) {
        if (fread(start + 10, 1, 2, file) != 2) return message;
        length |= (size_t)start[10] << 16 | (size_t)start[11] << 24;
    }
    snprintf(message, size, "its .npy header is damaged");
    if (start[6] < 1 || start[6] > 3 || length == 0 || length > MAX_HEADER) return message;
    header = malloc(length + 1);
    if (header == NULL) return "out of memory";
    if (fread(header, 1, length, file) != length) {
        free(header);
        return message;
    }
    header[length] = 0;
    const char *problem = check_header(header, info, message, size);
    free(header);
    if (problem != NULL) return problem;
    if (fread(data, 1, info->bytes, file) != info->bytes) {
        snprintf(message, size, "truncated: fewer than %zu bytes of data", info->bytes);
        return message;
    }
    return NULL;
}

const char *spc_npy_read(const char *path, const spc_tensor_info *info, void *data, char *message, size_t size)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) return "cannot open the file";
    const char *problem = read_open(file, info, data, message, size);
    fclose(file);
    return problem;
}

const char *spc_npy_write(const char *path, const spc_tensor_info *info, const void *data, char *message, size_t size)
{
    char shape[256], header[512];
    shape_text(info, shape, sizeof shape);
    int text = snprintf(header, sizeof header, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }",
                        descr(info->dtype), shape);
    if (text < 0 || (size_t)text > sizeof header - 80) return "too many dimensions for a .npy header";
    size_t length = (size_t)text;
    while ((10 + length + 1) % 64 != 0) header[length++] = ' '; /* data starts at a multiple of 64 */
    header[length++] = '\n';
    uint8_t start[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, (uint8_t)(length & 255u), (uint8_t)(length >> 8)};
    FILE *file = fopen(path, "wb");
    if (file == NULL) return "cannot create the file";
    int good = fwrite(start, 1, sizeof start, file) == sizeof start && fwrite(header, 1, length, file) == length &&
               fwrite(data, 1, info->bytes, file) == info->bytes;
    if (fclose(file) != 0) good = 0;
    if (good) return NULL;
    snprintf(message, size, "the file could not be written in full");
    return message;
}
