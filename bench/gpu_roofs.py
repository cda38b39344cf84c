"""What a GPU can do at most: kernels that only read, and times of reading and copying a large array through the driver."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from bench.blobs import BlobReader, BlobWriter
from bench.gpu_driver import Workspace

READ_BYTES = 1 << 30
_THREADS = 256
REPLAYS = 15
# Every thread reads `LOADS` times 16 bytes, neighbours side by side, all of them in flight; what is read is used, or nothing would be.
_SOURCE = """#include "device.cuh"

extern "C" __global__ void __launch_bounds__({threads}) read_roof(const uint4* __restrict__ x_p, unsigned* __restrict__ y_p) {{
  const uint4* from = x_p + (size_t)blockIdx.x * {threads} * {loads} + threadIdx.x;
  uint4 got[{loads}];
  #pragma unroll
  for (int i = 0; i < {loads}; ++i) got[i] = from[i * {threads}];
  unsigned all = 0;
  #pragma unroll
  for (int i = 0; i < {loads}; ++i) all ^= got[i].x ^ got[i].y ^ got[i].z ^ got[i].w;
  if (all == 0x2545F491u) y_p[0] = all;
}}
"""


def read_source(loads: int) -> str:
    """CUDA C of a kernel that reads 16 * 256 * loads bytes a block."""
    return _SOURCE.format(threads=_THREADS, loads=loads)


def read_roofs(
    arch: str, blobs: BlobWriter, loads: Sequence[int] = (2, 4, 8, 16), nbytes: int = READ_BYTES
) -> dict[str, Any]:
    """The kernels for the archive: several, since the best number of loads is the GPU's to say."""
    from sparsec.codegen.nvrtc import compile_image

    kernels = [
        {
            "image": blobs.put(compile_image(read_source(n), "read_roof", arch).cubin, "images"),
            "symbol": "read_roof",
            "grid": (nbytes // (16 * _THREADS * n), 1, 1),
            "block": (_THREADS, 1, 1),
        }
        for n in loads
    ]
    return {"bytes": nbytes, "kernels": kernels}


def measure(archive: BlobReader, work: Workspace) -> tuple[float, float]:
    """Bytes a second of reading (the best kernel), and of the driver's copy (read and written)."""
    nbytes = archive.index["roofs"]["bytes"]
    block = np.random.default_rng(0).integers(0, 256, min(nbytes, 1 << 26), np.uint8)
    x, y, stream = work.empty(nbytes), work.empty(nbytes), work.stream()
    for first in range(0, nbytes, block.nbytes):
        work.write(x + first, block[: nbytes - first])
    times = []
    for entry in archive.index["roofs"]["kernels"]:
        kernel = work.kernel(archive.get(entry["image"]), entry["symbol"])
        start = partial(work.start, kernel, entry["grid"], entry["block"], 0, [x, y], stream)
        start()  # a kernel is loaded when it is first started, which must not be while a graph is made
        graph = work.graph(stream, start)
        work.replay_seconds(graph, stream, 2)
        times.append(median(work.replay_seconds(graph, stream, REPLAYS)))
    size = ctypes.c_size_t(nbytes)
    to, source = ctypes.c_ulonglong(y), ctypes.c_ulonglong(x)
    graph = work.graph(stream, lambda: work.gpu.call("cuMemcpyDtoDAsync_v2", to, source, size, stream))
    work.replay_seconds(graph, stream, 2)
    copied = median(work.replay_seconds(graph, stream, REPLAYS))
    return nbytes / min(times), 2 * nbytes / copied
