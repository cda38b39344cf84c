/* Weights and sessions from a file, and errors in words: joins the host's mapped files, the blob's checks, sessions and devices. */
#include "spc_internal.h"

#ifndef SPC_NO_HOST

#include <string.h>

int32_t spc_weights_open(spc_weights *weights, const spc_model *model, const char *path)
{
    void *mapping;
    size_t bytes;
    if (weights == NULL || model == NULL || path == NULL) return SPC_E_ARGUMENT;
    memset(weights, 0, sizeof *weights);
    int32_t status = spc_map_file(path, &mapping, &bytes);
    if (status != SPC_OK) return status;
    status = spc_weights_from_memory(weights, model, mapping, bytes);
    if (status != SPC_OK) {
        spc_unmap_file(mapping, bytes);
        return status;
    }
    weights->mapping = mapping;
    weights->mapping_bytes = bytes;
    return SPC_OK;
}

void spc_weights_close(spc_weights *weights)
{
    if (weights == NULL) return;
    if (weights->mapping != NULL) spc_unmap_file(weights->mapping, weights->mapping_bytes);
    memset(weights, 0, sizeof *weights);
}

int32_t spc_open(spc_session **session, const spc_model *model, const char *weights_path, int32_t threads)
{
    spc_weights weights;
    if (session == NULL) return SPC_E_ARGUMENT;
    *session = NULL;
    int32_t status = spc_weights_open(&weights, model, weights_path);
    if (status != SPC_OK) return status;
    status = spc_session_open(session, model, &weights, threads, NULL, 0);
    if (status != SPC_OK) {
        spc_weights_close(&weights);
        return status;
    }
    spc_session_own_weights(*session);
    return SPC_OK;
}

const char *spc_explain(const spc_model *model, int32_t status)
{
    int known = model != NULL && model->abi == SPC_ABI_VERSION && model->device != NULL;
    return known && status >= SPC_E_CUDA_NO_DRIVER ? model->device->explain() : spc_status_text(status);
}

#endif
