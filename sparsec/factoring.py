"""The parts of a recipe that make several products of one: a branch beside a weight, low-rank or of few inputs, or factors in its place."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sparsec.errors import SchemeError
from sparsec.formats import Scheme

__all__ = ["Factor", "LowRank", "Outliers", "conflict", "resolved_rank"]

_LOW_RANK = ("low_rank", "svd", "asvd", "svd_llm")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


class LowRank(BaseModel):
    """A branch U V beside the coded weight Q, so that W is Q + U V: two thin products whose result is added to the main one.

    `lorc` is the singular value decomposition of what coding left, W - Q; no data needed. `eora` weighs it by the second moment
    of the inputs, so that the outputs come nearest. `oats` decides zeros and branch together, by turns (sparse schemes; weighed by
    the inputs' sizes where there are any). `auto`: `eora` where there are calibration inputs, else `lorc`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    rank: int | str
    """Columns of U; or a share of the smaller side of W, as in `5%`."""
    algorithm: Literal["auto", "lorc", "eora", "oats"] = "auto"
    scheme: str = "int8"
    """Of U and V."""
    rounds: int = Field(default=1, ge=1, le=16)
    """How often Q and U V are found: from the second time on Q codes what the branch leaves."""

    @field_validator("rank", mode="before")
    @classmethod
    def _rank(cls, value: Any) -> Any:
        return checked_rank(value)

    @field_validator("scheme")
    @classmethod
    def _scheme(cls, value: str) -> str:
        return _dense(value)


class Outliers(BaseModel):
    """A branch S beside the coded weight Q that holds the weights of few inputs, so that W is Q + S: those inputs on which coding would
    lose most, in a scheme of their own (`sparse`), while Q is fitted to the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    share: str = "2%"
    """Of the inputs, at least one."""
    codec: str = "int8"
    """Of S, with its scales: `int8`, `fp16`, `int4-g32`."""

    @field_validator("share")
    @classmethod
    def _share(cls, value: str) -> str:
        if not (match := _PERCENT.fullmatch(value)) or not 0 < float(match[1]) <= 50:
            raise ValueError(f"a share of the inputs is a text such as '2%', of at most 50 %; found {value!r}")
        return value

    @field_validator("codec")
    @classmethod
    def _codec(cls, value: str) -> str:
        return _dense(value)

    def count(self, inputs: int) -> int:
        """How many of so many inputs are outliers."""
        return max(1, round(float(self.share.removesuffix("%")) / 100 * inputs))

    @property
    def sparse(self) -> str:
        """The scheme of S: runs of 16 outputs share a position, so that positions cost next to nothing."""
        return f"s16x1@{100 - float(self.share.removesuffix('%')):g}-{self.codec}"


class Factor(BaseModel):
    """A product of thin or block-diagonal factors in place of the weight.

    `svd`, `asvd` and `svd_llm`: U V, nearest to W, to W with inputs weighed by their size, to W x; `low_rank`: `svd_llm` where there
    are calibration inputs, else `svd`. `monarch`: two block-diagonal factors with a fixed permutation between them. `armor`: block-
    diagonal factors before and after a sparse core, which has the rule's scheme; all other factors have it in the other forms.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    algorithm: Literal["low_rank", "svd", "asvd", "svd_llm", "monarch", "armor"]
    rank: int | str | None = None
    """Low rank: as in `LowRank`. monarch: of each of the blocks x blocks parts of W, 1 by default."""
    blocks: int | None = Field(default=None, ge=1)
    """monarch: parts into which outputs and inputs are cut."""
    block: int | None = Field(default=None, ge=2)
    """armor: width of the blocks around the core."""
    scheme: str | None = None
    """armor: of the two block-diagonal factors; int8 by default."""

    @field_validator("rank", mode="before")
    @classmethod
    def _rank(cls, value: Any) -> Any:
        return value if value is None else checked_rank(value)

    @field_validator("scheme")
    @classmethod
    def _scheme(cls, value: str | None) -> str | None:
        return value if value is None else _dense(value)

    @model_validator(mode="after")
    def _keys_fit(self) -> Factor:
        wanted, allowed = {"monarch": ("blocks", {"blocks", "rank"}), "armor": ("block", {"block", "scheme"})}.get(
            self.algorithm, ("rank", {"rank"})
        )
        given = {key for key in ("rank", "blocks", "block", "scheme") if getattr(self, key) is not None}
        if wanted not in given:
            raise ValueError(f"algorithm {self.algorithm} needs '{wanted}'")
        if extra := sorted(given - allowed):
            raise ValueError(f"algorithm {self.algorithm} takes {', '.join(sorted(allowed))}, not {', '.join(extra)}")
        return self

    @property
    def is_low_rank(self) -> bool:
        """Whether the form is U V."""
        return self.algorithm in _LOW_RANK


def checked_rank(value: Any) -> Any:
    """A rank from 1 up, or a text such as `5%` of at most 100 %; raises ValueError otherwise."""
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)) and 0 < float(match[1]) <= 100:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError(f"a rank is a number from 1 up, or a share such as '5%' of at most 100 %; found {value!r}")


def resolved_rank(rank: int | str, rows: int, cols: int) -> int:
    """The number of columns that `rank` means for W [rows, cols]; shares are of the smaller side, at least 1."""
    if isinstance(rank, int):
        return rank
    return max(1, round(float(rank.removesuffix("%")) / 100 * min(rows, cols)))


def conflict(scheme: str, low_rank: LowRank | None, factor: Factor | None, outliers: Outliers | None) -> str:
    """Why a rule cannot have these together, or ''."""
    dense = Scheme.parse(scheme).is_dense
    if outliers is not None and (low_rank is not None or factor is not None):
        return f"outliers and {'factor' if low_rank is None else 'low_rank'} each put a product beside the weight; leave one out"
    if low_rank is not None and low_rank.algorithm == "oats" and dense:
        return f"low_rank: oats shares the work between zeros and branch; scheme '{scheme}' has no zeros: take one such as s50, or eora"
    if low_rank is not None and factor is not None and factor.is_low_rank:
        return f"factor {factor.algorithm} is a low rank by itself; leave low_rank out and raise the rank"
    if low_rank is not None and low_rank.algorithm == "oats" and factor is not None:
        return "low_rank: oats finds the zeros itself and does not go with factor; take eora or lorc"
    if factor is not None and factor.algorithm == "armor" and dense:
        return f"factor armor wraps a sparse core; scheme '{scheme}' has no zeros: take one such as s2:4"
    if factor is not None and factor.algorithm != "armor" and not dense:
        return f"the factors of {factor.algorithm} are stored without zeros; scheme '{scheme}' has some: take one such as int8"
    return ""


def _dense(text: str) -> str:
    try:
        scheme = Scheme.parse(text)
    except SchemeError as error:
        raise ValueError(str(error)) from None
    if not scheme.is_dense:
        raise ValueError(
            f"thin and block-diagonal factors are stored without zeros; '{text}' has some: take one such as int8"
        )
    return str(scheme)
