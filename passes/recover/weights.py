"""Encoded weights that learn: float32 values behind the codes, scales and codebooks, and what they are once stored.

In the forward pass a weight is exactly what its arrays would decode to, rounded scales and codebooks included; gradients pass
rounding as if it were not there (straight-through: Bengio, Leonard, Courville, "Estimating or propagating gradients through
stochastic neurons for conditional computation", 2013), values outside the range of their codes excepted. Masks and zero points
never change. Codes of vector codebooks stay, their tables learn.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sparsec.formats import (
    EncodedWeight,
    codes_of,
    decode,
    kept_positions,
    scale_owners,
    table_owners,
    with_codes,
    with_side,
)
from sparsec.formats.kmeans_vectors import is_mirrored
from sparsec.formats.meaning import AffineValue, FloatValue, TableValue, VectorValue

__all__ = ["LearntWeight", "Method"]

Tensor = torch.Tensor
Method = Literal["full", "perp"]
_TINY = 1e-37
_HALF = 65504.0


class LearntWeight:
    """A weight W [N, K] as a function of parameters that are 0 at first, where it is what it was.

    Parameters are relative: a step of 1 changes values by their row's root mean square, scales by themselves, table entries by
    the table's root mean square. So one learning rate serves all of them.

    method: `full` trains every stored value, the scales and the codebook. `perp` (Zimmer, Andoni, Spiegel, Pokutta, "PERP:
    Rethinking the Prune-Retrain Paradigm in the Era of LLMs", 2023) trains a low-rank update of the stored values, merged into
    them, and a gain for each row, where a norm that was folded into the weight had its own; nothing of vector codebooks.
    """

    def __init__(self, encoded: EncodedWeight, method: Method = "full", rank: int = 4, seed: int = 0) -> None:
        self.start, self.method = encoded, method
        self._meaning = encoded.scheme.codec.meaning
        start, kept = decode(encoded), kept_positions(encoded)
        self._whole = bool(kept.all())
        self._kept = torch.tensor(kept)
        self._values = torch.tensor(start)
        self.parameters: list[Tensor] = []
        vector = isinstance(self._meaning, VectorValue)
        full = method == "full"
        stored = np.maximum(kept.sum(1, keepdims=True), 1)
        typical = np.sqrt(np.square(start, dtype=np.float64).sum(1, keepdims=True) / stored)
        floor = float(typical.max(initial=0)) * 1e-2
        self._unit = torch.tensor(np.maximum(typical, floor).astype(np.float32))
        self._delta = self._new(start.shape) if full and not vector else None
        self._left = self._right = self._gain = None
        if not full and not vector:
            rank = min(rank, *start.shape)
            rng = np.random.default_rng(seed)
            first = rng.standard_normal((rank, start.shape[1])) / rank**0.5
            self._left = self._new((start.shape[0], rank))
            self._right = self._new(first.shape, first)
            self._gain = self._new((start.shape[0], 1))
        self._set_scales(full)
        self._set_codebook(full)
        self._codes = torch.tensor(codes_of(encoded).astype(np.int64)) if vector else None

    def _set_scales(self, learn: bool) -> None:
        owners, scales = scale_owners(self.start), self.start.scales
        self._owners = self._scales = self._step = None
        if owners is not None and scales is not None:
            self._owners = torch.tensor(owners.astype(np.int64))
            self._scales = torch.tensor(scales.astype(np.float32))
            self._step = self._new(scales.shape) if learn else None
        zeros = self.start.zero_points
        self._zeros: Tensor | float = float(getattr(self._meaning, "offset", None) or 0)
        if zeros is not None:
            assert self._owners is not None
            self._zeros = torch.tensor(zeros.astype(np.float32)).reshape(-1)[self._owners]

    def _set_codebook(self, learn: bool) -> None:
        table = self.start.codebook
        if table is None and isinstance(self._meaning, TableValue):
            table = self._meaning.constant()
        self._table = self._turn = self._scope = None
        if table is None:
            return
        self._table = torch.tensor(table.astype(np.float32))
        self._table_unit = float(np.sqrt(np.square(table, dtype=np.float64).mean())) or 1.0
        scope = table_owners(self.start)
        self._scope = None if scope is None else torch.tensor(scope.astype(np.int64))
        if learn and self.start.codebook is not None and self.start.scheme.codec.free_table:
            mirrored = table.ndim == 4 and all(is_mirrored(part) for part in table.reshape(-1, *table.shape[2:]))
            shape = (*table.shape[:2], table.shape[2] // 2, table.shape[3]) if mirrored else table.shape
            self._turn, self._mirrored = self._new(shape), mirrored

    def _new(self, shape: tuple[int, ...], values: NDArray[np.float64] | None = None) -> Tensor:
        found = torch.zeros(shape) if values is None else torch.tensor(values, dtype=torch.float32)
        self.parameters.append(found.requires_grad_(True))
        return found

    def scales(self) -> Tensor | None:
        """Scales as they are stored, float32."""
        if self._scales is None or self._step is None:
            return self._scales
        found = self._scales * (1 + self._step)
        if self.start.scales is not None and self.start.scales.dtype == np.float16:
            found = _through(found.clamp(-_HALF, _HALF).half().float(), found)
        return found

    def codebook(self) -> Tensor | None:
        """Table entries as they are stored, float32."""
        if self._table is None or self._turn is None:
            return self._table
        step = torch.cat([self._turn, -self._turn], 2) if self._mirrored else self._turn
        found = self._table + self._table_unit * step
        assert self.start.codebook is not None
        if self.start.codebook.dtype == np.float16:
            found = _through(found.clamp(-_HALF, _HALF).half().float(), found)
        elif self.start.codebook.dtype == np.int8:
            found = _through(found.round().clamp(-127, 127), found)
        return found

    def behind(self) -> Tensor:
        """The values that codes are chosen for, float32 [N, K]."""
        values = self._values
        if self._delta is not None:
            values = values + self._unit * self._delta
        elif self._left is not None and self._right is not None and self._gain is not None:
            values = values * (1 + self._gain) + self._unit * (self._left @ self._right)
        return values if self._whole else torch.where(self._kept, values, values.new_zeros(()))

    def value(self) -> Tensor:
        """W as it would decode, float32 [N, K], differentiable."""
        return self._made()[0]

    def stored(self) -> EncodedWeight:
        """The weight with its present codes, scales and codebook: decodes to `value` bit by bit; scheme, positions and sizes stay."""
        with torch.no_grad():
            _, codes = self._made()
            scales, table = self.scales(), self.codebook()
        found = with_side(
            self.start,
            scales=None if self._step is None or scales is None else scales.numpy(),
            codebook=None if self._turn is None or table is None else table.numpy(),
        )
        return found if isinstance(self._meaning, VectorValue) else with_codes(found, codes.numpy())

    def _made(self) -> tuple[Tensor, Tensor]:
        """W and its codes [N, K] (vectors: as they are)."""
        scales = self.scales()
        scale = None if scales is None or self._owners is None else scales.reshape(-1)[self._owners]
        if isinstance(self._meaning, VectorValue):
            return self._vectors(self._meaning, scale)
        behind = self.behind()
        if isinstance(self._meaning, FloatValue):
            if self._meaning.width == 16:
                behind = _through(behind.clamp(-_HALF, _HALF).half().float(), behind)
            return behind, behind.detach()
        ratio = behind.detach()
        if scale is not None:
            fixed = scale.detach()
            usable = fixed.abs() > _TINY
            ratio = ratio * torch.where(usable, 1 / torch.where(usable, fixed, 1.0), 0.0)
        if isinstance(self._meaning, AffineValue):
            top = self.start.scheme.codec.top_code
            wanted = torch.round(ratio) + self._zeros
            codes = wanted.clamp(0, top)
            inside = codes == wanted
            level = codes - self._zeros
        else:
            codes, inside = self._nearest(ratio)
            table = self.codebook()
            assert table is not None
            level = table[0][codes] if self._scope is None else table[self._scope, codes]
        value = level if scale is None else level * scale
        value = value + torch.where(inside, behind - behind.detach(), 0.0)
        if not self._whole:
            value, codes = torch.where(self._kept, value, 0.0), torch.where(self._kept, codes, 0)
        return value, codes.to(torch.uint8)

    def _nearest(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the table entries nearest to the values, and which values lie between the outermost entries."""
        table = self.codebook()
        assert table is not None
        levels, order = torch.sort(torch.nan_to_num(table.detach(), nan=float("inf")), dim=1, stable=True)
        borders = (levels[:, 1:] + levels[:, :-1]) / 2
        top = torch.where(levels.isfinite(), levels, -float("inf")).amax(1)
        if self._scope is None:
            place = torch.bucketize(ratio, borders[0])
            return order[0][place], (ratio >= levels[0, 0]) & (ratio <= top[0])
        place = torch.zeros(ratio.shape, dtype=torch.int64)
        step = levels.shape[1] // 2
        while step:
            place = torch.where(ratio > borders[self._scope, place + step - 1], place + step, place)
            step //= 2
        inside = (ratio >= levels[:, 0][self._scope]) & (ratio <= top[self._scope])
        return order[self._scope, place], inside

    def _vectors(self, meaning: VectorValue, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        table = self.codebook()
        assert table is not None
        assert self._codes is not None
        scope = torch.zeros((1, 1), dtype=torch.int64) if self._scope is None else self._scope[:, :: meaning.dim]
        value = torch.zeros(())
        for stage in range(meaning.stages):
            part = (self._codes >> (stage * meaning.bits)) & ((1 << meaning.bits) - 1)
            value = value + table[scope, stage, part]
        value = value.reshape(len(value), -1)[:, : self.start.cols]
        value = value if scale is None else value * scale
        return value if self._whole else torch.where(self._kept, value, 0.0), self._codes


def _through(rounded: Tensor, plain: Tensor) -> Tensor:
    """`rounded`, with the gradient of `plain`."""
    return rounded.detach() + (plain - plain.detach())
