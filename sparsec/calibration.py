"""Calibration inputs: an .npz file, arrays, an iterable or a callable, checked and cut into one feed a run of the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsec.errors import CalibrationError, InputError
from sparsec.progress import Progress
from sparsec.samples import open_arrays

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LABELS", "calibration_labels", "calibration_samples", "split_labels"]

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

LABELS = "labels"
"""The array of labels in a file of samples, unless an input of the model has that name."""


def calibration_samples(
    source: Any, model: ir.Model, most: int | None = None, what: str = "calibration", progress: Progress | None = None
) -> list[Feed]:
    """The first `most` samples of `source` (None: all), each with every input of the model as it was bound.

    Args:
        source: path of an .npz file; a mapping of arrays; an iterable of samples, or a callable that returns one. Arrays of a
            file or mapping hold all samples: [S, *shape] for an input of that shape, or [S * B, ...] if the input is [B, ...]; an
            array `labels` beside them is left out (see `calibration_labels`).
            A sample is a mapping by input name, a list of arrays in the order of the inputs, or, for one input, an array.
        model: from `load_model`, input shapes static.
        what: names the samples in errors.
        progress: told how many are read, and of how many where the source says so.

    Raises:
        CalibrationError: names, shapes or dtypes do not fit, values are NaN or Inf, there is no sample; says which sample.
    """
    wanted = {v.name or "": v for v in model.graph.inputs if v.const_value is None}
    if callable(source):
        source = source()
    if isinstance(source, str | PathLike):
        where = str(source)
        total, samples = _cut(_inputs_of(open_arrays(Path(source)), wanted), wanted, where)
    elif isinstance(source, Mapping):
        where = what
        arrays = {name: np.asarray(array) for name, array in _inputs_of(source, wanted).items()}
        total, samples = _cut(arrays, wanted, where)
    elif isinstance(source, Iterable):
        where, total = what, length_hint(source)
        samples = (_named(sample, wanted, f"{what} sample {i}") for i, sample in enumerate(source))
    else:
        raise CalibrationError(
            f"{what} inputs are an .npz file, a mapping, an iterable or a callable; found {type(source).__name__}"
        )
    found: list[Feed] = []
    for index, sample in enumerate(itertools.islice(samples, most)):
        if progress is not None:
            progress("samples", index, total if most is None else min(total, most), "")
        found.append(_checked(sample, wanted, f"{where}, sample {index}"))
    if not found:
        raise CalibrationError(f"{where}: there is no sample; at least one is needed")
    if progress is not None:
        progress("samples", len(found), len(found), "")
    return found


def calibration_labels(source: Any, labels: Any, model: ir.Model, read: int) -> Array | None:
    """Labels [read, n] of the first `read` samples: `labels`, else the array `labels` of a file or mapping; None without either.

    labels: for every sample of `source` (of an iterable: for every one that is read) as many, side by side or along the first axis.
    Raises CalibrationError where numbers do not fit, or values are NaN.
    """
    wanted = {v.name or "": v for v in model.graph.inputs if v.const_value is None}
    total = read
    if isinstance(source, str | PathLike):
        source = open_arrays(Path(source))
    if isinstance(source, Mapping):
        inputs = _inputs_of(source, wanted)
        name = next(iter(inputs))
        total = _count(np.asarray(inputs[name]), _shape(wanted[name]), name)
        labels = source.get(LABELS) if labels is None and LABELS not in wanted else labels
    if labels is None:
        return None
    found = np.asarray(labels)
    if not found.size or found.size % total:
        raise CalibrationError(f"{found.size} labels for {total} calibration samples; every sample needs as many")
    if found.dtype.kind not in "iuf" or not np.isfinite(found).all():
        raise CalibrationError(f"labels are {found.dtype}, or hold NaN or Inf; give finite numbers")
    return np.ascontiguousarray(found.reshape(total, -1)[:read])


def split_labels(samples: Any, labels: Any, where: str = "validation") -> tuple[Any, Any, str]:
    """(samples, labels, what to call them): takes the array that `labels` names out of a file or mapping; a file is read.

    Raises InputError: there is no such array.
    """
    if isinstance(samples, str | PathLike):
        where, samples = str(samples), open_arrays(Path(samples))
    if not isinstance(labels, str):
        return samples, labels, where
    if not isinstance(samples, Mapping) or labels not in samples:
        has = f"; there are: {', '.join(samples)}" if isinstance(samples, Mapping) else ""
        raise InputError(f"{where}: there is no array '{labels}' to hold the labels{has}")
    return {name: array for name, array in samples.items() if name != labels}, samples[labels], where


def _inputs_of(arrays: Mapping[str, Any], wanted: Mapping[str, ir.Value]) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if name != LABELS or name in wanted}


def _cut(arrays: Mapping[str, Array], wanted: Mapping[str, ir.Value], where: str) -> tuple[int, Iterator[Feed]]:
    """How many samples arrays hold along their first axis, and these."""
    _check_names(arrays, wanted, where)
    counts = {name: _count(array, _shape(wanted[name]), f"{where}: '{name}'") for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise CalibrationError(f"{where}: inputs have different numbers of samples: {listed}")
    total = next(iter(counts.values()), 0)

    def one(index: int) -> Feed:
        feed = {}
        for name, array in arrays.items():
            shape = _shape(wanted[name])
            step = len(array) // total if array.ndim == len(shape) else 1
            feed[name] = array[index * step : (index + 1) * step] if array.ndim == len(shape) else array[index]
        return feed

    return total, map(one, range(total))


def _count(array: Array, shape: tuple[int, ...], where: str) -> int:
    if array.ndim == len(shape) + 1 and array.shape[1:] == shape:
        return len(array)
    if shape and array.ndim == len(shape) and array.shape[1:] == shape[1:] and len(array) % shape[0] == 0:
        return len(array) // shape[0]
    raise CalibrationError(
        f"{where} is {list(array.shape)}; samples of {list(shape)} are {[None, *shape]} side by side"
    )


def _named(sample: Any, wanted: Mapping[str, ir.Value], where: str) -> Feed:
    if isinstance(sample, Mapping):
        return {name: np.asarray(array) for name, array in sample.items()}
    values = list(sample) if isinstance(sample, list | tuple) else [sample]
    if len(values) != len(wanted):
        raise CalibrationError(
            f"{where} has {len(values)} arrays; the model has {len(wanted)} inputs: {', '.join(wanted)}"
        )
    return dict(zip(wanted, map(np.asarray, values), strict=True))


def _checked(feed: Feed, wanted: Mapping[str, ir.Value], where: str) -> Feed:
    _check_names(feed, wanted, where)
    result = {}
    for name, value in wanted.items():
        array, shape = feed[name], _shape(value)
        assert value.dtype is not None
        dtype = value.dtype.numpy()
        if array.shape != shape:
            raise CalibrationError(
                f"{where}: '{name}' has the shape {list(array.shape)}, the model takes {list(shape)}"
            )
        if array.dtype != dtype and not (array.dtype.kind == np.dtype(dtype).kind and array.dtype.kind in "fiu"):
            raise CalibrationError(f"{where}: '{name}' is {array.dtype}, the model takes {dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CalibrationError(f"{where}: '{name}' holds NaN or Inf")
        result[name] = np.ascontiguousarray(array, dtype)
    return result


def _check_names(feed: Mapping[str, Any], wanted: Mapping[str, ir.Value], where: str) -> None:
    problems = [f"'{name}' is missing" for name in wanted if name not in feed]
    problems += [f"'{name}' is no input of the model ({', '.join(wanted)})" for name in feed if name not in wanted]
    if problems:
        raise CalibrationError(f"{where}: " + "; ".join(problems))


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(int(size) for size in value.shape.numpy())
