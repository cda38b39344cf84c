"""One weight factored as its rule says: what is coded, what corrects it, in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.factoring import LowRank, Outliers, resolved_rank
from sparsec.formats import EncodedWeight, Scheme, Structure, decode
from sparsec.passes.factor.coding import Coder, coded_armor, coded_monarch, coded_pair
from sparsec.passes.factor.fit import error
from sparsec.passes.factor.form import Factor, Factored
from sparsec.passes.factor.outliers import beside_outliers, outlier_inputs
from sparsec.passes.factor.sparse_plus_low_rank import sparse_plus_low_rank
from sparsec.passes.factor.svd import input_sizes, svd
from sparsec.passes.factor.whitened import whitened
from sparsec.passes.quantise import quantise
from sparsec.recipe import Rule

__all__ = ["factored"]

Matrix = NDArray[np.float64]


def factored(
    weight: NDArray[np.floating[Any]], second_moment: Any, structure: Structure, rule: Rule, coder: Coder
) -> Factored:
    """W [N, K] in the factored form of a rule that has `low_rank`, `factor` or both, or `outliers`.

    second_moment: of the inputs [K, K]; None: all inputs count the same. structure: of the zeros, with this weight's share.
    Raises WeightError for a rank that W has not.
    """
    target = np.asarray(weight, np.float64)
    metric = None if second_moment is None else np.asarray(second_moment, np.float64)
    if rule.outliers is not None:
        return _with_outliers(target, metric, rule.outliers, rule, coder)
    if rule.low_rank is None:
        return Factored(*_main(target, metric, structure, rule, coder))
    return _with_branch(target, metric, structure, rule, coder)


def _main(
    target: Matrix, metric: Matrix | None, structure: Structure, rule: Rule, coder: Coder
) -> tuple[str, tuple[Factor, ...]]:
    """What stands for W: by the coder, or the factors that the rule asks for."""
    factor, how = rule.factor, rule.quantize
    if factor is None:
        whole = coder(target.astype(np.float32), metric, None)
        return str(whole.scheme), (Factor("", whole),)
    if factor.algorithm == "monarch":
        assert factor.blocks is not None
        rank = 1 if factor.rank is None else resolved_rank(factor.rank, *(n // factor.blocks for n in target.shape))
        words = f"monarch {factor.blocks} x {rank} {rule.scheme}"
        return words, coded_monarch(target, factor.blocks, rank, metric, Scheme.parse(rule.scheme), how)
    if factor.algorithm == "armor":
        assert factor.block is not None
        scheme = Scheme.parse(factor.scheme or "int8")
        words = f"{rule.scheme} in armor {factor.block} {scheme}"
        return words, coded_armor(target, factor.block, metric, structure, scheme, how, coder)
    assert factor.rank is not None
    rank = resolved_rank(factor.rank, *target.shape)
    match factor.algorithm:
        case "asvd" if metric is not None:
            found = svd(target, rank, input_sizes(metric))
        case "svd_llm" | "low_rank" if metric is not None:
            found = whitened(target, metric, rank)
        case _:
            found = svd(target, rank)
    return f"rank {rank} {rule.scheme}", coded_pair(target, *found, metric, Scheme.parse(rule.scheme), how)


def _with_branch(target: Matrix, metric: Matrix | None, structure: Structure, rule: Rule, coder: Coder) -> Factored:
    """W = Q + U V, Q by the coder, U V what is nearest to W - Q; by turns if the rule says so, the best of which counts."""
    branch = rule.low_rank
    assert branch is not None
    rank = resolved_rank(branch.rank, *target.shape)
    wanted = target
    if branch.algorithm == "oats":
        sizes = None if metric is None else input_sizes(metric, 1.0)
        mask, _, left, right = sparse_plus_low_rank(target, rank, structure, sizes=sizes)
        wanted, coder = target - left @ right, _on_mask(coder, mask)
    best: Factored | None = None
    lowest = np.inf
    for _ in range(branch.rounds):
        words, main = _main(wanted, metric, structure, rule, coder)
        pair = _branch(target - Factored(words, main).decoded(), metric, rank, branch, rule)
        found = Factored(f"{words} + rank {rank} {pair[0].coded.scheme}", main, pair)
        lost = error(target, found.decoded(), metric)
        if lost < lowest or best is None:
            best, lowest = found, lost
        wanted = target - pair[1].matrix().astype(np.float64) @ pair[0].matrix()
    assert best is not None
    return best


def _with_outliers(target: Matrix, metric: Matrix | None, outliers: Outliers, rule: Rule, coder: Coder) -> Factored:
    """W = Q + S, S the inputs that cost most; what S stores makes up for Q's errors on the others as well as it can."""
    chosen = outlier_inputs(target, metric, outliers.count(target.shape[1]))
    rest, moment, mask = beside_outliers(target, metric, chosen)
    whole = coder(rest.astype(np.float32), moment, None)
    left = target - decode(whole)
    scheme, inputs = Scheme.parse(outliers.sparse), np.eye(target.shape[1]) if metric is None else metric
    stored = quantise(left, inputs, scheme, mask, damping=rule.quantize.damping)
    words = f"{whole.scheme} + {len(chosen)} inputs {Scheme.parse(outliers.codec)}"
    return Factored(words, (Factor("", whole),), (Factor("outliers", stored),))


def _on_mask(coder: Coder, found: NDArray[np.bool_]) -> Coder:
    """The coder with a mask that is given."""

    def coded(
        target: NDArray[np.float32], second_moment: Matrix | None, mask: NDArray[np.bool_] | None
    ) -> EncodedWeight:
        return coder(target, second_moment, found)

    return coded


def _branch(rest: Matrix, metric: Matrix | None, rank: int, branch: LowRank, rule: Rule) -> tuple[Factor, Factor]:
    if branch.algorithm == "lorc" or metric is None:
        found, metric = svd(rest, rank), None
    else:
        found = whitened(rest, metric, rank)
    return coded_pair(rest, *found, metric, Scheme.parse(branch.scheme), rule.quantize)
