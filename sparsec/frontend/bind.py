"""Bind the dynamic parts of a model's inputs: named dimensions, whole shapes, constant values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.errors import ModelError, ShapeError


def bind_values(model: ir.Model, values: Mapping[str, Any]) -> None:
    """Replace inputs by constants, in place.

    Raises:
        ModelError: no such input, or the value does not fit the input's dtype or shape.
    """
    graph = model.graph
    for name in sorted(values):
        value = _input_named(graph, name, "input_values")
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        try:
            array = np.asarray(values[name]).astype(dtype)
            if value.shape is not None and value.shape.is_static():
                array = np.broadcast_to(array, value.shape.numpy())
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"input_values[{name!r}] = {values[name]!r} does not fit input {_describe(value)}: {error}"
            ) from error
        graph.inputs.remove(value)
        value.shape = ir.Shape(array.shape)
        value.const_value = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        graph.register_initializer(value)


def bind_shapes(model: ir.Model, shapes: Mapping[str, int | Sequence[int]]) -> None:
    """Give every input a static shape, in place, and drop the stale symbolic shapes of all other values.

    Raises:
        ShapeError: a key names neither input nor dimension, a binding contradicts the model or another binding,
            or dimensions stay unbound (the message lists all of them and how to bind each).
    """
    graph = model.graph
    names = {value.name or "" for value in graph.inputs}
    dims = {str(d) for v in graph.inputs if v.shape is not None for d in v.shape if _is_open(d) and _dim_name(d)}
    known: dict[str, int] = {}
    whole: dict[str, list[int]] = {}
    for key, given in shapes.items():
        if key in names:
            whole[key] = _positive(key, given if not isinstance(given, int) else [given])
        elif key in dims and isinstance(given, int):
            _learn(known, key, _positive(key, [given])[0], f"input_shapes[{key!r}]")
        elif key in dims:
            raise ShapeError(f"input_shapes[{key!r}] = {given!r}: {key!r} is a dimension, so it takes one integer.")
        else:
            hint = did_you_mean(key, names | dims)
            raise ShapeError(
                f"input_shapes[{key!r}]: the model has no input or dimension of that name{hint}. "
                f"Inputs: {', '.join(map(_describe, graph.inputs))}. Dimensions: {', '.join(sorted(dims)) or 'none'}."
            )
    for value in graph.inputs:
        _learn_from_whole(value, whole.get(value.name or ""), known)

    unbound: list[str] = []
    for value in graph.inputs:
        given_shape = whole.get(value.name or "")
        if given_shape is not None:
            value.shape = ir.Shape(given_shape)
            continue
        if value.shape is None:
            unbound.append(f"{value.name}: rank unknown; bind input_shapes={{{value.name!r}: [...]}}")
            continue
        bound = [known.get(_dim_name(dim), dim) if _is_open(dim) else dim for dim in value.shape]
        for axis, dim in enumerate(bound):
            if _is_open(dim):
                name = _dim_name(dim)
                how = f"{{{name!r}: 1}} or " if name else ""
                unbound.append(
                    f"{_describe(value)}: axis {axis} ({name or 'unnamed'}); "
                    f"bind with input_shapes={how}{{{value.name!r}: {_suggest(value)}}}"
                )
        value.shape = ir.Shape(bound)
    if unbound:
        listing = "\n  ".join(unbound)
        raise ShapeError(f"{len(unbound)} input dimension(s) are dynamic; sparsec compiles static shapes:\n  {listing}")
    _forget_symbolic_shapes(model)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """', did you mean X?' or an empty string."""
    close = difflib.get_close_matches(word, sorted(options), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _learn_from_whole(value: ir.Value, given: list[int] | None, known: dict[str, int]) -> None:
    if given is None or value.shape is None:
        return
    if len(given) != len(value.shape):
        raise ShapeError(
            f"input_shapes[{value.name!r}] = {given} has rank {len(given)}; the model's input is {_describe(value)}."
        )
    for axis, (dim, size) in enumerate(zip(value.shape, given, strict=True)):
        name = _dim_name(dim)
        if not _is_open(dim) and dim != size:
            raise ShapeError(
                f"input_shapes[{value.name!r}] = {given}: axis {axis} is {dim} in the model: {_describe(value)}."
            )
        if name:
            _learn(known, name, size, f"input_shapes[{value.name!r}]")


def _learn(known: dict[str, int], name: str, size: int, source: str) -> None:
    if known.setdefault(name, size) != size:
        raise ShapeError(f"dimension {name!r} is bound to {known[name]} and, by {source}, to {size}.")


def _positive(key: str, sizes: Sequence[int]) -> list[int]:
    out = [int(size) for size in sizes]
    if any(size < 1 for size in out):
        raise ShapeError(f"input_shapes[{key!r}] = {list(sizes)}: every size must be at least 1.")
    return out


def _is_open(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, ir.SymbolicDim) or dim < 0


def _dim_name(dim: int | ir.SymbolicDim) -> str:
    return str(dim.value) if isinstance(dim, ir.SymbolicDim) and dim.value is not None else ""


def _describe(value: ir.Value) -> str:
    dims = [_dim_name(d) or ("?" if _is_open(d) else str(d)) for d in value.shape or ()]
    shape = "[" + ", ".join(dims) + "]" if value.shape is not None else " of unknown rank"
    return f"{value.name} {value.dtype.name.lower() if value.dtype else '?'}{shape}"


def _suggest(value: ir.Value) -> list[int]:
    return [1 if _is_open(d) else int(str(d)) for d in value.shape or ()]


def _input_named(graph: ir.Graph, name: str, where: str) -> ir.Value:
    for value in graph.inputs:
        if value.name == name:
            return value
    names = [value.name or "" for value in graph.inputs]
    raise ModelError(
        f"{where}[{name!r}]: the model has no such input{did_you_mean(name, names)}. Inputs: {', '.join(names)}."
    )


def _forget_symbolic_shapes(model: ir.Model) -> None:
    """Shapes that name dimensions are stale once inputs are static; inference fills them again."""
    fixed = set(model.graph.inputs) | set(model.graph.initializers.values())
    for graph in model.graphs():
        for value in [*(out for node in graph for out in node.outputs), *graph.outputs]:
            if value not in fixed and value.shape is not None and not value.shape.is_static():
                value.shape = None
