"""Statistics of what layers read at the present cut of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsec.passes.calibrate.inputs import layer_rows, output_rows
from sparsec.passes.calibrate.residual import Residual
from sparsec.passes.calibrate.stream import Stream
from sparsec.passes.statistics import Moments, Statistics
from sparsec.passes.weights import Use

__all__ = ["fold_of", "geometry", "moments_for", "statistics_of"]

Array = np.ndarray[Any, Any]

_ROWS_PER_INPUT, _ROWS = 64, 1 << 16
"""Rows that a layer's moments are made of: so many for each of its inputs, or so many in all if that is more. Noise in the moments
costs accuracy, most where differences to the uncompressed model are made up for; beyond this an image's pixels say much the same."""

_FOLDS, _MOST_IN_FOLDS = 4, 2048
"""Parts of the samples whose moments are kept apart, and the most inputs of layers where they are (134 MB of sums)."""


def statistics_of(
    use: Use,
    cols: int,
    stream: Stream,
    dense: Stream | None,
    masks: Sequence[Array | None],
    *,
    centred: bool = True,
    residual: Residual | None = None,
) -> list[Statistics]:
    """Of the `cols` inputs of a layer, one for each group of a convolution; `dense`: the uncompressed model at the same cut.

    masks: for each sample, where it is padding (0), or None. residual: what another branch adds to the outputs,
    at the same cut; counts with `dense`.
    """
    x = use.node.inputs[0]
    assert x is not None
    name, limit = x.name or "", -(-max(_ROWS_PER_INPUT * cols, _ROWS) // len(masks))
    moments: list[Moments] = []
    for sample, mask in enumerate(masks):
        rows = layer_rows(use, stream.value(name, sample), limit, sample, mask)
        before = layer_rows(use, dense.value(name, sample), limit, sample, mask) if dense is not None else None
        ahead: list[Any] = [None] * len(rows)
        if dense is not None and residual is not None:
            off = dense.value(residual.name, sample) - stream.value(residual.name, sample)
            outputs = output_rows(use, off, limit, sample, mask)
            ahead = np.split(outputs if residual.order is None else outputs[:, residual.order], len(rows), axis=1)
        if not moments:
            moments = moments_for(rows, with_dense=dense is not None)
        for number, part in enumerate(rows):
            moments[number].add(
                part, None if before is None else before[number], ahead[number], fold=fold_of(sample, rows)
            )
    return [m.statistics(centred=centred) for m in moments]


def moments_for(rows: Sequence[Array], *, with_dense: bool) -> list[Moments]:
    """Sums for the inputs [T, K] of each group of a layer."""
    return [Moments(part.shape[1], with_dense=with_dense, folds=_folds(rows)) for part in rows]


def fold_of(sample: int, rows: Sequence[Array]) -> int:
    """Which of the sums of `moments_for` a sample belongs to."""
    return sample % _folds(rows)


def _folds(rows: Sequence[Array]) -> int:
    """How many: the few inputs of a grouped convolution need none, those of large layers would be too many."""
    return _FOLDS if len(rows) == 1 and rows[0].shape[1] <= _MOST_IN_FOLDS else 1


def geometry(use: Use) -> tuple[Any, ...]:
    """What decides which inputs a layer sees of its activations."""
    node = use.node
    if node.op_type != "Conv":
        return ()
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    kept = {k: tuple(a.as_ints()) for k, a in node.attributes.items() if k in ("strides", "pads", "dilations")}
    return (tuple(weight.shape.numpy()[2:]), node.attributes.get_int("group", 1), tuple(sorted(kept.items())))
