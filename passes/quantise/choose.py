"""The choice every compensating method makes again and again: which representable values are nearest, one input (scalar codecs)
or one vector of inputs (vector codebooks) at a time, scales and tables being fixed.

Weights lie transposed, [K, N]: what is chosen together is then contiguous.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import EncodedWeight, Grid, codes_of, kept_positions, scale_owners, table_owners, with_codes
from sparsec.formats.meaning import VectorValue

__all__ = ["Chooser", "ScalarChooser", "VectorChooser", "chooser_of"]

Matrix = NDArray[np.float32]

_ROUNDS = 3  # of choosing each stage of a code again, the others being fixed


class Chooser(Protocol):
    """Chooses the values of `dim` inputs (fewer at the end of a row) of all outputs at once."""

    dim: int

    def choose(self, group: int, values: Matrix, metric: Matrix) -> Matrix:
        """The representable q with the least |metric (v - q)| for each column v of values [d, N], float32 [d, N].

        group: inputs from group * dim on. metric: float32 [d, d], or [N, d, d] for every output its own. Never further off than
        what was chosen before.
        """

    def encoded(self, values: Matrix) -> EncodedWeight:
        """The weight whose values [K, N] were chosen."""


def chooser_of(encoded: EncodedWeight) -> Chooser:
    """The chooser of a weight's codec, with its scales and tables."""
    return VectorChooser(encoded) if encoded.scheme.codec.dim > 1 else ScalarChooser(encoded)


class ScalarChooser:
    """One input at a time: the nearest value, whatever the metric."""

    dim = 1

    def __init__(self, encoded: EncodedWeight) -> None:
        self._encoded, self._grid = encoded, Grid.of(encoded)

    def choose(self, group: int, values: Matrix, metric: Matrix) -> Matrix:
        """See `Chooser.choose`."""
        del metric
        return self._grid.round_inputs(values, slice(group, group + 1))

    def encoded(self, values: Matrix) -> EncodedWeight:
        """See `Chooser.encoded`."""
        return with_codes(self._encoded, self._grid.codes(values.T))


class VectorChooser:
    """One vector at a time, exactly with one stage; several are chosen in turn, from the codes so far and from scratch."""

    def __init__(self, encoded: EncodedWeight) -> None:
        meaning = encoded.scheme.codec.meaning
        assert isinstance(meaning, VectorValue)
        assert encoded.codebook is not None
        self._encoded, self.dim, self._meaning = encoded, meaning.dim, meaning
        self._tables = encoded.codebook.astype(np.float32)
        kept = kept_positions(encoded)[:, :: self.dim]
        self._kept = None if kept.all() else np.ascontiguousarray(kept.T)
        self._scales: np.ndarray | None = None
        owners = scale_owners(encoded)
        if owners is not None:
            assert encoded.scales is not None
            found = encoded.scales.astype(np.float32).reshape(-1)[owners]
            self._scales = np.ascontiguousarray(found[:, :: self.dim].T)
        scope = table_owners(encoded)
        # Rows of one table lie together: [tables, rows of each], padded.
        self._span = meaning.scope.span if meaning.scope.kind == "rows" else encoded.rows
        self._by_input = scope[0, :: self.dim] if scope is not None and meaning.scope.kind == "inputs" else None
        codes = codes_of(encoded).T
        one = (1 << meaning.bits) - 1
        self._codes = np.stack([(codes >> (stage * meaning.bits)) & one for stage in range(meaning.stages)], 1).astype(
            np.int64
        )

    def choose(self, group: int, values: Matrix, metric: Matrix) -> Matrix:
        """See `Chooser.choose`."""
        d, rows = values.shape
        points = values
        scale = None
        if self._scales is not None:
            scale = self._scales[group if len(self._scales) > 1 else 0]
            usable = np.abs(scale) > np.float32(1e-37)
            points = values * np.where(usable, np.float32(1) / np.where(usable, scale, np.float32(1)), np.float32(0))
        if self._by_input is None:
            tables = self._tables if self._meaning.scope.kind == "rows" else self._tables[:1]
        else:
            tables = self._tables[self._by_input[group]][None]
        tables, span = tables[..., :d], self._span
        if metric.ndim == 3:
            tables, span = tables[np.arange(rows) // span], 1
            turned = (metric @ points.T[:, :, None])[:, :, 0]
            levels = tables @ metric.transpose(0, 2, 1)[:, None]
        else:
            turned, levels = (metric @ points).T, tables @ metric.T  # [parts, stages, entries, d]
        parts = len(tables)
        padded = np.zeros((parts * span, d), np.float32)
        padded[:rows] = turned
        old = np.zeros((self._meaning.stages, parts * span), np.int64)
        old[:, :rows] = self._codes[group]
        chosen = self._search(padded.reshape(parts, span, d), levels, old.reshape(self._meaning.stages, parts, span))
        flat = chosen.reshape(self._meaning.stages, -1)[:, :rows]
        self._codes[group] = flat
        part = np.arange(rows) // span
        result = np.zeros((rows, d), np.float32)
        for stage in range(self._meaning.stages):
            result += tables[part, stage, flat[stage]]
        found = result.T if scale is None else result.T * scale
        if self._kept is not None:
            found = np.where(self._kept[group], found, np.float32(0))
        return np.ascontiguousarray(found)

    def _search(self, wanted: Matrix, levels: Matrix, old: np.ndarray) -> np.ndarray:
        """Entries [stages, parts, span] whose sum is near `wanted` [parts, span, d], no further off than the old ones."""
        stages = levels.shape[1]
        halves = 0.5 * np.square(levels).sum(3)  # [parts, stages, entries]
        each = np.arange(len(levels))[:, None]

        def nearest(rest: Matrix, stage: int) -> np.ndarray:
            products = rest @ levels[:, stage].transpose(0, 2, 1)
            products -= halves[:, stage, None]
            return np.asarray(products.argmax(2))

        if stages == 1:
            return nearest(wanted, 0)[None]
        fresh, rest = np.zeros_like(old), wanted
        for stage in range(stages):
            fresh[stage] = nearest(rest, stage)
            rest = rest - levels[each, stage, fresh[stage]]
        tried = []
        for start in (old, fresh):
            codes = start.copy()
            rest = wanted - sum(levels[each, stage, codes[stage]] for stage in range(stages))
            for _ in range(_ROUNDS):
                before = codes.copy()
                for stage in range(stages):
                    rest = rest + levels[each, stage, codes[stage]]
                    codes[stage] = nearest(rest, stage)
                    rest = rest - levels[each, stage, codes[stage]]
                if np.array_equal(before, codes):
                    break
            tried.append((codes, np.square(rest).sum(2)))
        return np.where(tried[1][1] < tried[0][1], tried[1][0], tried[0][0])

    def encoded(self, values: Matrix) -> EncodedWeight:
        """See `Chooser.encoded`; the codes are those chosen last."""
        del values
        bits = self._meaning.bits
        codes = sum(self._codes[:, stage] << (stage * bits) for stage in range(self._meaning.stages))
        return with_codes(self._encoded, np.ascontiguousarray(np.asarray(codes).T))
