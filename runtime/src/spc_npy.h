/* Reads and writes NumPy's .npy files (format versions 1 to 3), for the demo program. */
#ifndef SPC_NPY_H
#define SPC_NPY_H

#include "spc_runtime.h"

/* Read exactly info->bytes of data of info's dtype and shape into `data`. Returns NULL, or what is wrong in English (the
 * text lives in `message`, of `size` bytes). */
const char *spc_npy_read(const char *path, const spc_tensor_info *info, void *data, char *message, size_t size);

/* Write an array. Returns NULL, or what went wrong. */
const char *spc_npy_write(const char *path, const spc_tensor_info *info, const void *data, char *message, size_t size);

#endif
