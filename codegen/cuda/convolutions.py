"""Rules for sparsec::Conv on a GPU, one group: pointwise as a product of pixels (products.py), others by conv.py."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Rule, Tensor
from sparsec.codegen.cuda import fragments
from sparsec.codegen.cuda.kernels import conv, gemm, gemv
from sparsec.codegen.cuda.kernels.product import dense_weight
from sparsec.codegen.cuda.products import refused, vector_width
from sparsec.codegen.kernels.weights import epilogue, unpacked_weight
from sparsec.codegen.kernels.window import Window, read_window
from sparsec.codegen.program import Decision
from sparsec.formats.encoded import EncodedWeight, Unpacked
from sparsec.op_view import SparsecNode, view

Array = np.ndarray[Any, Any]
Weight = Unpacked | Array


def lower_conv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv with one group; its weight in its codes where they can be taken tap by tap, else in halves."""
    op = view(node)
    if (refusal := refused(op, low)) is not None:
        return refusal
    if op.group != 1:
        return Refusal(f"{op.group} groups")
    window = read_window(node, low, op.kernel_shape)
    if isinstance(window, Refusal):
        return window
    if 0 in low.shape(op.output):
        return Refusal("the result is empty")
    weight = op.weight()
    reason = ""
    if isinstance(weight, EncodedWeight):
        unpacked = unpacked_weight(op)
        reason = _refused_codes(op, unpacked)
        if not reason:
            found = _multiply(op, low, window, unpacked)
            if found is None:
                return None
            reason = found.reason
        refusal = _multiply(op, low, window, dense_weight(op))
        if refusal is None:
            why = f"no GPU kernel of convolutions takes {op.scheme}: {reason}"
            low.program.decisions[node.name or ""] = Decision((), decoded=True, reason=why, stored=low.target.storage)
        return refusal
    return _multiply(op, low, window, weight)


CONVOLUTIONS: tuple[Rule, ...] = (lower_conv,)
"""All rules for one group, in order."""


def _taps(op: SparsecNode) -> int:
    return prod(op.kernel_shape)


def _refused_codes(op: SparsecNode, weight: Unpacked) -> str:
    """Why codes cannot be reordered from (channel, tap) to (tap, channel); "" if they can."""
    scheme = weight.scheme
    if not scheme.is_dense:
        return f"weights of structure '{scheme.structure}'"
    if _taps(op) == 1:
        return ""
    if scheme.codec.dim > 1:
        return "a code stands for several taps"
    if scheme.scales.kind == "group":
        return "groups of scales run over taps"
    if op.activations:
        return "int8 activations"
    return ""


def _by_tap(op: SparsecNode, weight: Weight) -> Weight:
    """The weight [N, C * taps] as [N, taps * C], C padded to whole chunks."""
    taps = _taps(op)
    values = weight if isinstance(weight, np.ndarray) else weight.codes.reshape(op.rows, -1)
    if taps == 1 and (op.cols % conv.CHUNK == 0 or not isinstance(weight, np.ndarray)):
        turned = values
    else:
        turned = values.reshape(op.rows, -1, taps).transpose(0, 2, 1)
        short = conv.padded_channels(turned.shape[2]) - turned.shape[2]
        turned = np.pad(turned, ((0, 0), (0, 0), (0, short))).reshape(op.rows, -1)
    turned = np.ascontiguousarray(turned)
    if isinstance(weight, np.ndarray):
        return turned
    return replace(weight, codes=turned, cols=turned.shape[1] * weight.scheme.codec.dim)


def _multiply(op: SparsecNode, low: Lowering, window: Window, weight: Weight) -> Refusal | None:
    """Steps for a dense weight, float32 or encoded."""
    assert op.x is not None
    shape = low.shape(op.x)
    images, channels = shape[0], shape[1]
    m = images * prod(window.out)
    same = _taps(op) == 1 and set(window.strides) == {1} and not any(window.pads + window.pads_end)
    few = same and m <= gemv.MOST_ROWS
    if not same or (channels % conv.CHUNK and isinstance(weight, np.ndarray)):
        same, few, weight = False, False, _by_tap(op, weight)
    tiles = fragments.row_tiles(weight, 1) if few else gemm.TILES
    if reason := fragments.refused(weight, 16 * tiles, low.target.storage):
        return Refusal(reason)
    packed = fragments.pack(weight, tiles, low.target.storage)
    family = "cuda.gemv" if few else "cuda.gemm" if same else "cuda.conv"
    params: dict[str, Any] = {"m": m, "weight": packed.params}
    if not few:
        params |= gemm.blocking(m, packed.params, low.target.gpu)
    if family == "cuda.conv":
        params |= {**window.params(), "batch": images, "channels": channels}
    needed = (gemv if few else gemm).launch(params, low.target).shared_bytes
    if needed > (limit := gemm.shared_limit(low.target.gpu)):
        return Refusal(f"the product would take {needed} bytes of shared memory; {limit} are there")
    x = low.get(op.x, "cl")
    finish, added = epilogue(op, low, layout="cl")
    label = op.node.name or "weight"
    weights = [low.const(array, f"{label}.{name}") for name, array in packed.arrays]
    params |= {"vector": vector_width(x, channels), **finish}
    size = "x".join(str(v) for v in op.kernel_shape)
    note = (
        f"{size} s{window.strides[1]} {list(shape)} -> {list(low.shape(op.output))} {op.scheme} {op.activation}".strip()
    )
    _call(op, low, family, params, [x, *weights], added, note)
    return None


def _call(
    op: SparsecNode,
    low: Lowering,
    family: str,
    params: dict[str, Any],
    ins: list[Tensor],
    added: list[Tensor],
    note: str,
) -> None:
    """Append the product, and the sum of its parts if there are several."""
    name, m, n = op.node.name or "", params["m"], op.rows
    out = low.new(op.output, "cl")
    if params.get("parts", 1) == 1:
        low.call(family, params, [*ins, *added], [out], node=name, op="Conv", note=note)
        return
    parts = low.temp("uint32", (params["parts"], m, n), name=f"{op.output.name}.parts")
    plain = {**params, "bias": False, "residual": False, "act": "", "act_params": []}
    low.call(family, plain, ins, [parts], node=name, op="Conv", note=note)
    finish = {key: params[key] for key in ("bias", "residual", "act", "act_params")}
    joined = {"m": m, "n": n, "parts": params["parts"], "bits": True, **finish}
    low.call("cuda.join", joined, [parts, *added], [out], node=name, op="Conv", note="sum of the parts")
