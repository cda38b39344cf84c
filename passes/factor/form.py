"""A weight as a sum of products of coded factors: the result of factoring, with what it costs and what it decodes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import EncodedWeight, Scheme, decode

__all__ = ["Factor", "Factored", "block_diagonal", "factor_name", "shuffled"]


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor F: block-diagonal with `groups` equal blocks, its rows one after the other in `coded` [rows, cols / groups].

    label: what is added to the weight's name; "" for the factor that stands for it. shuffle: the factor before it has that many
    groups, whose outputs [shuffle, groups, r] this one reads as [groups, shuffle, r] (0: as they come).
    """

    label: str
    coded: EncodedWeight
    groups: int = 1
    shuffle: int = 0

    @property
    def rows(self) -> int:
        """Outputs."""
        return self.coded.rows

    @property
    def inputs(self) -> int:
        """Inputs."""
        return self.coded.cols * self.groups

    def matrix(self) -> NDArray[np.float32]:
        """float32 [rows, inputs], the shuffle of its inputs included."""
        result = block_diagonal(decode(self.coded), self.groups)
        if self.shuffle:
            result = result[:, shuffled(result.shape[1], self.groups, self.shuffle)]
        return result


@dataclass(frozen=True, eq=False)
class Factored:
    """W = main[-1] ... main[0] + branch[-1] ... branch[0], factors in the order in which inputs meet them; `words` say what it is."""

    words: str
    main: tuple[Factor, ...]
    branch: tuple[Factor, ...] = ()

    def stored(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """(facts for JSON, arrays by name): all there is, for `read`."""
        facts: list[list[Any]] = []
        arrays: dict[str, NDArray[Any]] = {}
        for number, factor in enumerate(self.factors()):
            coded = factor.coded
            facts.append([factor.label, str(coded.scheme), coded.rows, coded.cols, factor.groups, factor.shuffle])
            arrays |= {f"{number}.{role}": array for role, array in coded.arrays().items()}
        return {"words": self.words, "main": len(self.main), "factors": facts}, arrays

    @classmethod
    def read(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Factored:
        """Inverse of `stored`; raises WeightError or KeyError for what is not its result."""
        factors = []
        for number, (label, scheme, rows, cols, groups, shuffle) in enumerate(facts["factors"]):
            parsed = Scheme.parse(scheme)
            own = {role: arrays[f"{number}.{role}"] for role in parsed.roles}
            factors.append(Factor(label, EncodedWeight.from_arrays(parsed, rows, cols, own), groups, shuffle))
        return cls(facts["words"], tuple(factors[: facts["main"]]), tuple(factors[facts["main"] :]))

    def factors(self) -> Iterator[Factor]:
        """All of them."""
        yield from self.main
        yield from self.branch

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored."""
        return sum(factor.coded.nbytes for factor in self.factors())

    def decoded(self) -> NDArray[np.float32]:
        """W, float32 [N, K]."""
        total = _product(self.main)
        return (total + _product(self.branch) if self.branch else total).astype(np.float32)

    def sizes(self, weight: str) -> dict[str, int]:
        """How many values each factor of a weight has, by the names under which they are stored."""
        return {factor_name(weight, factor): factor.coded.rows * factor.coded.cols for factor in self.factors()}

    def waste(self) -> str:
        """Why the form saves nothing, or ''."""
        last, first = self.main[-1], self.main[0]
        size, stored = last.rows * first.inputs, sum(f.coded.rows * f.coded.cols for f in self.factors() if f.label)
        if len(self.main) > 1 and stored >= size:
            return f"saves nothing: the factors hold {stored} values, the weight has {size}"
        if self.branch and (branch := sum(f.coded.nbytes for f in self.branch)) >= (main := self.nbytes - branch):
            return f"the branch takes {branch} bytes, what it corrects {main}: more bits there may do better"
        return ""

    def zeros(self) -> float:
        """Share of zeros: of the factor that stands for the weight where there is one, without what is added to it or wrapped around."""
        core = next((factor.coded for factor in self.main if not factor.label), None)
        return float(np.mean((self.decoded() if core is None else decode(core)) == 0))

    def bits_per_weight(self) -> float:
        """Stored bits per element of W."""
        return 8.0 * self.nbytes / (self.main[-1].rows * self.main[0].inputs)


def factor_name(weight: str, factor: Factor) -> str:
    """Under which name a factor of a weight is stored."""
    return f"{weight}.{factor.label}" if factor.label else weight


def block_diagonal(blocks: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """[N, groups * K] of blocks [N, K] whose rows are cut into `groups` equal runs, one for each run of K inputs."""
    if groups == 1:
        return blocks
    rows, cols = blocks.shape
    result = np.zeros((groups, rows // groups, groups, cols), blocks.dtype)
    every = np.arange(groups)
    result[every, :, every, :] = blocks.reshape(groups, rows // groups, cols)
    return result.reshape(rows, groups * cols)


def shuffled(size: int, groups: int, shuffle: int) -> NDArray[np.intp]:
    """For each input as it comes, [shuffle, groups, r], its place among those a factor reads, [groups, shuffle, r]."""
    return np.arange(size).reshape(groups, shuffle, -1).transpose(1, 0, 2).reshape(-1)


def _product(chain: Sequence[Factor]) -> NDArray[np.float64]:
    result = chain[0].matrix().astype(np.float64)
    for factor in chain[1:]:
        result = factor.matrix().astype(np.float64) @ result
    return result
