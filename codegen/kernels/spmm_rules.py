"""Lowering of sparse linear layers and convolutions to spmm.py, and of linear layers on a few rows to spmv.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd, lcm, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec import fixed
from sparsec.codegen.context import Lowering, Refusal, Tensor, same_memory
from sparsec.codegen.kernels import (
    spmm,
    spmm_bytes,
    spmm_fixed,
    spmm_plan,
    spmm_values,
    spmm_weights,
    spmv,
    spmv_weights,
)
from sparsec.codegen.kernels.gemm import panel_width
from sparsec.codegen.kernels.quantise import product_input
from sparsec.codegen.kernels.weights import epilogue, refused_epilogue, unpacked_weight
from sparsec.codegen.layouts import Choice, move_time, multiply_time
from sparsec.formats.encoded import Unpacked
from sparsec.op_view import SparsecNode, view
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# Measured, in vector multiplications of the dense kernel: one by a single stored weight, one by a weight of a block of two rows
# or more, and bringing a vector of activations into or out of the pixel layout. (aarch64: as AVX2, not measured.)
_COSTS = {"x86-512": (1.7, 1.3, 16.0), "x86-256": (1.35, 1.1, 10.0), "aarch64": (1.35, 1.1, 8.0)}
NARROW = 2.1  # a stored weight, beside its multiplications: shows in tiles of one or two vectors
_GROUP_DECODE = 4.0  # a stored weight whose scale is its group's
# The same for spmv.py: a stored weight with the first row of activations, and every other row.
_FEW_COSTS = {"x86-512": (2.6, 1.1), "x86-256": (3.0, 1.05), "aarch64": (3.0, 1.05)}
MOST_ROWS = 8  # of activations, for spmv.py
# The dense kernel on groups: times as long as a large product of as many multiplications, and as many more for one row.
_GROUPED = (1.5, 12.0)
_PIECES = 32  # of rows: 2, 4, 8 ... threads share them evenly
_PIECE_WEIGHTS = 4096  # stored, at least, of a piece
DECODE_LANES = 55  # decoding one weight for the dense kernel, in multiplications of one lane
_FEWEST_PIXELS = 16  # of an image
# For the plan of layouts: share of the peak, and transpositions on the way in and out, in times of a conversion of layouts.
_SHARE, _TURNED = 0.4, 0.8
FEWEST_TOKENS = 2
# Products of an input, from which on rounding it to 16 bits for them is faster than multiplying floats.
_FIXED_USES = 12
# The same, below which inputs are not worth a panel of their own.
_FEW_USES = 4
# A window of 256 taps makes half a megabyte of code and takes a minute to compile.
_MOST_TAPS = 64


@dataclass(frozen=True)
class Prepared:
    """A weight laid out for one product: `params` of the kernel without the epilogue's, named `arrays`, and what is data: the
    floats of `scratch` and the number of `entries`."""

    params: dict[str, Any]
    arrays: list[tuple[str, Array]]
    scratch: dict[str, int]
    entries: int


def prepare(
    weight: Unpacked,
    geometry: Mapping[str, Any],
    target: Target,
    *,
    fixed: bool = False,
    even: int = 1,
    in_place: bool = False,
    **forced: int,
) -> Prepared:
    """A weight laid out for a product, in 16-bit fixed point if `fixed` (spmm_fixed.py; floats only); `forced` overrides sizes of
    spmm_plan.choose. even: bands of as many rows each, for one group (1: bands of as many weights, as many as are best). in_place:
    as in spmm_plan.py, if that can be.

    geometry: pixels, images, source, dest; for source "window", window; groups where there are several.
    """
    mask = spmm_weights.element_mask(weight)
    groups = geometry.get("groups", 1)
    strip = strip_of(weight, target, groups)
    values = spmm_fixed.describe() if fixed else spmm_values.describe(weight)
    window = geometry.get("window")
    quantum = window["kh"] * window["kw"] if window else 4 if geometry["source"] == "tokens" else 1
    sizes = spmm_plan.choose(
        weight.rows // groups, weight.cols, geometry["pixels"], geometry["images"] * groups, spmm_weights.density(weight),
        strip, quantum, spmm_values.is_plain(values), target, tokens=geometry["source"] == "tokens",
        per_lane=2 if fixed else 1,
    )  # fmt: skip
    sizes |= forced
    if even > 1:
        assert groups == 1, "groups have bands of their own"
        assert weight.rows % (even * strip) == 0, f"{weight.rows} rows do not make {even} even bands"
        sizes |= {"bands": even, "ranges": 1}
    sizes["bands"] *= groups
    sizes["chunks"] = -(-weight.cols // sizes["chunk"])
    p: dict[str, Any] = {"n": weight.rows, "k": weight.cols, "strip": strip, "values": values, **geometry, **sizes}
    if in_place and _fit_in_place(p, target):
        p["in_place"] = True
    pitch = 2 if spmm_plan.in_place(p) else spmm_plan.pitch(p, target.lanes)  # offsets are columns there
    entries = spmm_weights.arrange(
        mask, strip=strip, chunk=sizes["chunk"], ranges=sizes["ranges"], bands=sizes["bands"],
        align=lcm(strip, target.lanes) // strip if groups * even == 1 else 1, pitch=pitch,
        pad=spmm_values.entry_pad(values), groups=groups * even,
    )  # fmt: skip
    stored = (
        spmm_fixed.arrays(weight, entries, strip, sizes["chunk"])
        if fixed
        else spmm_values.arrays(weight, entries, strip, values)
    )
    arrays = [*entries.arrays(), *stored]
    counts = entries.sizes(sizes["bands"])
    return Prepared(p, arrays, spmm.scratch(p, counts, target), counts["entries"])


def prepare_fastest(
    weight: Unpacked, geometry: Mapping[str, Any], target: Target, *, rounds: bool, even: int = 1, **forced: int
) -> Prepared:
    """`prepare` in 16-bit fixed point (if it `rounds`) or in place, where the products of an input, of each of `even` bands, make that
    the fastest."""
    uses = spmm_weights.stored(weight) * geometry.get("groups", 1) / (weight.cols * even)
    rounded = rounds and uses >= _FIXED_USES
    return prepare(weight, geometry, target, fixed=rounded, even=even, in_place=uses < _FEW_USES, **forced)


def _fit_in_place(p: Mapping[str, Any], target: Target) -> bool:
    """Whether activations can be multiplied where they lie: whole vectors of floats, and values that need no place in a panel."""
    values = p["values"]
    floats = not spmm_fixed.is_fixed(values) and not spmm_bytes.is_whole(values) and not spmm_values.needs_runs(values)
    whole = p["chunks"] == 1 and p.get("groups", 1) == 1 and p["pixels"] % target.lanes == 0
    return floats and p["source"] == "planes" and whole


def refused_sparse(op: SparsecNode, low: Lowering) -> Refusal | None:
    """Why no product over stored weights alone can be done."""
    assert op.x is not None
    if op.scheme.is_dense:
        return Refusal("the weight is dense")
    if op.scheme.codec.meaning.dim > 1:
        return Refusal(f"codec {op.scheme.codec} has one code for {op.scheme.codec.meaning.dim} inputs")
    if low.dtype(op.x) != "float32":
        return Refusal(f"element type {low.dtype(op.x)} is not float32")
    return refused_epilogue(op, low)


def _refusal(op: SparsecNode, low: Lowering, pixels: int, fewest: int = _FEWEST_PIXELS) -> Refusal | None:
    """Why a product vectorised over pixels or tokens is not worth it, or cannot be done, here."""
    if (refusal := refused_sparse(op, low)) is not None:
        return refusal
    if pixels < fewest:
        return Refusal(f"{pixels} pixels or tokens: sparse products vectorise over at least {fewest}")
    if prod(op.kernel_shape) > _MOST_TAPS:
        return Refusal(f"windows of {prod(op.kernel_shape)} taps: the code that gathers them is written out tap by tap")
    if max(op.rows, op.cols) >= 1 << 16:
        return Refusal("more than 65535 rows or columns")
    return None


def strip_of(weight: Unpacked, target: Target, groups: int = 1) -> int:
    """Rows of an entry, all of one group."""
    return spmm_weights.strip_height(gcd(weight.scheme.block[0], weight.rows // groups), spmm_plan.max_strip(target))


def dense_wins(weight: Unpacked, pixels: int, images: int, target: Target, groups: int = 1) -> Refusal | None:
    """A refusal when the dense kernel, which decodes all weights, is predicted to be as fast as skipping zeros."""
    work = pixel_work(weight, pixels, images, target, groups)
    return _slower(weight, work, pixels * images, target, groups)


def isa(target: Target) -> str:
    return "aarch64" if target.arch == "aarch64" else f"x86-{target.vector_bits}"


def pixel_work(weight: Unpacked, pixels: int, images: int, target: Target, groups: int = 1) -> float:
    """Of spmm.py, in vector multiplications of the dense kernel."""
    single, blocked, moved = _COSTS[isa(target)]
    n, k = weight.rows, weight.cols * groups
    stored = spmm_weights.stored(weight)
    strip = strip_of(weight, target, groups)
    vectors = -(-pixels // target.lanes) * images
    tiles = -(-vectors // spmm_plan.most_vectors(strip, target))
    decode = stored * _GROUP_DECODE if weight.scheme.scales.kind == "group" else 0.0
    in_place = stored < _FEW_USES * k and pixels % target.lanes == 0  # inputs are not brought anywhere
    brought = n if in_place else n + k
    work = decode + vectors * (stored * (blocked if strip > 1 else single) + brought * moved)
    return work + (tiles * stored * NARROW / strip if vectors <= 2 * tiles else 0)


def row_work(weight: Unpacked, rows: int, target: Target) -> float:
    """Of spmv.py, in the same unit."""
    first, other = _FEW_COSTS[isa(target)]
    stored = spmm_weights.stored(weight)
    return stored * (first + other * (rows - 1)) + rows * (4 * weight.rows + weight.cols / target.lanes)


def dense_work(weight: Unpacked, pixels: int, target: Target, groups: int = 1) -> float:
    """Of the dense kernel that decodes all weights, in the same unit; every group has whole panels of rows."""
    work = weight.cols * (pixels + DECODE_LANES) / target.lanes
    if groups == 1:
        return weight.rows * work
    n = weight.rows // groups
    width = panel_width(n, pixels, target)
    return groups * (-(-n // width) * width) * work * (_GROUPED[0] + _GROUPED[1] / n)


def _slower(weight: Unpacked, sparse: float, pixels: int, target: Target, groups: int = 1) -> Refusal | None:
    """A refusal where the dense kernel, decoding included, does less work than `sparse`."""
    n, k = weight.rows, weight.cols
    dense = dense_work(weight, pixels, target, groups)
    if sparse < dense:
        return None
    share, times = spmm_weights.density(weight), f"predicted {sparse / dense:.2f} times"
    return Refusal(f"{share:.0%} of the weights of [{n}, {k}] are stored: the dense kernel is faster ({times})")


def _lower(
    op: SparsecNode, low: Lowering, geometry: dict[str, Any], source: Callable[[], Tensor], layout: Any, note: str
) -> Refusal | None:
    weight = unpacked_weight(op)
    refusal = dense_wins(weight, geometry["pixels"], geometry["images"], low.target, geometry.get("groups", 1))
    if refusal is not None:
        return refusal
    label = op.node.name or "weight"
    made = prepare_fastest(weight, geometry, low.target, rounds=op.activations == fixed.NAME)
    p = made.params
    finish, added = epilogue(op, low, arrange=lambda bias: np.pad(bias, (0, -op.rows % p["strip"])), layout=layout)
    p |= finish
    weights = [low.const(array, f"{label}.{name}") for name, array in made.arrays]
    low.call(
        "spmm", p, [source(), *weights, *added], [low.new(op.output, layout)], node=op.node.name or "",
        op=op.node.op_type, note=note, scratch=made.scratch, cost=spmm.cost(p, made.entries),
    )  # fmt: skip
    return None


def lower_sparse_rows(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with sparse weights and a few rows of activations: spmv.py."""
    op = view(node)
    assert op.x is not None
    if (refusal := refused_sparse(op, low)) is not None:
        return refusal
    m = prod(low.shape(op.x)[:-1])
    if not 0 < m <= MOST_ROWS:
        return Refusal(f"{m} rows of activations: 1 to {MOST_ROWS} are multiplied row by row")
    if op.cols >= (1 << 16) - 1:
        return Refusal("more than 65534 columns")
    weight = unpacked_weight(op)
    work = row_work(weight, m, low.target)
    if m >= FEWEST_TOKENS and pixel_work(weight, m, 1, low.target) < work:
        return Refusal(f"{m} rows of activations: vectors over them are predicted to be faster")
    if (refusal := _slower(weight, work, m, low.target)) is not None:
        return refusal
    label = node.name or "weight"
    share = spmm_plan.rounded_share(spmm_weights.density(weight))
    pieces = int(op.rows * op.cols * share) * m // _PIECE_WEIGHTS
    made = spmv_weights.pack(weight, low.target, min(_PIECES, max(1, pieces)))
    ins = [product_input(op, low), *(low.const(array, f"{label}.{name}") for name, array in made.arrays)]
    finish, added = epilogue(op, low, arrange=made.by_lane)
    params = made.params | {"m": m} | finish
    low.call(
        "spmv", params, ins + added, [low.new(op.output)], node=node.name or "", op="MatMul",
        note=f"[{m}, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} {op.activation}".strip(),
        cost=spmv.cost(params, made.steps, low.target),
    )  # fmt: skip
    return None


def lower_sparse_matmul(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with sparse weights and at least two tokens."""
    op = view(node)
    assert op.x is not None
    tokens = prod(low.shape(op.x)[:-1])
    refusal = _refusal(op, low, tokens, FEWEST_TOKENS)
    if refusal is not None:
        return refusal
    note = f"[{tokens}, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} {op.activation}".strip()
    x = op.x
    assert x is not None
    if low.planned(node, ("row", "cl") if sparse_matmul_choice(node, low) is not None else ("row",)) == "cl":
        shape = low.shape(x)
        geometry = {"pixels": shape[1], "images": shape[0], "source": "planes", "dest": "planes"}
        return _lower(op, low, geometry, lambda: low.get(x, "cl"), "cl", note)
    geometry = {"pixels": tokens, "images": 1, "source": "tokens", "dest": "tokens"}
    return _lower(op, low, geometry, lambda: product_input(op, low), "row", note)


def sparse_matmul_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Row order, through transpositions of input and result; [batch, tokens, K] also channels last, where tokens lie side by side."""
    op = view(node)
    assert op.x is not None
    shape = low.shape(op.x)
    if len(shape) != 3 or op.rounds or same_memory(shape) or same_memory(low.shape(op.output)):
        return None
    if _refusal(op, low, shape[1]) is not None:
        return None
    weight = unpacked_weight(op)
    if dense_wins(weight, shape[1], shape[0], low.target) is not None:
        return None
    lanes, stored = low.target.lanes, spmm_weights.stored(weight)
    turned = _TURNED * (move_time(low, op.x) + move_time(low, op.output))

    def products(pixels: int, images: int) -> float:
        return multiply_time(low, -(-pixels // lanes) * lanes * images * stored, _SHARE)

    return Choice({"row": products(prod(shape[:2]), 1) + turned, "cl": products(shape[1], shape[0])})


def sparse_conv_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Row order; 1x1 convolutions also take channels last, through transpositions of input and result."""
    op = view(node)
    assert op.x is not None
    shape, results = low.shape(op.x), prod(low.shape(op.output))
    if len(shape) not in (3, 4) or _refusal(op, low, prod(low.shape(op.output)[2:])) is not None:
        return None
    weight = unpacked_weight(op)
    if dense_wins(weight, prod(low.shape(op.output)[2:]), shape[0], low.target, op.group) is not None:
        return None
    stored = results * op.cols * spmm_weights.density(weight)
    row = multiply_time(low, stored, _SHARE)
    if not _is_pointwise(op) or op.group > 1:
        return Choice({"row": row})
    return Choice({"row": row, "cl": row + _TURNED * (move_time(low, op.x) + move_time(low, op.output))})


def _is_pointwise(op: SparsecNode) -> bool:
    return prod(op.kernel_shape) == 1 and set(op.strides) <= {1} and not any(op.pads)


def lower_sparse_conv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv, 1-D and 2-D, with sparse weights."""
    op = view(node)
    assert op.x is not None
    x = op.x
    shape, out_shape = low.shape(x), low.shape(op.output)
    if len(shape) not in (3, 4):
        return Refusal(f"{len(shape) - 2}-D convolution is not supported (1-D and 2-D are)")
    pixels = prod(out_shape[2:])
    refusal = _refusal(op, low, pixels)
    if refusal is not None:
        return refusal
    wide = len(shape) == 3
    kernel = (1, *op.kernel_shape) if wide else op.kernel_shape
    strides = (1, *(op.strides or (1,))) if wide else (op.strides or (1, 1))
    dilations = (1, *(op.dilations or (1,))) if wide else (op.dilations or (1, 1))
    pads = op.pads or (0,) * (2 * (len(shape) - 2))
    top, left = (0, pads[0]) if wide else (pads[0], pads[1])
    size = "x".join(str(v) for v in op.kernel_shape)
    note = f"{size} s{strides[-1]} {list(shape)} -> {list(out_shape)} {op.scheme} {op.activation}".strip()
    pointwise = _is_pointwise(op)
    if pointwise and op.group == 1 and (low.plan.get(node) or low.layout(op.x)) == "cl":
        # channels last is a matrix [pixel][channel] already
        geometry: dict[str, Any] = {"pixels": shape[0] * pixels, "images": 1, "source": "tokens", "dest": "tokens"}
        return _lower(op, low, geometry, lambda: low.get(x, "cl"), "cl", note)
    geometry = {"pixels": pixels, "images": shape[0], "source": "planes", "dest": "planes"}
    if op.group > 1:
        geometry["groups"] = op.group
    if not pointwise:
        height, width = (1, shape[2]) if wide else shape[2:]
        out_h, out_w = (1, out_shape[2]) if wide else out_shape[2:]
        geometry |= {
            "source": "window",
            "window": {
                "c": shape[1] // op.group, "ih": height, "iw": width, "oh": out_h, "ow": out_w, "kh": kernel[0], "kw": kernel[1],
                "sh": strides[0], "sw": strides[1], "dh": dilations[0], "dw": dilations[1], "pt": top, "pl": left,
            },
        }  # fmt: skip
    return _lower(op, low, geometry, lambda: low.get(x), "row", note)
