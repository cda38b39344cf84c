"""What tests of GPU products share: random weights in a scheme, a kernel run in the simulator, bounds of its error."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from sparsec.activations import activation
from sparsec.codegen.cuda import blocking
from sparsec.codegen.cuda.fragments import Packed
from sparsec.codegen.cuda.kernels import gemv
from sparsec.codegen.cuda.source import cuda_source
from sparsec.codegen.program import KernelSpec
from sparsec.formats.encoded import EncodedWeight, decode
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
    """float64 [M, N]: the kernel's result, for inputs and outputs in the target's storage type. Of shares, `weight`
    ends with their pieces."""
    half = target.storage
    blocks = params.get("shares", 0)
    storage = (
        half,
        *(str(w.dtype) for w in weight),
        *(str(x.dtype) for x in added),
        half,
        *(["uint32"] if blocks else []),
    )
    source = cuda_source(KernelSpec(f"cuda.{family}", params, storage), target, "product")
    out = np.full(len(a) * n, np.nan, NUMPY[half])
    arrays = [a.astype(NUMPY[half]).reshape(-1), *weight, *(x.reshape(-1) for x in added), out]
    result = len(arrays) - 1
    if blocks:  # sums of cut panels, garbage at first, and counters
        *_, parts, counters = source.signature.args
        arrays += [np.full(parts.size, 0xFFFFFFFF, np.uint32), np.zeros(counters.size, np.int32)]
    after = simulate(source.text, "product", source.launch, arrays)
    assert not blocks or not after[-1].any(), "counters that are not zero again"
    return np.asarray(after[result].astype(np.float64).reshape(len(a), n))


def bound(a: Array, w: Array, storage: str) -> Array:
    """What |result - reference| may be: every product off by three roundings of its factors, the result by one."""
    size = np.abs(a.astype(np.float64)) @ np.abs(w.astype(np.float64)).T
    return STEP[storage] * (3 * size) + 1e-6


def check(
    encoded: EncodedWeight,
    packed: Packed,
    m: int,
    rng: np.random.Generator,
    target: Target,
    *,
    parts: int = 1,
    **more: Any,
) -> None:
    """A packed weight times m random rows, by gemv.py or (more than 16 rows) gemm.py, against numpy in float64.

    more: parameters of the epilogue; a bias and a residual are random. parts: of the inputs, joined by join.py."""
    w, (n, k) = decode(encoded), (encoded.rows, encoded.cols)
    a = rng.standard_normal((m, k)).astype(NUMPY[target.storage])
    family = "gemv" if m <= gemv.MOST_ROWS else "gemm"
    params = {"m": m, "weight": packed.params, "vector": 8 if k % 8 == 0 else 1, **PLAIN, **more}
    if family == "gemm":
        params |= {**blocking.blocking(m, packed.params, target.gpu), "parts": parts}
    added, want = [], a.astype(np.float64) @ w.astype(np.float64).T
    for name, shape in (("bias", (n,)), ("residual", (m, n))):
        if params[name]:
            added.append(rng.standard_normal(shape).astype(np.float32))
            want = want + added[-1]
    weight = [array for _, array in packed.arrays]
    got = (
        _in_parts(params, a, weight, target, n)
        if parts > 1
        else run_product(family, params, a, weight, added, target, n)
    )
    want = activation(params["act"], params["act_params"])(want, params["act_params"])
    assert (np.abs(got - want) <= bound(a, w, target.storage) + 2.0**-8 * np.abs(want)).all(), np.abs(got - want).max()


def _in_parts(params: dict[str, Any], a: Array, weight: list[Array], target: Target, n: int) -> Array:
    """[M, N] of a product whose parts are summed by another kernel."""
    m, parts = len(a), params["parts"]
    storage = (target.storage, *(str(array.dtype) for array in weight), "uint32")
    source = cuda_source(KernelSpec("cuda.gemm", params, storage), target, "product")
    out = np.zeros(parts * m * n, np.uint32)
    sums = simulate(source.text, "product", source.launch, [a.reshape(-1), *weight, out])[-1]
    spec = KernelSpec("cuda.join", {"m": m, "n": n, "parts": parts, "bits": True, **PLAIN})
    source = cuda_source(spec, target, "product")
    return simulate(source.text, "product", source.launch, [sums, np.zeros(m * n, np.float32)])[-1].reshape(m, n)
