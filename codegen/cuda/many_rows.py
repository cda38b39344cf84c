"""Products of many rows as steps of a program: one kernel, a sum of parts where inputs are split, equal shares where panels are uneven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np

from sparsec.codegen.context import Lowering, Tensor
from sparsec.codegen.cuda import blocking, fragments, parts, shares
from sparsec.codegen.cuda.capacity import CAPACITY, shared_limit
from sparsec.codegen.cuda.fragments import Packed
from sparsec.codegen.cuda.kernels import gemm
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# What could be read while a warp looks for one stored value of a panel (scattered.py), in bytes; of blocks.py a step takes as long as the
# copying of what it multiplies. Sums that are joined are written once and read twice.
_BYTES_PLACE, _JOINED = 1.5, 3


def append(
    low: Lowering,
    family: str,
    params: Mapping[str, Any],
    packed: Packed,
    ins: Sequence[Tensor],
    added: Sequence[Tensor],
    out: Tensor,
    names: tuple[str, str, str],
) -> None:
    """Append the steps of a product. family: cuda.gemm or cuda.conv; ins: A and the weight; added: what its end adds; names: of the node,
    its op, and a note."""
    node, op, note = names
    if blocks := shares_of(params, packed, low.target):
        table = shares.cut(stored_steps(params, packed), blocks)
        pieces = low.const(table.reshape(-1), f"{node}.pieces")
        shape = (blocking.row_blocks(params), shares.places(blocks), blocking.joined_bytes(params) // 4)
        sums = low.temp("uint32", shape, name=f"{out.buffer.name}.parts")
        shared = {**params, "parts": 1, "shares": blocks}
        low.call(family, shared, [*ins, pieces, *added], [out, sums], node=node, op=op, note=note)
    else:
        size = (params["m"], params.get("filters", params["weight"]["n"]))
        parts.append(low, family, params, ins, added, out, size, names)


def stored_steps(params: Mapping[str, Any], packed: Packed) -> Array:
    """Whole numbers: the steps of the panels of each block along the outputs, which are the same for all of them."""
    assert packed.stored is not None
    return packed.stored[:: params["warps_n"]]


def shares_of(params: Mapping[str, Any], packed: Packed, target: Target) -> int:
    """Blocks that share what a weight stores, for the same rows of A; 0 where that should not be faster, or shared memory does not suffice.

    How many follows from shapes alone, as in few_rows.py."""
    if packed.stored is None:
        return 0
    w, capacity, rows = packed.params, CAPACITY[target.gpu], blocking.row_blocks(params)
    if gemm.launch({**params, "shares": 1}, target).shared_bytes > shared_limit(target.gpu):
        return 0
    stored, count = stored_steps(params, packed), params["parts"]
    most = len(stored) * fragments.steps(w) // blocking.LEAST_STEPS
    blocks = max(1, min(blocking.RESIDENT * capacity.multiprocessors // rows, most))
    now = np.repeat(-(-np.tile(stored, rows) // count), count)
    step_bytes = 4.0 * blocking.stage_words(params)
    if w.get("scattered"):
        step_bytes = _BYTES_PLACE * 16 * w["tiles"] * fragments.INPUTS * params["warps_n"] * params["warps_m"]
    join_bytes = _JOINED * blocking.joined_bytes(params) * ceil(blocks * rows / capacity.multiprocessors)
    if not shares.gains(now, step_bytes, 1.0, capacity.multiprocessors, blocks * rows, join_bytes):
        return 0
    return blocks
