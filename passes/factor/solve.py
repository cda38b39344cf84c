"""One weight factored as its rule says: what is coded, what corrects it, in which order."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsec.factoring import LowRank, resolved_rank
from sparsec.formats import EncodedWeight, Scheme, Structure, decode
from sparsec.passes.factor.coding import coded_pair, error
from sparsec.passes.factor.form import Factor, Factored
from sparsec.passes.factor.sparse_plus_low_rank import sparse_plus_low_rank
from sparsec.passes.factor.svd import input_sizes, svd
from sparsec.passes.factor.whitened import whitened
from sparsec.recipe import Rule

__all__ = ["Coder", "factored"]

Matrix = NDArray[np.float64]


class Coder(Protocol):
    """How a rule prunes and codes one matrix."""

    def __call__(
        self, target: NDArray[np.float32], second_moment: Matrix | None, mask: NDArray[np.bool_] | None
    ) -> EncodedWeight:
        """target [N, K] in the rule's scheme; second_moment: of its inputs or None; mask: keep-mask, None: the rule's."""
        ...


def factored(
    weight: NDArray[np.floating[Any]], second_moment: Any, structure: Structure, rule: Rule, coder: Coder
) -> Factored:
    """W [N, K] in the factored form of a rule that has `low_rank`, `factor` or both.

    second_moment: of the inputs [K, K]; None: all inputs count the same. structure: of the zeros, with this weight's share.
    Raises WeightError for a rank that W has not.
    """
    target = np.asarray(weight, np.float64)
    metric = None if second_moment is None else np.asarray(second_moment, np.float64)
    words, main = _main(target, metric, rule)
    if rule.low_rank is None:
        return Factored(words, main)
    return _with_branch(target, metric, structure, rule, coder)


def _main(target: Matrix, metric: Matrix | None, rule: Rule) -> tuple[str, tuple[Factor, ...]]:
    """What stands for W in rules with `factor`."""
    factor = rule.factor
    if factor is None:
        return "", ()
    assert factor.rank is not None
    rank = resolved_rank(factor.rank, *target.shape)
    match factor.algorithm:
        case "asvd" if metric is not None:
            found = svd(target, rank, input_sizes(metric))
        case "svd_llm" | "low_rank" if metric is not None:
            found = whitened(target, metric, rank)
        case _:
            found = svd(target, rank)
    pair = coded_pair(target, *found, metric, Scheme.parse(rule.scheme), rule.quantize)
    return f"rank {rank} {rule.scheme}", pair


def _with_branch(target: Matrix, metric: Matrix | None, structure: Structure, rule: Rule, coder: Coder) -> Factored:
    """W = Q + U V, Q by the coder, U V what is nearest to W - Q; by turns if the rule says so, the best of which counts."""
    branch = rule.low_rank
    assert branch is not None
    rank = resolved_rank(branch.rank, *target.shape)
    mask, wanted = None, target
    if branch.algorithm == "oats":
        sizes = None if metric is None else input_sizes(metric, 1.0)
        mask, _, left, right = sparse_plus_low_rank(target, rank, structure, sizes=sizes)
        wanted = target - left @ right
    best: Factored | None = None
    lowest = np.inf
    for _ in range(branch.rounds):
        coded = coder(wanted.astype(np.float32), metric, mask)
        pair = _branch(target - decode(coded), metric, rank, branch, rule)
        words = f"{coded.scheme} + rank {rank} {pair[0].coded.scheme}"
        found = Factored(words, (Factor("", coded),), pair)
        lost = error(target, found.decoded(), metric)
        if lost < lowest or best is None:
            best, lowest = found, lost
        wanted = target - pair[1].matrix().astype(np.float64) @ pair[0].matrix()
    assert best is not None
    return best


def _branch(rest: Matrix, metric: Matrix | None, rank: int, branch: LowRank, rule: Rule) -> tuple[Factor, Factor]:
    if branch.algorithm == "lorc" or metric is None:
        found, metric = svd(rest, rank), None
    else:
        found = whitened(rest, metric, rank)
    return coded_pair(rest, *found, metric, Scheme.parse(branch.scheme), rule.quantize)
