"""Lowering of sparse linear layers with int8 activations where no strips of whole vectors are stored (gemv.py takes those).

Two ways to multiply, each taken where it is predicted to be the fastest, float32 kernels included:

* whole numbers: vectors over tokens and stored entries only (spmm.py in the words of spmm_bytes.py).
* filled: a few tokens (VNNI: any number) and weights that store about half or more: with its zeros written out the weight is dense
  bytes, which gemv.py multiplies four at a time, where the float32 kernel would load its inputs one by one.
"""

from __future__ import annotations

from dataclasses import replace
from math import lcm, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.kernels import byte_weights, spmm, spmm_bytes, spmm_plan, spmm_weights, spmm_words
from sparsec.codegen.kernels.gemv import lower_bytes
from sparsec.codegen.kernels.spmm_rules import (
    FEWEST_TOKENS,
    MOST_ROWS,
    NARROW,
    Prepared,
    dense_work,
    isa,
    pixel_work,
    refused_sparse,
    row_work,
)
from sparsec.codegen.kernels.spmm_words import Chosen
from sparsec.codegen.kernels.weights import epilogue, int8_operands
from sparsec.formats import Scheme
from sparsec.formats.encoded import Unpacked
from sparsec.op_view import SparsecNode, view
from sparsec.target import Target

# Measured, in vector multiplications of the dense float32 kernel (as in spmm_rules.py): a vector of tokens by an entry of a single
# row, and by one row of an entry of several; then bringing four inputs in. (VNNI: on Zen 5; aarch64: by counting instructions.)
_ENTRY = {
    "x86-512": {"pairs": (2.0, 1.6), "quads": (2.75, 2.5)},
    "x86-256": {"pairs": (1.75, 1.5), "quads": (2.35, 2.2)},
    "aarch64": {"quads": (1.6, 1.3)},
}
_AS_FLOATS = {"pairs": 1.2, "quads": 1.65}  # an entry, in those of float32
_RUN_END = 10.0  # a row of a run of one group joins the sums of a vector of tokens
_VNNI_QUADS = {"x86-512": (1.4, 0.75), "x86-256": (1.0, 0.5)}
_MOVED = {"x86-512": 20.0, "x86-256": 13.0, "aarch64": 10.0}
# gemv.py on n * k / lanes bytes: once, and for every row of activations; codes of 8 bits and of less.
_FILLED = {8: (0.9, 1.0), 4: (0.4, 0.65), 2: (0.4, 0.65)}
_FILLED_VNNI = {8: (0.25, 0.24), 4: (0.2, 0.27), 2: (0.2, 0.27)}
_MOST_FILLED = 64  # tokens: more are faster by stored entries without VNNI
# Bytes of a filled weight over those of what spmv.py stores (a column and a code for every weight), at most.
_MOST_GROWTH = 1.5


def prepare_whole(weight: Unpacked, chosen: Chosen, tokens: int, target: Target, **forced: int) -> Prepared:
    """A weight laid out for spmm.py in whole numbers; `forced` overrides sizes of spmm_plan.choose."""
    made, form = spmm_words.words(weight, chosen), chosen.form
    strip = spmm_weights.strip_height(weight.scheme.block[0], spmm_plan.max_strip(target))
    slots = made.mask.shape[1]
    sizes = spmm_plan.choose(
        weight.rows, slots, tokens, 1, float(made.mask.mean()), strip, len(spmm_words.SLOTS[form]), True, target, tokens=True
    )  # fmt: skip
    sizes |= forced
    sizes["chunks"] = -(-slots // sizes["chunk"])
    values = spmm_bytes.describe(form, weight.cols, groups=made.group is not None)
    p: dict[str, Any] = {
        "n": weight.rows, "k": slots, "strip": strip, "values": values, "pixels": tokens, "images": 1, "source": "tokens",
        "dest": "tokens", **sizes,
    }  # fmt: skip
    entries = spmm_weights.arrange(
        made.mask, strip=strip, chunk=sizes["chunk"], ranges=sizes["ranges"], bands=sizes["bands"],
        align=lcm(strip, target.lanes) // strip, pitch=spmm_plan.pitch(p, target.lanes),
    )  # fmt: skip
    if made.group is not None:
        entries = spmm_words.split_runs(made, entries, strip)
    arrays = [*entries.arrays(), *spmm_bytes.arrays(made, entries, strip, values, target)]
    counts = entries.sizes(sizes["bands"])
    return Prepared(p, arrays, spmm.scratch(p, counts, target), counts["entries"])


def filled(weight: Unpacked) -> Unpacked | None:
    """A sparse weight as a dense one of the narrowest integers that hold its numbers; None where 8 bits do not, or where scales
    belong to groups of stored values."""
    if weight.scheme.scales.kind == "group":
        return None
    values, scales = spmm_words.numbers(weight)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    for bits in (2, 4, 8):
        half = 1 << (bits - 1)
        if -half <= low and high < half:
            codes = (values + half).astype(np.uint8).reshape(-1, 1, 1)
            scheme = Scheme.parse(f"int{bits}-c")
            mask = np.ones(values.shape, bool)
            return replace(
                weight, scheme=scheme, block_mask=mask, codes=codes, scales=scales[:, None], zero_points=None, codebook=None
            )  # fmt: skip
    return None


def whole_work(weight: Unpacked, chosen: Chosen, tokens: int, target: Target) -> float:
    """Of spmm.py in whole numbers, in the unit of spmm_rules.py."""
    n, k = weight.rows, weight.cols
    strip = spmm_weights.strip_height(weight.scheme.block[0], spmm_plan.max_strip(target))
    entries, runs = spmm_words.entries(weight, chosen, strip)
    costs = _ENTRY[isa(target)]
    joined = target.vnni and _kind(chosen) == "quads"
    alone, shared = _VNNI_QUADS[isa(target)] if joined else costs[_kind(chosen)]
    vectors = -(-tokens // target.lanes)
    tiles = -(-vectors // spmm_plan.most_vectors(strip, target))
    each = entries * (alone if strip == 1 else shared) + runs * _RUN_END
    work = vectors * (each * strip + (n + k) * _MOVED[isa(target)])
    return work + (tiles * entries * NARROW if vectors <= 2 * tiles else 0)


def filled_work(weight: Unpacked, dense: Unpacked, tokens: int, target: Target) -> float:
    """Of gemv.py on a weight with its zeros, in the same unit."""
    once, each = (_FILLED_VNNI if target.vnni else _FILLED)[dense.scheme.codec.code_bits]
    return weight.rows * weight.cols / target.lanes * (once + each * tokens)


def _floats_work(weight: Unpacked, tokens: int, target: Target) -> float:
    """Of the fastest float32 kernel."""
    found = [dense_work(weight, tokens, target)]
    if tokens <= MOST_ROWS:
        found.append(row_work(weight, tokens, target))
    if tokens >= FEWEST_TOKENS:
        found.append(pixel_work(weight, tokens, 1, target))
    return min(found)


def _plans(
    weight: Unpacked, tokens: int, x_group: int, target: Target
) -> tuple[dict[str, float], Chosen | None, Unpacked | None]:
    """Predicted work by kernel ("floats", "whole", "filled": those that can), the form of "whole" and the weight of "filled"."""
    found = {"floats": _floats_work(weight, tokens, target)}
    chosen = spmm_words.choose_form(weight, target)
    if chosen is not None:
        found["whole"] = whole_work(weight, chosen, tokens, target)
    # numbers may take fewer bits than codes
    dense = filled(weight) if tokens <= _MOST_FILLED or target.vnni else None
    if dense is not None and not byte_weights.refusal(dense, target, x_group):
        stored = spmm_weights.stored(weight) * (16 + max(weight.scheme.codec.code_bits, 1))
        if weight.rows * weight.cols * dense.scheme.codec.code_bits <= _MOST_GROWTH * stored:
            found["filled"] = filled_work(weight, dense, tokens, target)
    return found, chosen, dense


def _operands(op: SparsecNode, low: Lowering) -> tuple[Unpacked, int] | Refusal:
    operands = int8_operands(op)
    if isinstance(operands, Refusal):
        return operands
    if (refusal := refused_sparse(op, low)) is not None:
        return refusal
    weight, x_group = operands
    if why := spmm_words.refusal(weight, low.target, x_group):
        return Refusal(why)
    return operands


def lower_sparse_int8(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with sparse weights and int8 activations."""
    op = view(node)
    assert op.x is not None
    operands = _operands(op, low)
    if isinstance(operands, Refusal):
        return operands
    weight, x_group = operands
    tokens = prod(low.shape(op.x)[:-1])
    if tokens == 0:
        return Refusal("the product has no rows")
    if max(weight.rows, 2 * weight.cols) >= 1 << 16:
        return Refusal("more than 65535 rows or entries of a row")
    plans, chosen, dense = _plans(weight, tokens, x_group, low.target)
    best = min(plans, key=lambda name: plans[name])
    if best == "floats":
        return Refusal(_why_floats(plans))
    if best == "filled":
        assert dense is not None
        return lower_bytes(op, low, dense, x_group)
    assert chosen is not None
    _lower_whole(op, low, weight, chosen, tokens)
    return None


def _why_floats(plans: dict[str, float]) -> str:
    names = {"whole": "whole numbers by tokens", "filled": "dense bytes"}
    found = [
        f"{text} {plans[name] / plans['floats']:.2f} times as long"
        if name in plans
        else f"{text} not possible or too large"
        for name, text in names.items()
    ]
    return f"float32 products are predicted to be the fastest ({', '.join(found)})"


def _lower_whole(op: SparsecNode, low: Lowering, weight: Unpacked, chosen: Chosen, tokens: int) -> None:
    label = op.node.name or "weight"
    made = prepare_whole(weight, chosen, tokens, low.target)
    p = made.params
    finish, added = epilogue(op, low, arrange=lambda bias: np.pad(bias, (0, -op.rows % p["strip"])))
    p |= finish
    weights = [low.const(array, f"{label}.{name}") for name, array in made.arrays]
    assert op.x is not None
    low.call(
        "spmm", p, [low.get(op.x), *weights, *added], [low.new(op.output)], node=op.node.name or "", op="MatMul",
        note=f"[{tokens}, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} x {op.activations} {op.activation}".strip(),
        scratch=made.scratch, cost=spmm.cost(p, int(made.entries * _AS_FLOATS[_kind(chosen)])),
    )  # fmt: skip


def _kind(chosen: Chosen) -> str:
    """Whose costs a form has."""
    return "quads" if chosen.form == "quads" else "pairs"
