"""Lowering of sparse linear layers and convolutions to spmm.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import lcm, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Tensor
from sparsec.codegen.kernels import spmm_plan, spmm_values, spmm_weights
from sparsec.codegen.kernels.quantise import product_input
from sparsec.codegen.kernels.weights import refused_epilogue, unpacked_weight
from sparsec.codegen.layouts import Choice, move_time, multiply_time
from sparsec.formats.encoded import Unpacked
from sparsec.op_view import SparsecNode, view
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# Measured, in vector multiplications of the dense kernel: one by a single stored weight, one by a weight of a block of two rows
# or more, and bringing a vector of activations into or out of the pixel layout. (aarch64: as AVX2, not measured.)
_COSTS = {"x86-512": (1.7, 1.3, 16.0), "x86-256": (1.35, 1.1, 10.0), "aarch64": (1.35, 1.1, 8.0)}
_DECODE_LANES = 55  # decoding one weight for the dense kernel, in multiplications of one lane
_FEWEST_PIXELS = 16
# A window of 256 taps makes half a megabyte of code and takes a minute to compile.
_MOST_TAPS = 64


def prepare(
    weight: Unpacked, geometry: Mapping[str, Any], target: Target, **forced: int
) -> tuple[dict[str, Any], list[tuple[str, Array]]]:
    """(kernel parameters without the epilogue's, named arrays) of a weight; `forced` overrides sizes of spmm_plan.choose.

    geometry: pixels, images, source, dest and, for source "window", window.
    """
    mask = spmm_weights.element_mask(weight)
    strip = spmm_weights.strip_height(weight.scheme.block[0], spmm_plan.max_strip(target))
    values = spmm_values.describe(weight)
    window = geometry.get("window")
    quantum = window["kh"] * window["kw"] if window else 4 if geometry["source"] == "tokens" else 1
    sizes = spmm_plan.choose(
        weight.rows, weight.cols, geometry["pixels"], geometry["images"], int(mask.sum()), strip, quantum,
        spmm_values.is_plain(values), target,
    )  # fmt: skip
    sizes |= forced
    sizes["chunks"] = -(-weight.cols // sizes["chunk"])
    p: dict[str, Any] = {"n": weight.rows, "k": weight.cols, "strip": strip, "values": values, **geometry, **sizes}
    entries = spmm_weights.arrange(
        mask, strip=strip, chunk=sizes["chunk"], ranges=sizes["ranges"], bands=sizes["bands"],
        align=lcm(strip, target.lanes) // strip, pitch=spmm_plan.pitch(p, target.lanes), pad=spmm_values.entry_pad(values),
    )  # fmt: skip
    p |= entries.params(sizes["bands"])
    return p, [*entries.arrays(), *spmm_values.arrays(weight, entries, strip, values)]


def _refusal(op: SparsecNode, low: Lowering, pixels: int) -> Refusal | None:
    """Why this product is not worth it, or cannot be done, here."""
    assert op.x is not None
    if op.scheme.is_dense:
        return Refusal("the weight is dense")
    if op.scheme.codec.meaning.dim > 1:
        return Refusal(f"codec {op.scheme.codec} has one code for {op.scheme.codec.meaning.dim} inputs")
    if low.dtype(op.x) != "float32":
        return Refusal(f"element type {low.dtype(op.x)} is not float32")
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    if pixels < _FEWEST_PIXELS:
        return Refusal(f"{pixels} pixels or tokens: sparse products vectorise over at least {_FEWEST_PIXELS}")
    if prod(op.kernel_shape) > _MOST_TAPS:
        return Refusal(f"windows of {prod(op.kernel_shape)} taps: the code that gathers them is written out tap by tap")
    if max(op.rows, op.cols) >= 1 << 16:
        return Refusal("more than 65535 rows or columns")
    return None


def dense_wins(weight: Unpacked, pixels: int, images: int, target: Target) -> Refusal | None:
    """A refusal when the dense kernel, which decodes all weights, is predicted to be as fast as skipping zeros."""
    isa = "aarch64" if target.arch == "aarch64" else f"x86-{target.vector_bits}"
    single, blocked, moved = _COSTS[isa]
    n, k, lanes = weight.rows, weight.cols, target.lanes
    share = float(spmm_weights.element_mask(weight).mean())
    vectors = -(-pixels // lanes) * images
    sparse = vectors * (n * k * share * (blocked if weight.scheme.block[0] > 1 else single) + (n + k) * moved)
    dense = n * k * (pixels * images + _DECODE_LANES) / lanes
    if sparse < dense:
        return None
    times = f"predicted {sparse / dense:.2f} times"
    return Refusal(f"{share:.0%} of the weights of [{n}, {k}] are stored: the dense kernel is faster ({times})")


def _lower(
    op: SparsecNode, low: Lowering, geometry: dict[str, Any], source: Callable[[], Tensor], layout: Any, note: str
) -> Refusal | None:
    weight = unpacked_weight(op)
    refusal = dense_wins(weight, geometry["pixels"], geometry["images"], low.target)
    if refusal is not None:
        return refusal
    label = op.node.name or "weight"
    p, arrays = prepare(weight, geometry, low.target)
    bias: list[Tensor] = []
    if op.bias is not None:
        flat = np.zeros(-(-op.rows // p["strip"]) * p["strip"], np.float32)
        flat[: op.rows] = np.broadcast_to(np.asarray(low.constant(op.bias)).reshape(-1), (op.rows,))
        bias = [low.const(flat, f"{label}.bias")]
    residual = [] if op.residual is None else [low.get(op.residual, layout)]
    p |= {"bias": bool(bias), "residual": bool(residual), "act": op.activation, "act_params": list(op.act_params)}
    weights = [low.const(array, f"{label}.{name}") for name, array in arrays]
    low.call(
        "spmm", p, [source(), *weights, *bias, *residual], [low.new(op.output, layout)], node=op.node.name or "",
        op=op.node.op_type, note=note,
    )  # fmt: skip
    return None


def lower_sparse_matmul(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with sparse weights and at least 16 tokens."""
    op = view(node)
    assert op.x is not None
    tokens = prod(low.shape(op.x)[:-1])
    refusal = _refusal(op, low, tokens)
    if refusal is not None:
        return refusal
    geometry = {"pixels": tokens, "images": 1, "source": "tokens", "dest": "tokens"}
    note = f"[{tokens}, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} {op.activation}".strip()
    return _lower(op, low, geometry, lambda: product_input(op, low), "row", note)


def sparse_conv_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Row order; 1x1 convolutions also take channels last, through transpositions of input and result."""
    op = view(node)
    assert op.x is not None
    shape, results = low.shape(op.x), prod(low.shape(op.output))
    if len(shape) not in (3, 4) or op.group != 1 or _refusal(op, low, prod(low.shape(op.output)[2:])) is not None:
        return None
    weight = unpacked_weight(op)
    if dense_wins(weight, prod(low.shape(op.output)[2:]), shape[0], low.target) is not None:
        return None
    stored = results * op.cols * float(spmm_weights.element_mask(weight).mean())
    row = multiply_time(low, stored, 0.4)
    if not _is_pointwise(op):
        return Choice({"row": row})
    return Choice({"row": row, "cl": row + 0.8 * (move_time(low, op.x) + move_time(low, op.output))})


def _is_pointwise(op: SparsecNode) -> bool:
    return prod(op.kernel_shape) == 1 and set(op.strides) <= {1} and not any(op.pads)


def lower_sparse_conv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv, 1-D and 2-D, with sparse weights and one group."""
    op = view(node)
    assert op.x is not None
    x = op.x
    shape, out_shape = low.shape(x), low.shape(op.output)
    if len(shape) not in (3, 4):
        return Refusal(f"{len(shape) - 2}-D convolution is not supported (1-D and 2-D are)")
    if op.group != 1:
        return Refusal(f"{op.group} groups: sparse products take one")
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
    if pointwise and (low.plan.get(node) or low.layout(op.x)) == "cl":
        # channels last is a matrix [pixel][channel] already
        geometry: dict[str, Any] = {"pixels": shape[0] * pixels, "images": 1, "source": "tokens", "dest": "tokens"}
        return _lower(op, low, geometry, lambda: low.get(x, "cl"), "cl", note)
    geometry = {"pixels": pixels, "images": shape[0], "source": "planes", "dest": "planes"}
    if not pointwise:
        height, width = (1, shape[2]) if wide else shape[2:]
        out_h, out_w = (1, out_shape[2]) if wide else out_shape[2:]
        geometry |= {
            "source": "window",
            "window": {
                "c": shape[1], "ih": height, "iw": width, "oh": out_h, "ow": out_w, "kh": kernel[0], "kw": kernel[1],
                "sh": strides[0], "sw": strides[1], "dh": dilations[0], "dw": dilations[1], "pt": top, "pl": left,
            },
        }  # fmt: skip
    return _lower(op, low, geometry, lambda: low.get(x), "row", note)
