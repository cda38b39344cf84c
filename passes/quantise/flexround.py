"""FlexRound (Lee, Kim, Kwon, Lee, "FlexRound: Learnable rounding based on element-wise division for post-training quantization", 2023).

W is rounded after a division that is learnt: Q = s * round(W / (s * S * r)), with a factor S for each weight, r for each output, and the
scale s of the grid, all but s 1 at first. Large weights reach further levels than small ones, which is the point of dividing. The
loss is the layer's output error tr((W - Q) H (W - Q)^T), so its gradient needs no samples, only H; it passes rounding straight
through. Adam (Kingma and Ba, 2014) on logarithms of the factors; the codes of the best step are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import EncodedWeight, Grid, Scheme, decode, encode, scale_owners, with_codes, with_side
from sparsec.formats.meaning import FloatValue
from sparsec.passes.hessian import diagonals
from sparsec.passes.quantise.products import damped, times

__all__ = ["flexround"]

Matrix = NDArray[np.float32]
_MOMENTS = (0.9, 0.999)
_HALF = 65504.0


def flexround(
    weight: Matrix,
    second_moment: ArrayLike,
    scheme: Scheme,
    mask: NDArray[np.bool_] | None = None,
    *,
    damping: float = 0.01,
    start: Matrix | None = None,
    steps: int = 200,
    rate: float = 0.01,
) -> EncodedWeight:
    """Encode W [N, K] so that tr((W - Q) H (W - Q)^T) is small; never worse than rounding `start` to nearest.

    second_moment: [K, K], or [G, K, K] for G equal parts of the rows. mask: bool [N, K] as for `encode`. start: the values that are
    divided and rounded (None: W). steps, rate: of Adam. Codebooks stay as they were fitted to `start`. Raises WeightError for vector
    codebooks, and as `encode` does.
    """
    weight = np.asarray(weight, np.float32)
    hessian = damped(second_moment, damping, *weight.shape)
    values = weight if start is None else np.asarray(start, np.float32)
    encoded = encode(values, scheme, mask, diagonals(hessian, len(weight)))
    grid = Grid.of(encoded)
    if isinstance(scheme.codec.meaning, FloatValue):
        return encoded
    moment, owners = hessian.astype(np.float32), scale_owners(encoded)
    divisor, row = _Adam(weight.shape), _Adam((len(weight), 1))
    scale = None if encoded.scales is None else _Adam(encoded.scales.shape)
    first = None if encoded.scales is None else encoded.scales.astype(np.float64)
    best, lowest = encoded, np.inf
    for step in range(steps + 1):
        behind = (values * np.exp(-divisor.value - row.value)).astype(np.float32)
        found = grid.round(behind)
        off = found - weight
        pull = times(off, moment)
        error = float(np.vdot(pull, off))
        if step == 0:
            error = float(np.vdot(times(decode(encoded) - weight, moment), decode(encoded) - weight))
        if error < lowest:
            lowest, best = error, encoded if step == 0 else with_codes(encoded, grid.codes(behind))
        if step == steps:
            break
        inside = (behind >= grid.round(np.full_like(behind, -np.float32(1e30)))) & (
            behind <= grid.round(np.full_like(behind, np.float32(1e30)))
        )
        through = np.where(inside, behind, np.float32(0)) * pull
        share = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
        divisor.step(-through, share)
        row.step(-through.sum(1, keepdims=True), share)
        if scale is not None and first is not None and owners is not None:
            flat = np.broadcast_to(owners, weight.shape).reshape(-1)
            sums = np.bincount(flat, (found * pull - through).reshape(-1), first.size)
            scale.step(sums.reshape(first.shape), share)
            scales = first * np.exp(scale.value)
            if scheme.scales.kind == "group":
                scales = np.clip(scales, -_HALF, _HALF)
            encoded = with_side(encoded, scales=scales)
            grid = Grid.of(encoded)
    return best


@dataclass
class _Adam:
    """A parameter, 0 at first, and its moments."""

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        self.value = np.zeros(self.shape)
        self._mean, self._square, self._count = np.zeros(self.shape), np.zeros(self.shape), 0

    def step(self, gradient: ArrayLike, rate: float) -> None:
        """One step against the gradient."""
        self._count += 1
        first, second = _MOMENTS
        found = np.asarray(gradient, np.float64)
        self._mean += (1 - first) * (found - self._mean)
        self._square += (1 - second) * (np.square(found) - self._square)
        mean = self._mean / (1 - first**self._count)
        square = self._square / (1 - second**self._count)
        self.value -= rate * mean / (np.sqrt(square) + 1e-12)
