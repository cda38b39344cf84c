"""What tests of GPU products share: random weights in a scheme, a kernel run in the simulator, bounds of its error."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from sparsec.codegen.cuda.source import cuda_source
from sparsec.codegen.program import KernelSpec
from sparsec.target import Target
from tests.cuda.simulator import simulate

Array = np.ndarray[Any, Any]
NUMPY: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
PLAIN: dict[str, Any] = {"bias": False, "residual": False, "act": "", "act_params": []}
# One rounding of a weight or scale to the storage type, and one of the result.
STEP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def run_product(
    family: str, params: dict[str, Any], a: Array, weight: list[Array], added: list[Array], target: Target, n: int
) -> Array:
    """float64 [M, N]: the kernel's result, for inputs and outputs in the target's storage type."""
    half = target.storage
    storage = (half, *(str(w.dtype) for w in weight), *(str(x.dtype) for x in added), half)
    source = cuda_source(KernelSpec(f"cuda.{family}", params, storage), target, "product")
    out = np.full(len(a) * n, np.nan, NUMPY[half])
    arrays = [a.astype(NUMPY[half]).reshape(-1), *weight, *(x.reshape(-1) for x in added), out]
    after = simulate(
        source.text,
        "product",
        source.launch,
        [x.view(np.uint16) if x.dtype == NUMPY["bfloat16"] else x for x in arrays],
    )
    return np.asarray(after[-1].view(NUMPY[half]).astype(np.float64).reshape(len(a), n))


def bound(a: Array, w: Array, storage: str) -> Array:
    """What |result - reference| may be: every product off by three roundings of its factors, the result by one."""
    size = np.abs(a.astype(np.float64)) @ np.abs(w.astype(np.float64)).T
    return STEP[storage] * (3 * size) + 1e-6
