"""Products of few rows as steps of a program: a block a panel, or equal shares of what is stored where those should be faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsec.codegen.context import Lowering, Tensor
from sparsec.codegen.cuda import fragments, shares
from sparsec.codegen.cuda.capacity import CAPACITY, shared_limit
from sparsec.codegen.cuda.fragments import Packed
from sparsec.codegen.cuda.kernels import gemv
from sparsec.target import Target

Array = np.ndarray[Any, Any]

_REGISTERS = 96  # of a thread, about: 65 to 128 (docs/cuda.md)
# How much faster a multiprocessor is whose neighbours are idle: half of them take all that the memory gives, but a kernel that computes
# more than it reads is as fast as it is. Such a one could read so many bytes while it looks for one stored value.
_ALONE_READING, _ALONE_COMPUTING, _BYTES_PLACE = 2.0, 1.0, 1.5


def append(
    low: Lowering,
    params: Mapping[str, Any],
    packed: Packed,
    ins: Sequence[Tensor],
    added: Sequence[Tensor],
    out: Tensor,
    names: tuple[str, str, str],
) -> None:
    """Append gemv.py's step. ins: A and the weight; added: what its end adds; names: of the node, its op, and a note."""
    node, op, note = names
    blocks = shares_of(params, packed, low.target)
    if not blocks:
        low.call("cuda.gemv", params, [*ins, *added], [out], node=node, op=op, note=note)
        return
    pieces = low.const(shares.cut(stored_chunks(packed), blocks).reshape(-1), f"{node}.pieces")
    panel = params["m"] * 16 * packed.params["tiles"]
    parts = low.temp("uint32", (shares.places(blocks), panel), name=f"{out.buffer.name}.parts")
    shared = {**params, "shares": blocks}
    low.call("cuda.gemv", shared, [*ins, pieces, *added], [out, parts], node=node, op=op, note=note)


def stored_chunks(packed: Packed) -> Array:
    """Whole numbers [panels]: what each panel stores, in the chunks that gemv.py computes at once."""
    w = packed.params
    if packed.stored is not None:
        return packed.stored
    return np.full(fragments.panels(w), fragments.steps(w) // gemv.chunk_steps(w))


def shares_of(params: Mapping[str, Any], packed: Packed, target: Target) -> int:
    """Blocks that share what a weight stores; 0 where a block a panel should be as fast, or shared memory does not suffice.

    How many follows from shapes alone, so that layers which differ only in their zeros share a kernel."""
    w, capacity = packed.params, CAPACITY[target.gpu]
    launch = gemv.launch({**params, "shares": 1}, target)
    if launch.shared_bytes > shared_limit(target.gpu):
        return 0
    turns = fragments.panels(w) * (fragments.steps(w) // gemv.chunk_steps(w)) // gemv.warps(w)
    blocks = min(capacity.multiprocessors * capacity.resident(launch, _REGISTERS), max(1, turns))
    reading = packed.stored is None
    step_bytes = 128.0 * fragments.lane_words(w) * gemv.chunk_steps(w)
    if w.get("scattered"):
        step_bytes = _BYTES_PLACE * 16 * w["tiles"] * fragments.INPUTS
    alone = _ALONE_READING if reading else _ALONE_COMPUTING
    faster = shares.gains(stored_chunks(packed), step_bytes, alone, capacity.multiprocessors, blocks)
    return blocks if faster else 0
