"""What a GPU computed beside what the simulator did, in numpy alone (bfloat16 by its bits)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Of an element, and of the largest one. Sums in another order and other functions of the machine turn a rounding: a step of fp16 is
# 2^-10 of a value, of bfloat16 2^-7.
TOLERANCE = {"float16": 2e-3, "float32": 2e-3, "float64": 2e-3, "bfloat16": 2.0**-7}


def numbers(array: Array, dtype: str) -> Array:
    """The elements as float64; `dtype` is what they are, which for bfloat16 may be stored as uint16."""
    if dtype == "bfloat16":
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def difference(wanted: Array, found: Array, dtype: str | None = None) -> str:
    """How `found` is off beyond what rounding explains; "" if it is not. The error is relative to the largest element."""
    name = str(wanted.dtype) if dtype is None else dtype
    if name == "uint32" and (wanted != found).any():  # bits of sums that kernels hand to one another
        wanted, found, name = wanted.view(np.float32), found.view(np.float32), "float32"
    if name not in TOLERANCE:
        near = wanted.dtype in (np.int8, np.uint8)  # a rounded code may fall to the other side
        gaps = np.abs(wanted.astype(np.int64) - found.astype(np.int64))
        wrong, error = gaps > near, float(gaps.max(initial=0))
        a, b = wanted, found
    else:
        a, b = numbers(wanted, name), numbers(found, name)
        size = np.abs(a[np.isfinite(a)]).max(initial=0.0)
        wrong = ~np.isclose(a, b, rtol=TOLERANCE[name], atol=TOLERANCE[name] * size, equal_nan=True)
        with np.errstate(invalid="ignore"):
            gaps = np.abs(a - b)
        finite = gaps[np.isfinite(gaps)].max(initial=0.0) / (size or 1.0)
        error = float("inf") if (np.isfinite(a) != np.isfinite(b)).any() else float(finite)
    if not wrong.any():
        return ""
    at = int(np.flatnonzero(wrong)[0])
    values = f"{a.flat[at]:.6g} simulated, {b.flat[at]:.6g} on the GPU"
    return f"{int(wrong.sum())} of {wrong.size} elements differ, largest error {error:.3g}, element {at}: {values}"


def differences(wanted: Sequence[Array], found: Sequence[Array], dtypes: Sequence[str] | None = None) -> str:
    """The first argument of a kernel that is off, and how; "" if none is."""
    for index, (one, other) in enumerate(zip(wanted, found, strict=True)):
        if told := difference(one, other, None if dtypes is None else dtypes[index]):
            return f"argument {index}: {told}"
    return ""
