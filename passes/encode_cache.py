"""Keep-masks and encoded weights in the cache on disk: a warm compile neither prunes nor encodes.

Keys cover the weight's bytes, everything of the rule that steers pruning and encoding, the sources of both, and numpy's
version. What else an encoder reads must be added to `_rule`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import sparsec.formats
from sparsec.cache import digest, load, source_digest, store
from sparsec.errors import WeightError
from sparsec.formats import EncodedWeight
from sparsec.passes.factor.form import Factored
from sparsec.passes.select import Choice

__all__ = ["cached_encoding", "cached_form", "cached_masks", "weight_digest"]

Mask = NDArray[np.bool_]
Encoding = tuple[EncodedWeight, float, float]
"""The weight, its share of zeros, its normalised squared error."""


@cache
def _sources() -> str:
    here, formats = Path(__file__).parent, Path(sparsec.formats.__file__).parent
    return digest(
        np.__version__,
        source_digest(*formats.rglob("*.py"), *here.glob("sparsify/*.py"), here / "insert_decode.py"),
    )


@cache
def _factor_sources() -> str:
    here = Path(__file__).parent
    return digest(
        _sources(), source_digest(*here.glob("factor/*.py"), *here.glob("quantise/*.py"), here / "hessian.py")
    )


def weight_digest(choice: Choice) -> str:
    """Hash of a weight and of how it is a matrix."""
    tensor = choice.weight.value.const_value
    assert tensor is not None
    return digest(tensor.numpy(), str(choice.weight.flipped), f"{choice.weight.rows}x{choice.weight.cols}")


def _rule(choice: Choice) -> str:
    return choice.rule.model_dump_json(exclude={"targets", "ignore", "optional"})


def cached_masks(
    choices: Sequence[Choice], digests: Sequence[str], make: Callable[[], Sequence[Mask | None]]
) -> list[Mask | None]:
    """The masks of the weights of one rule: from the cache, else `make()`."""
    key = digest(_sources(), _rule(choices[0]), *(repr(choice.structure) for choice in choices), *digests)
    found = load("masks", key)
    names = [str(index) for index in range(len(choices))]
    if found is not None:
        bits = found[1]
        return [
            np.unpackbits(bits[name], count=c.weight.rows * c.weight.cols).astype(bool).reshape(c.weight.rows, -1)
            if name in bits
            else None
            for name, c in zip(names, choices, strict=True)
        ]
    masks = list(make())
    store("masks", key, {}, {n: np.packbits(mask) for n, mask in zip(names, masks, strict=True) if mask is not None})
    return masks


def cached_encoding(choice: Choice, digest_: str, mask: Mask | None, make: Callable[[], Encoding]) -> Encoding:
    """The encoded weight and its figures: from the cache, else `make()`."""
    masked = "" if mask is None else digest(np.packbits(mask))
    key = digest(_sources(), str(choice.scheme), _rule(choice), digest_, masked)
    found = load("weights", key)
    if found is not None:
        facts, arrays = found
        try:
            weight = EncodedWeight.from_arrays(choice.scheme, choice.weight.rows, choice.weight.cols, arrays)
            return weight, float(facts["zeros"]), float(facts["nmse"])
        except (WeightError, KeyError):  # a damaged entry is made again
            pass
    weight, zeros, nmse = make()
    store("weights", key, {"zeros": zeros, "nmse": nmse}, weight.arrays())
    return weight, zeros, nmse


def cached_form(choice: Choice, digest_: str, mask: Mask | None, make: Callable[[], Factored]) -> Factored:
    """The factored weight: from the cache, else `make()`."""
    masked = "" if mask is None else digest(np.packbits(mask))
    key = digest(_factor_sources(), _rule(choice), repr(choice.structure), digest_, masked)
    found = load("factors", key)
    if found is not None:
        try:
            return Factored.read(*found)
        except (WeightError, KeyError):  # a damaged entry is made again
            pass
    form = make()
    store("factors", key, *form.stored())
    return form
