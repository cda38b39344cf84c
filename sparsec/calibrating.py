"""What the caller gave to calibrate and train on, as the passes take it: samples, labels, workers, a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir

from sparsec.calibration import calibration_labels, calibration_samples
from sparsec.codegen.machine import cpu_count
from sparsec.errors import RecipeError
from sparsec.executors import open_workers
from sparsec.passes import Calibration
from sparsec.progress import Progress
from sparsec.recipe import Recipe, load_recipe
from sparsec.recovery import Recover

__all__ = ["opened_calibration", "with_recovery"]


def with_recovery(
    recipe: Recipe, recover: Mapping[str, Any] | Recover | None
) -> tuple[Recipe, Callable[..., Any] | None]:
    """(the recipe with the keys of `recover` in place of its own, the function that `loss` is or None).

    Raises RecipeError for unknown keys and bad values.
    """
    if recover is None:
        return recipe, None
    if isinstance(recover, Recover):
        return recipe.model_copy(update={"recover": recover}), None
    if not isinstance(recover, Mapping):
        raise RecipeError(f"recover is a mapping, as in a recipe, or a Recover; found {type(recover).__name__}")
    given, function = dict(recover), None
    if callable(given.get("loss")):
        function, given["loss"] = given["loss"], "custom"
    before = {} if recipe.recover is None else recipe.recover.model_dump(exclude_defaults=True)
    data = recipe.model_dump(exclude_defaults=True, mode="json")
    return load_recipe({**data, "recover": {**before, **given}}), function


@contextmanager
def opened_calibration(
    source: Any,
    model: ir.Model,
    recipe: Recipe,
    jobs: int | None,
    executor: Executor | str | None,
    labels: Any = None,
    loss: Callable[..., Any] | None = None,
    progress: Progress | None = None,
) -> Iterator[Calibration | None]:
    """Calibration inputs with their labels, and the workers that calibrate on them; None without inputs."""
    if source is None:
        yield None
        return
    few, recover = recipe.calibrate.samples, recipe.recover
    samples = calibration_samples(
        source, model, few if recover is None else max(few, recover.samples), progress=progress
    )
    found = calibration_labels(source, labels, model, len(samples))
    with open_workers(executor, jobs) as workers:
        yield Calibration(
            samples[:few], workers.executor, workers.count, cpu_count() if executor else workers.count,
            [] if recover is None else samples[: recover.samples],
            found, loss,
        )  # fmt: skip
