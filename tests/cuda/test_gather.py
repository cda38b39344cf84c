"""Slices and rows of coded tables at run-time indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.kernels.lookup import pack
from sparsec.codegen.program import KernelSpec
from sparsec.formats import Scheme, decode, encode, unpack
from sparsec.target import resolve_target
from tests.cuda.programs import lower_and_simulate, source_of
from tests.cuda.simulator import simulate
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference
from tests.kernels.test_lookup import _mask

Array = np.ndarray[Any, Any]
SCHEMES = [
    "fp16", "int8", "int4-g32", "uint4-g8", "ternary", "cb3", "cb4-g32", "cb4.r5", "cb4.i16", "s50", "s90-int8", "s2:4-cb3",
    "s16x1@50-cb4-g32", "s1x4@50-int8-g8", "vq2d4", "vq3d4-g16", "vq2d4.x2.i8", "s1x4@50-vq2d4",
]  # fmt: skip


@pytest.mark.parametrize("text", SCHEMES)
def test_coded_rows(text: str, rng: np.random.Generator) -> None:
    scheme, shape = Scheme.parse(text), (21, 48 if "2:4" in text or "d4" in text else 45)
    weight = rng.normal(size=shape).astype(np.float32)
    encoded = encode(weight, scheme, None if scheme.is_dense else _mask(scheme, shape, rng))
    indices = rng.integers(-shape[0], shape[0], 4)
    params, arrays = pack(unpack(encoded))
    spec = KernelSpec("cuda.lookup", {**params, "index_dtype": "int64", "count": 4})
    text_of, launch = source_of(spec, resolve_target("cuda"))
    inputs = [indices, *(array for _, array in sorted(arrays.items()))]
    inputs = [a.view(np.uint8) if a.dtype == bool else a for a in inputs]
    *_, found, status = simulate(
        text_of, "kernel", launch, [*inputs, np.zeros(4 * shape[1], np.float32), np.zeros(1, np.int32)]
    )
    np.testing.assert_allclose(found.reshape(4, -1), decode(encoded)[indices], rtol=1e-6, atol=1e-7)
    assert status[0] == 0


def test_a_row_out_of_range(rng: np.random.Generator) -> None:
    encoded = encode(rng.normal(size=(9, 16)).astype(np.float32), Scheme.parse("int8"))
    params, arrays = pack(unpack(encoded))
    spec = KernelSpec("cuda.lookup", {**params, "index_dtype": "int32", "count": 2})
    source, launch = source_of(spec, resolve_target("cuda"))
    for wrong in (9, -10):
        given = [
            np.array([0, wrong], np.int32),
            *(a for _, a in sorted(arrays.items())),
            np.zeros(32, np.float32),
            np.zeros(1, np.int32),
        ]
        assert simulate(source, "kernel", launch, given)[-1][0] == 1


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("inner", [16, 5])
def test_gather(inner: int, dtype: str, rng: np.random.Generator) -> None:
    inputs = {"x": rng.integers(0, 100, (7, 3, inner)).astype(dtype), "at": rng.integers(-3, 3, (2, 4))}
    model = node_model("Gather", inputs, axis=1)
    np.testing.assert_array_equal(lower_and_simulate(model, inputs)[0], reference(model, inputs)[0])


def test_gather_nd(rng: np.random.Generator) -> None:
    inputs = {"x": rng.normal(size=(2, 5, 6, 8)).astype(np.float32), "at": rng.integers(0, 5, (2, 3, 2))}
    model = node_model("GatherND", inputs, batch_dims=1)
    np.testing.assert_array_equal(lower_and_simulate(model, inputs)[0], reference(model, inputs)[0])
