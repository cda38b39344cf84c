"""The physical forms a constant weight may have on a GPU, in order of preference, and the choice among them.

A form stores what the scheme stores and is decoded on the way to the tensor cores. Where none takes a weight, it becomes halves when the
model is compiled, and the report says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.cuda import blocking, blocks, filters, fragments, pairs, scattered, strips
from sparsec.codegen.cuda.filters import Weight
from sparsec.codegen.cuda.fragments import Packed
from sparsec.codegen.cuda.kernels import gemm, gemv
from sparsec.codegen.kernels.weights import unpacked_weight
from sparsec.codegen.program import Decision, StoredWeight
from sparsec.formats.encoded import EncodedWeight, Unpacked, decode, unpack
from sparsec.formats.meaning import FloatValue
from sparsec.int8 import rounded_values
from sparsec.op_view import SparsecNode
from sparsec.target import Target

Array = np.ndarray[Any, Any]

_IS_DENSE = "the weight is dense"
_WIDE = 8192
"""Outputs from which panels are wider: fewer blocks read the inputs, and enough are left to fill a GPU."""


@dataclass(frozen=True)
class Use:
    """What a weight is multiplied with: `m` rows, by gemv.py if `few`; the target; groups of outputs that read other inputs."""

    m: int
    few: bool
    target: Target
    groups: int = 1

    @property
    def storage(self) -> str:
        """The storage type."""
        return self.target.storage


Form = Callable[[Weight, Use], Packed | Refusal]


def packed_rows(weight: Weight, use: Use, tiles: int) -> Weight | Refusal:
    """The weight with each group's outputs in panels of their own."""
    if use.groups == 1:
        return weight
    found = filters.in_panels(weight, use.groups, 16 * tiles)
    return Refusal(found) if isinstance(found, str) else found


def as_strips(weight: Weight, use: Use) -> Packed | Refusal:
    """Blocks of 16 outputs and more, for up to 16 rows: what is stored lies side by side."""
    if isinstance(weight, np.ndarray) or weight.scheme.is_dense:
        return Refusal(_IS_DENSE)
    if not use.few:
        return Refusal(f"strips take up to {gemv.MOST_ROWS} rows")
    reason = strips.refused(weight)
    if not reason:
        reason = fragments.refused(weight, 16 * strips.tiles_of(weight), use.storage)
    return Refusal(reason) if reason else strips.pack(weight, use.storage)


def as_pairs(weight: Weight, use: Use) -> Packed | Refusal:
    """Two of every four inputs are stored: `mma.sp`."""
    if isinstance(weight, np.ndarray) or weight.scheme.is_dense:
        return Refusal(_IS_DENSE)
    if reason := pairs.refused(weight):
        return Refusal(reason)
    # two tiles where a warp's registers do not hold four
    wide = weight.scheme.codec.code_bits == 8 or weight.zero_points is not None
    most = 2 if use.few or wide else gemm.TILES
    tiles = most if use.few else min(most, _tiles(weight.rows // use.groups))
    rows = packed_rows(weight, use, tiles)
    if isinstance(rows, Refusal):
        return rows
    assert isinstance(rows, Unpacked)
    reason = fragments.refused(rows, 16 * tiles, use.storage)
    return Refusal(reason) if reason else pairs.pack(rows, tiles, use.storage)


def as_blocks(weight: Weight, use: Use) -> Packed | Refusal:
    """Blocks of 32 outputs and more, for more than 16 rows: steps have inputs that are stored."""
    if isinstance(weight, np.ndarray) or weight.scheme.is_dense:
        return Refusal(_IS_DENSE)
    if use.few:
        return Refusal(f"blocks take more than {gemv.MOST_ROWS} rows")
    reason = "filters are in groups" if use.groups > 1 else blocks.refused(weight)
    if not reason:
        reason = fragments.refused(weight, 16 * blocks.tiles_of(weight), use.storage)
    return Refusal(reason) if reason else blocks.pack(weight, use.storage)


def as_scattered(weight: Weight, use: Use) -> Packed | Refusal:
    """Any structure: tiles are put together of what is stored."""
    if isinstance(weight, np.ndarray) or weight.scheme.is_dense:
        return Refusal(_IS_DENSE)
    tiles = 1 if use.few else min(2, _tiles(weight.rows // use.groups))
    rows = packed_rows(weight, use, tiles)
    if isinstance(rows, Refusal):
        return rows
    assert isinstance(rows, Unpacked)
    reason = scattered.refused(rows) or fragments.refused(rows, 16 * tiles, use.storage, any_group=True)
    if reason:
        return Refusal(reason)
    together = 1
    if not use.few:  # the panels of a block take the same steps
        params = scattered.parameters(rows, tiles, use.storage)
        together = blocking.blocking(use.m, params, use.target.gpu, use.groups)["warps_n"]
    return scattered.pack(rows, tiles, use.storage, together=together)


def as_dense(weight: Weight, use: Use) -> Packed | Refusal:
    """Every position is stored, in any codec."""
    if not isinstance(weight, np.ndarray) and not weight.scheme.is_dense:
        return Refusal(f"weights of structure '{weight.scheme.structure}'")
    n = len(weight) if isinstance(weight, np.ndarray) else weight.rows
    wanted = _tiles(n // use.groups)
    if use.few:
        wanted = 1 if n < _WIDE else 2 if use.m <= 8 else 4
    tiles = fragments.row_tiles(weight, wanted)
    rows = packed_rows(weight, use, tiles)
    if isinstance(rows, Refusal):
        return rows
    reason = fragments.refused(rows, 16 * tiles, use.storage)
    return Refusal(reason) if reason else fragments.pack(rows, tiles, use.storage)


def as_single(weight: Weight, use: Use) -> Packed | Refusal:
    """Any scheme, for up to 16 rows: codes are found one by one, dense ones too, and tables may stay in memory."""
    if isinstance(weight, np.ndarray):
        return Refusal("the weight is not coded")
    if not use.few:
        return Refusal(f"codes are found one by one for up to {gemv.MOST_ROWS} rows")
    if reason := scattered.refused(weight) or fragments.beyond_halves(weight, use.storage):
        return Refusal(reason)
    return scattered.pack(weight, 1, use.storage, far=bool(fragments.refused_book(weight, 16)))


FORMS: tuple[Form, ...] = (as_strips, as_pairs, as_blocks, as_scattered, as_dense, as_single)
"""All of them, the one that costs least first."""


def _tiles(n: int) -> int:
    """Tiles of 16 outputs in a panel of gemm.py."""
    return 1 if n <= 16 else 2 if n <= 32 else gemm.TILES


def dense_weight(op: SparsecNode) -> Array:
    """float32 W[N, K]; next to int8 activations with the tables that those are multiplied with (sparsec/int8.py)."""
    weight = op.weight()
    if not isinstance(weight, EncodedWeight):
        return weight
    book = unpack(weight).codebook
    return decode(replace(weight, codebook=rounded_values(book)) if op.rounds and book is not None else weight)


def choose(op: SparsecNode, low: Lowering, forms: Sequence[Callable[[Weight], Refusal | None]]) -> Refusal | None:
    """Steps by the first of `forms` that takes the weight as it is stored; by the first that takes it decoded if none does.

    A form appends the steps, or says why it does not take the weight; it must leave no trace then."""
    weight, reasons = op.weight(), list[str]()
    if isinstance(weight, EncodedWeight):
        unpacked = unpacked_weight(op)
        for form in forms:
            refusal = form(unpacked)
            if refusal is None:
                note_halves(op, low, weight)
                return None
            if refusal.reason not in (_IS_DENSE, *reasons):
                reasons.append(refusal.reason)
    plain = dense_weight(op)
    found: Refusal | None = Refusal("no form of the weight")
    for form in forms:
        found = form(plain)
        if found is None:
            break
    if found is not None:
        return found
    if isinstance(weight, EncodedWeight):
        decoded(op, low, f"no GPU kernel takes {op.scheme}: {'; '.join(reasons)}")
    else:
        note_halves(op, low, weight)
    return None


def decoded(op: SparsecNode, low: Lowering, why: str) -> None:
    """Note that a node's weight was decoded to halves."""
    low.program.decisions[op.node.name or ""] = Decision((), decoded=True, reason=why, stored=low.target.storage)


def note_halves(op: SparsecNode, low: Lowering, weight: EncodedWeight | Array) -> None:
    """Note how large float values are that a kernel takes in halves."""
    if isinstance(weight, np.ndarray):
        before, nbytes = weight.nbytes, 2 * weight.size
    elif isinstance(weight.scheme.codec.meaning, FloatValue):
        before = weight.nbytes
        nbytes = before - sum(codes.nbytes - 2 * codes.size for codes in weight.codes)
    else:
        return
    low.program.stored[op.node.name or ""] = StoredWeight(low.target.storage, nbytes, before)


def forms_for(use: Use, take: Callable[[Packed], Refusal | None]) -> list[Callable[[Weight], Refusal | None]]:
    """All forms for `choose`: packed, then handed to `take`, which appends the steps."""

    def form(pack: Form, weight: Weight) -> Refusal | None:
        found = pack(weight, use)
        return found if isinstance(found, Refusal) else take(found)

    return [partial(form, pack) for pack in FORMS]
