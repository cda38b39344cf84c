"""Weights of convolutions in another order than they are stored in: inputs tap by tap, outputs of groups in panels of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sparsec.codegen.cuda.strips import dense_codes
from sparsec.formats.encoded import Unpacked
from sparsec.formats.meaning import TableValue, VectorValue
from sparsec.formats.structure import Block, Unstructured

Array = np.ndarray[Any, Any]
Weight = Unpacked | Array


def by_tap(weight: Weight, taps: int, chunk: int) -> Weight | None:
    """W[N, channel * taps] as [N, tap * channels], channels padded to multiples of `chunk`: what is padded meets zeros. None where several
    inputs share a code, a scale or a pattern of four."""
    if isinstance(weight, np.ndarray):
        return _turned(weight, taps, chunk)
    scheme, meaning = weight.scheme, weight.scheme.codec.meaning
    by_inputs = isinstance(meaning, TableValue) and meaning.scope.kind not in ("tensor", "rows")
    if scheme.codec.dim > 1 or scheme.scales.kind == "group" or by_inputs:
        return None
    if scheme.is_dense:
        codes = _turned(weight.codes.reshape(weight.rows, -1), taps, chunk)
        return replace(
            weight, codes=codes.reshape(-1, 1, 1), cols=codes.shape[1], block_mask=np.ones(codes.shape, bool)
        )
    if _two_of_four(weight):
        return None
    (r, c), shape = scheme.block, (weight.rows, weight.cols)
    mask = np.repeat(np.repeat(weight.block_mask, r, 0), c, 1)[: shape[0], : shape[1]]
    mask, codes = (_turned(array[: shape[0], : shape[1]], taps, chunk) for array in (mask, dense_codes(weight)))
    return replace(
        weight, scheme=replace(scheme, structure=Unstructured(0.0)), cols=mask.shape[1], block_mask=mask,
        codes=codes[mask].reshape(-1, 1, 1),
    )  # fmt: skip


def _two_of_four(weight: Unpacked) -> bool:
    """Whether the tensor cores skip what is not stored (pairs.py), as long as inputs keep their order."""
    mask = weight.block_mask
    return weight.scheme.block == (1, 1) and mask.shape[1] % 4 == 0 and bool((mask.reshape(-1, 4).sum(1) == 2).all())


def _turned(values: Array, taps: int, chunk: int) -> Array:
    turned = values.reshape(len(values), -1, taps).transpose(0, 2, 1)
    short = -turned.shape[2] % chunk
    return np.ascontiguousarray(np.pad(turned, ((0, 0), (0, 0), (0, short))).reshape(len(values), -1))


def in_panels(weight: Weight, groups: int, panel: int) -> Weight | str:
    """The weight with the outputs of every group rounded up to whole panels; what is added repeats a group's last output, and is not
    stored by kernels. A text where that cannot be."""
    rows = len(weight) if isinstance(weight, np.ndarray) else weight.rows
    each = rows // groups
    padded = -(-each // panel) * panel
    if padded == each:
        return weight
    index = (np.arange(groups)[:, None] * each + np.minimum(np.arange(padded), each - 1)).reshape(-1)
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(weight[index])
    meaning = weight.scheme.codec.meaning
    if isinstance(meaning, TableValue | VectorValue) and weight.codebook is not None and len(weight.codebook) > 1:
        return f"groups of {each} filters end within a panel of {panel}, and codebooks of '{weight.scheme.codec}' go by filters"
    changed: dict[str, Any] = {"rows": len(index)}
    if weight.scheme.scales.kind != "tensor":
        for name in ("scales", "zero_points"):
            array = getattr(weight, name)
            changed[name] = None if array is None else array[index]
    if weight.scheme.is_dense:
        codes = weight.codes.reshape(weight.rows, -1)[index]
        return replace(weight, codes=codes.reshape(-1, 1, 1), block_mask=np.ones(codes.shape, bool), **changed)
    r, c = weight.scheme.block
    each_code = max(c // weight.scheme.codec.dim, 1)
    mask = np.repeat(weight.block_mask, r, 0)[index]
    codes = dense_codes(weight)[index].reshape(len(index), -1, each_code)[mask]
    if r > 1:
        structure = Unstructured(0.0) if c == 1 else Block(1, c, 0.0)
        changed["scheme"] = replace(weight.scheme, structure=structure)
    return replace(weight, block_mask=mask, codes=codes.reshape(-1, 1, each_code), **changed)
