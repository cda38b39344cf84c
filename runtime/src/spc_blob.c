/* The weights blob: everything in it is checked before anything of it is used. */
#include "spc_internal.h"

#include <string.h>

/* Like PNG's: finds files mangled by text-mode transfers. */
static const uint8_t MAGIC[8] = {0x89, 'S', 'P', 'C', '\r', '\n', 0x1a, '\n'};

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u; /* splitmix64's finaliser */
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t little_endian(const uint8_t *p, size_t count)
{
    uint64_t word = 0;
    for (size_t i = 0; i < count; i++) word |= (uint64_t)p[i] << (8u * i);
    return word;
}

uint64_t spc_checksum(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    uint64_t sum = 0, position = 0;
    size_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        position += 0x9e3779b97f4a7c15u;
        sum += mix(little_endian(p + i, 8) ^ position); /* compilers make one load of it */
    }
    if (i < bytes) sum += mix(little_endian(p + i, bytes - i) ^ (position + 0x9e3779b97f4a7c15u));
    return mix(sum ^ (uint64_t)bytes);
}

int32_t spc_weights_from_memory(spc_weights *weights, const spc_model *model, const void *blob, size_t bytes)
{
    spc_blob_header header;
    if (weights == NULL || model == NULL || blob == NULL) return SPC_E_ARGUMENT;
    memset(weights, 0, sizeof *weights);
    if (model->abi != SPC_ABI_VERSION) return SPC_E_ABI;
    if (bytes < sizeof MAGIC) return SPC_E_BLOB_TRUNCATED;
    if (memcmp(blob, MAGIC, sizeof MAGIC) != 0) return SPC_E_BLOB_MAGIC;
    if (bytes < sizeof header) return SPC_E_BLOB_TRUNCATED;
    memcpy(&header, blob, sizeof header);
    if (header.byte_order != SPC_BLOB_ORDER) return SPC_E_BLOB_ENDIAN;
    if (header.version != SPC_BLOB_VERSION) return SPC_E_BLOB_VERSION;
    if (header.header_checksum != spc_checksum(&header, offsetof(spc_blob_header, header_checksum)))
        return SPC_E_BLOB_HEADER;
    if (header.payload_offset < sizeof header || header.payload_offset > header.total_bytes ||
        header.payload_bytes != header.total_bytes - header.payload_offset)
        return SPC_E_BLOB_HEADER;
    if (header.model_id != model->id) return SPC_E_BLOB_MODEL;
    if (header.payload_bytes != model->weights_bytes) return SPC_E_BLOB_SIZE;
    if (header.total_bytes > bytes) return SPC_E_BLOB_TRUNCATED;
    if (header.total_bytes < bytes) return SPC_E_BLOB_SIZE;
    const uint8_t *payload = (const uint8_t *)blob + (size_t)header.payload_offset;
    if (header.payload_checksum != spc_checksum(payload, (size_t)header.payload_bytes)) return SPC_E_BLOB_CHECKSUM;
    weights->payload = payload;
    weights->payload_bytes = (size_t)header.payload_bytes;
    weights->model_id = header.model_id;
    return SPC_OK;
}
