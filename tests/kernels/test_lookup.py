"""Rows of coded tables against the numpy reference of the formats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sparsec import ops
from sparsec.codegen.kernels.lookup import pack
from sparsec.formats import Scheme, decode, encode, unpack
from tests.kernels.harness import run_kernel
from tests.kernels.nodes import check

SCHEMES = [
    "fp16", "int8", "int8-t", "int4-g32", "int2-g5", "uint8", "uint4-g8", "uint2-t", "ternary", "ternary-g16",
    "cb1", "cb3", "cb4-g32", "cb5-c", "cb6-t", "cb7", "cb8", "cb4.r5", "cb4.i16", "cb3.i5-c",
    "s50", "s90-int8", "s50-fp16", "s2:4-int4-g32", "s2:4-cb3", "s16x1@50-cb4-g32", "s4x4@75-fp16", "s1x4@50-int8-g8",
    "vq2d4", "vq2d8-c", "vq3d4-g16", "vq2d4.x2.i8", "vq1d8.r5", "vq2d4.q8", "s1x4@50-vq2d4", "s2x8@50-vq1d4-g8", "s3x2@60-vq2d2.r3",
    "pow2", "pg5", "nf4-g32", "fp8", "fp4-g5", "binary", "int3", "uint6-g8", "s50-nf4-g8", "s2:4-fp8",
    "s50-ternary-g8", "s50-uint4-g4", "s2x3@60-cb4.i6", "s70-cb2.r4",
]  # fmt: skip


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("shape", [(37, 48), (5, 29)])
def test_rows_of_every_kind_of_scheme(text: str, shape: tuple[int, int]) -> None:
    scheme = Scheme.parse(text)
    if text.startswith("s2:4") and shape[1] % 4:
        shape = (shape[0], 28)
    rng = np.random.default_rng(7)
    weight = rng.normal(size=shape).astype(np.float32)
    mask = None if scheme.is_dense else _mask(scheme, shape, rng)
    encoded = encode(weight, scheme, mask)
    indices = rng.integers(-shape[0], shape[0], 6)
    params, arrays = pack(unpack(encoded))
    inputs = [indices, *(a for _, a in sorted(arrays.items()))]
    (out,) = run_kernel("lookup", {**params, "index_dtype": "int64", "count": 6}, inputs)
    np.testing.assert_allclose(out.reshape(6, -1), decode(encoded)[indices], rtol=1e-6, atol=1e-7)


def _mask(scheme: Scheme, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    r, c = scheme.block
    if ":" in str(scheme):
        order = rng.random((shape[0], shape[1] // 4, 4)).argsort(-1).argsort(-1)
        return (order < 2).reshape(shape)
    coarse = rng.random((-(-shape[0] // r), -(-shape[1] // c))) < 0.4
    coarse[0] = False  # a strip with nothing stored
    return coarse.repeat(r, 0)[: shape[0]].repeat(c, 1)[:, : shape[1]]


@pytest.mark.parametrize("text", ["fp32", "cb4-g32", "s50-int8"])
def test_node_equals_its_function_body(text: str) -> None:
    rng = np.random.default_rng(8)
    weight = rng.normal(size=(19, 64)).astype(np.float32)
    weight[np.abs(weight) < 0.5] = 0
    indices = ir.Value(name="ids", shape=ir.Shape([2, 3]), type=ir.TensorType(ir.DataType.INT32))
    scheme = Scheme.parse(text)
    stored = weight if text == "fp32" else encode(weight, scheme)
    built = ops.gather(ops.weight_inputs(stored, "table"), indices, name="embed")
    built.output.dtype = ir.DataType.FLOAT
    graph = ir.Graph([indices], [built.output], nodes=[built.node], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    built.register(model)
    check(model, {"ids": np.array([[0, -1, 18], [-19, 3, 3]], np.int32)}, rtol=1e-6, atol=1e-7, steps=1)


def test_packed_size_is_near_the_formats() -> None:
    weight = np.random.default_rng(9).normal(size=(200, 128)).astype(np.float32)
    encoded = encode(weight, Scheme.parse("cb4-g32"))
    _, arrays = pack(unpack(encoded))
    assert sum(a.nbytes for a in arrays.values()) == encoded.nbytes
