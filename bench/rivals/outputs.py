"""A job of kind "outputs": compress a model as `variant` says and write what it gives for many inputs.

    onnx         the uncompressed model
    calibration  .npz, arrays [S, ...] by input name
    inputs       .npz likewise: what to run on
    outputs      .npz to write: arrays "0", "1", .. [S, ...]

Loaded in the rivals' own environments, Python 3.10 and numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bench.rivals.protocol import Job, Prepared


def feeds(path: str) -> Iterator[dict[str, Any]]:
    """The feeds of a file, one after the other."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for index in range(len(next(iter(arrays.values())))):
        yield {name: array[index] for name, array in arrays.items()}


def answer(job: Job, run: Callable[[dict[str, Any]], Sequence[Any]], stored: int) -> Prepared:
    """Run all inputs and write the outputs. stored: bytes of the compressed model."""
    rows = [[np.array(value) for value in run(feed)] for feed in feeds(job["inputs"])]
    np.savez(job["outputs"], **{str(i): np.stack(column) for i, column in enumerate(zip(*rows))})  # noqa: B905  Python 3.10
    return Prepared(run=lambda: None, stored=stored)
