"""Our GPU products as launches on given memory: what `bench gpu` times, made without the runtime so that buffers can rotate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec import ops
from sparsec.codegen.context import Lowering
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.products import PRODUCTS
from sparsec.codegen.cuda.source import cuda_source
from sparsec.codegen.cuda.storage import store_halves
from sparsec.codegen.nvrtc import Image, compile_image
from sparsec.codegen.program import Buffer
from sparsec.formats import EncodedWeight, Scheme
from sparsec.formats.layout import pack_bits, pack_planes, plane_widths, unpack_bits, zero_point_bits
from sparsec.formats.meaning import FloatValue, VectorValue
from sparsec.formats.structure import NM, Block
from sparsec.target import Target

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Call:
    """One kernel: its CUDA C and image, and the names of the buffers it takes in order."""

    symbol: str
    source: str
    image: Image
    launch: Launch
    buffers: tuple[str, ...]


@dataclass(frozen=True)
class GpuProduct:
    """C[M, N] = A[M, K] . W[N, K]^T in halves. weights: constant buffers by name; sizes: bytes of all others, `a` and `c` among them."""

    calls: tuple[Call, ...]
    weights: Mapping[str, Array]
    sizes: Mapping[str, int]
    m: int
    a: str
    c: str

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weight as kernels read it."""
        return sum(array.nbytes for array in self.weights.values())


def product(weight: EncodedWeight | Array, m: int, target: Target) -> GpuProduct:
    """The kernels that a sparsec::MatMul of `m` rows with this weight becomes."""
    rows, cols = (weight.rows, weight.cols) if isinstance(weight, EncodedWeight) else weight.shape
    x = ir.Value(name="a", shape=ir.Shape((m, cols)), type=ir.TensorType(ir.DataType.FLOAT))
    node = ops.matmul(x, ops.weight_inputs(weight, "w"), name="product").node
    node.outputs[0].name = "c"
    node.outputs[0].shape, node.outputs[0].type = ir.Shape((m, rows)), ir.TensorType(ir.DataType.FLOAT)
    low = Lowering(ir.Model(ir.Graph([x], node.outputs, nodes=[], name="product"), ir_version=10), target, "product")
    low.bind(x, low.temp("float32", (m, cols), name="a"))
    refusals = []
    for rule in PRODUCTS:
        refusal = rule(node, low)
        if refusal is None:
            break
        refusals.append(refusal.reason)
    else:
        raise ValueError("; ".join(refusals))
    store_halves(low.program)
    calls = []
    for index, step in enumerate(low.program.steps):
        source = cuda_source(step.spec, target, f"kernel{index}")
        image = compile_image(source.text, source.symbol, target.gpu)
        calls.append(
            Call(source.symbol, source.text, image, source.launch, tuple(ref.buffer.name for ref in step.refs))
        )
    names: dict[str, Buffer] = {ref.buffer.name: ref.buffer for step in low.program.steps for ref in step.refs}
    weights = {name: b.data for name, b in names.items() if b.data is not None}
    sizes = {name: b.nbytes for name, b in names.items() if b.data is None}
    return GpuProduct(tuple(calls), weights, sizes, m, "a", low.get(node.outputs[0]).buffer.name)


def random_weight(scheme: str, rows: int, cols: int, rng: np.random.Generator) -> EncodedWeight | Array:
    """A weight of random codes: k-means of 235 million values is no part of what is timed."""
    parsed = Scheme.parse(scheme)
    if parsed.is_plain:
        return rng.standard_normal((rows, cols), np.float32) / np.float32(np.sqrt(cols))
    codec, (r, c) = parsed.codec, parsed.block
    grid = (-(-rows // r), -(-cols // c))
    mask = _random_mask(parsed, grid, rng)
    count = rows * -(-cols // codec.dim) if mask is None else int(mask.sum()) * r * c // codec.dim
    length = cols if mask is None else max(1, int(mask.sum(1).max())) * c
    arrays: dict[str, Array] = {}
    for role in parsed.roles:
        if role == "positions":
            assert mask is not None
            arrays[role] = pack_bits(mask)
        elif role == "codebook":
            entries = 1 << (codec.meaning.bits if isinstance(codec.meaning, VectorValue) else codec.code_bits)
            shape = (
                (1, codec.meaning.stages, entries, codec.dim)
                if isinstance(codec.meaning, VectorValue)
                else (1, entries)
            )
            kind = codec.meaning.entry if isinstance(codec.meaning, VectorValue) else "float32"
            arrays[role] = rng.standard_normal(shape).astype(kind)
        elif role == "scales":
            group = parsed.scales.kind == "group"
            shape = (
                (rows, -(-length // parsed.scales.group))
                if group
                else (1 if parsed.scales.kind == "tensor" else rows, 1)
            )
            arrays[role] = (rng.random(shape) / np.sqrt(cols)).astype(np.float16 if group else np.float32)
        elif role == "zero_points":
            zeros = rng.integers(0, 1 << codec.code_bits, arrays["scales"].size, np.uint8)
            arrays[role] = pack_planes(zeros, zero_point_bits(codec.code_bits))[0]
        elif isinstance(codec.meaning, FloatValue):
            arrays[role] = (rng.standard_normal(count, np.float32) / np.sqrt(cols)).astype(
                f"float{codec.meaning.width}"
            )
        else:
            width = plane_widths(codec.code_bits)[int(role.removeprefix("codes") or 0)]
            arrays[role] = rng.integers(0, 256, -(-count * width // 8), np.uint8)
    return EncodedWeight.from_arrays(parsed, rows, cols, arrays)


def repeated(weight: EncodedWeight | Array, times: int) -> EncodedWeight | Array:
    """The rows of a weight of `random_weight`, again and again; rows must end with whole bytes of codes."""
    if not isinstance(weight, EncodedWeight):
        return np.tile(weight, (times, 1))
    arrays = {
        role: array if role == "codebook" or array.shape == (1, 1) else np.tile(array, (times, 1)[: array.ndim])
        for role, array in weight.arrays().items()
    }
    return EncodedWeight.from_arrays(weight.scheme, times * weight.rows, weight.cols, arrays)


def _random_mask(scheme: Scheme, grid: tuple[int, int], rng: np.random.Generator) -> Array | None:
    structure = scheme.structure
    if structure.is_dense:
        return None
    if isinstance(structure, NM):
        order = rng.random((grid[0], grid[1] // structure.m, structure.m)).argsort(axis=2)
        return np.asarray((order < structure.n).reshape(grid))
    share = structure.percent if isinstance(structure, Block) else getattr(structure, "percent", 50.0)
    packed = pack_bits(rng.random(grid, np.float32) >= share / 100)
    return unpack_bits(packed, grid)
