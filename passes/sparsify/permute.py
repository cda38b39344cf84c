"""Inputs in another order, so that N:M loses less (Pool and Yu, "Channel Permutations for N:M Sparsity", 2021).

Which inputs share a group of M is free where whatever produces them can be permuted too. Starting from the order as it is, inputs
of two groups trade places while that raises the sum of the scores an N:M mask keeps: the paper's greedy channel swaps, without its
escapes from local optima. Trades between disjoint pairs of groups do not touch each other, so many happen at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import NM

__all__ = ["permutation", "retained"]

Matrix = NDArray[np.float32]
Indices = NDArray[np.intp]

_CHUNK_BYTES = 32 << 20
_ROWS = 128


def retained(score: ArrayLike, structure: NM) -> float:
    """The sum of what the best N:M mask keeps of scores [N, K], 0 or more each."""
    groups = _grouped(np.asarray(score, np.float64), structure.m)
    return float(np.sort(groups, axis=2)[:, :, structure.m - structure.n :].sum())


def permutation(score: ArrayLike, structure: NM, *, sweeps: int = 100) -> Indices:
    """The order of inputs, int [K]: `score[:, order]` retains at least as much as `score`, and no trade of two retains more
    (of weights with more than 128 rows: no trade retains more in 128 of them, which are looked at).

    score: [N, K], 0 or more each, larger is worth more (`wanda_scores` for instance); sweeps: at most so many rounds of trades.
    """
    whole = np.asarray(score, np.float32)
    values = np.ascontiguousarray(whole[:: -(-len(whole) // _ROWS)])
    cols, size = values.shape[1], structure.m
    padded = _grouped(values, size).reshape(len(values), -1)
    slots = padded.shape[1]
    order = np.arange(slots)  # of padded inputs; the last ones hold nothing and stay
    group = order // size
    # worth[p, q]: what the group of slot p retains with the input of slot q in p's place
    worth = np.zeros((slots, slots))
    stale = np.arange(slots)
    for _ in range(sweeps):
        worth[stale] = _worth(padded, stale, structure)
        own = worth.diagonal()
        gain = worth + worth.T - own[:, None] - own
        gain[cols:] = gain[:, cols:] = 0
        gain[group[:, None] == group] = 0
        least = 1e-6 * float(own.sum()) + float(np.finfo(np.float32).tiny)
        pairs = _disjoint(gain, group, least)
        if not pairs:
            break
        first, second = (np.array(side) for side in zip(*pairs, strict=True))
        swapped = np.arange(slots)
        swapped[first], swapped[second] = second, first
        padded, order = padded[:, swapped], order[swapped]
        worth = worth[:, swapped]
        stale = np.flatnonzero(np.isin(group, group[np.concatenate([first, second])]))
    found = order[:cols]
    return found if len(values) == len(whole) or _gains(whole, found, structure) else np.arange(cols)


def _gains(score: Matrix, order: Indices, structure: NM) -> bool:
    return retained(score[:, order], structure) > retained(score, structure)


def _grouped(score: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    """[N, groups, M], zeros where the last group has no input."""
    rows, cols = score.shape
    groups = -(-cols // size)
    result = np.zeros((rows, groups * size), score.dtype)
    result[:, :cols] = score
    return result.reshape(rows, groups, size)


def _worth(padded: Matrix, slots: Indices, structure: NM) -> NDArray[np.float64]:
    """[slots, K]: a group without the input in a slot keeps its n largest; another takes the place of the n-th where it is larger."""
    size, n = structure.m, structure.n
    rows, cols = padded.shape
    others = (
        slots[:, None] // size * size + np.stack([np.delete(np.arange(size), p) for p in range(size)])[slots % size]
    )
    largest = np.sort(padded[:, others], axis=2)[:, :, size - 1 - n :]  # [N, slots, n], n <= M - 1
    floor, kept = largest[:, :, 0], largest.sum((0, 2), dtype=np.float64)
    result = np.empty((len(slots), cols))
    step = max(1, _CHUNK_BYTES // max(1, 4 * rows * cols))
    columns = np.ascontiguousarray(padded.T)
    for start in range(0, len(slots), step):
        part = np.ascontiguousarray(floor[:, start : start + step].T)
        result[start : start + step] = np.maximum(columns - part[:, None], 0).sum(2)
    return np.asarray(result + kept[:, None])


def _disjoint(gain: NDArray[np.float64], group: Indices, threshold: float) -> list[tuple[int, int]]:
    """Trades worth more than the threshold, the best first, no group in two of them."""
    first, second = np.nonzero(np.triu(gain, 1) > threshold)
    order = np.argsort(-gain[first, second], kind="stable")
    busy: set[int] = set()
    pairs = []
    for p, q in zip(first[order].tolist(), second[order].tolist(), strict=True):
        pair = {int(group[p]), int(group[q])}
        if not pair & busy:
            busy |= pair
            pairs.append((p, q))
    return pairs
