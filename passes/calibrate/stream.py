"""Samples on their way through a model, segment by segment: the activations that lie at the present cut."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.passes.calibrate.segments import Segment
from sparsec.reference import Reference

__all__ = ["Stream"]

Array = np.ndarray[Any, Any]

IN_MEMORY_BYTES = 64 << 20
"""A value whose arrays over all samples take more lies in a file."""


class Stream:
    """Activations of all samples at one cut of `model`, whose weights may change between segments.

    Raises InputError where onnxruntime refuses a sample.
    """

    def __init__(self, model: ir.Model, samples: Sequence[Mapping[str, Array]], threads: int) -> None:
        self.model = model
        self._threads, self._count = threads, len(samples)
        self._folder = tempfile.TemporaryDirectory(prefix="sparsec-calibration-")
        self._files: dict[str, Path] = {}
        names = [value.name or "" for value in model.graph.inputs]
        self._values: dict[str, list[Array] | Array] = {
            name: [np.asarray(sample[name]) for sample in samples] for name in names if name in samples[0]
        }

    def close(self) -> None:
        """Free what lies in memory and in files."""
        self._values.clear()
        self._folder.cleanup()

    def advance(self, segment: Segment, each: Callable[[int, int], None] | None = None) -> None:
        """Run all samples through a segment; `each` is told before each sample how many are through, and of how many."""
        model = segment.model(self.model)
        if model is not None:
            reference = Reference(model, threads=self._threads, spin=False)
            for index in range(self._count):
                if each is not None:
                    each(index, self._count)
                made = reference.run({name: self._values[name][index] for name in segment.reads})
                for name, array in made.items():
                    self._put(name, index, array)
        for name in segment.drops:
            self._drop(name)

    def value(self, name: str, index: int) -> Array:
        """A value at the cut for one sample."""
        return np.asarray(self._values[name][index])

    def _put(self, name: str, index: int, array: Array) -> None:
        if index == 0:
            large = array.nbytes * self._count > IN_MEMORY_BYTES
            self._values[name] = self._mapped(name, array) if large else []
        kept = self._values[name]
        if isinstance(kept, list):
            kept.append(array)
        else:
            kept[index] = array

    def _mapped(self, name: str, first: Array) -> Array:
        path = self._files[name] = Path(self._folder.name) / f"{len(self._files)}.npy"
        return np.lib.format.open_memmap(path, "w+", first.dtype, (self._count, *first.shape))

    def _drop(self, name: str) -> None:
        self._values.pop(name, None)
        if name in self._files:
            self._files[name].write_bytes(b"")  # its number stays taken
