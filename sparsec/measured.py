"""Two models scored by the user's own metric, with a paired interval where it tells examples apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import InputError
from sparsec.labelled import Score
from sparsec.paired import bootstrap

__all__ = ["measured_score"]

Array = NDArray[Any]


def measured_score(
    metric: Callable[[dict[str, Array], Any], Any],
    aggregate: Callable[[Array], float] | None,
    outputs: tuple[Sequence[Mapping[str, Array]], Sequence[Mapping[str, Array]]],
    labels: Any,
    resamples: int,
    confidence: float,
    seed: int,
) -> Score:
    """The score of both models, the original first (see `sparsec.validation.validate`).

    Raises InputError: the metric gives NaN, no numbers, or different numbers of values for the two models.
    """
    name = getattr(metric, "__name__", type(metric).__name__)
    dense, found = (np.asarray(metric(_together(side), labels)) for side in outputs)
    for values in (dense, found):
        if values.dtype.kind not in "fiub" or (values.dtype.kind == "f" and np.isnan(values).any()) or not values.size:
            raise InputError(f"metric {name}: it must give numbers, not NaN; found {values.dtype}{list(values.shape)}")
    if dense.shape != found.shape:
        raise InputError(
            f"metric {name}: {list(dense.shape)} values for the original, {list(found.shape)} for the other"
        )
    if dense.ndim == 0:
        if aggregate is not None:
            raise InputError(f"metric {name} gives one number; aggregate needs values of each example [N, ...]")
        return Score(name, len(outputs[0]), float(dense), float(found), None)
    whole = aggregate or (lambda values: float(values.mean()))
    interval = bootstrap(
        lambda rows: float(whole(found[rows])) - float(whole(dense[rows])), len(dense), resamples=resamples,
        confidence=confidence, seed=seed,
    )  # fmt: skip
    return Score(name, len(dense), float(whole(dense)), float(whole(found)), interval)


def _together(outputs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([np.atleast_1d(made[name]) for made in outputs]) for name in outputs[0]}
