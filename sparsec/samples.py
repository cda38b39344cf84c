"""Inputs to try a model with: seeded random ones that fit its graph, or the user's .npz file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsec.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

# Ops whose result holds the same integers as the given inputs.
_CARRIERS = {
    "Cast": (0,), "Identity": (0,), "Reshape": (0,), "Squeeze": (0,), "Unsqueeze": (0,), "Flatten": (0,),
    "Transpose": (0,), "Expand": (0,), "Slice": (0,), "Split": (0,), "Where": (1, 2), "Add": (0, 1),
}  # fmt: skip


def random_inputs(model: ir.Model, seed: int = 0) -> dict[str, Array]:
    """Random inputs for every input of a model with static input shapes; the same seed gives the same arrays.

    Floats are standard normal, bytes uniform over their range. Wider integers that index a table (Gather, OneHot)
    are uniform over its rows; any other integer or bool input is all ones, as a mask.
    """
    rng = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.const_value is not None:
            continue
        assert value.dtype is not None
        assert value.shape is not None
        shape, dtype = tuple(int(d) for d in value.shape.numpy()), value.dtype.numpy()
        rows = table_rows(value)
        if value.dtype.is_floating_point():
            array = rng.standard_normal(shape).astype(dtype)
        elif dtype == np.bool_:
            array = np.ones(shape, dtype)
        elif rows is not None:
            array = rng.integers(0, rows, shape).astype(dtype)
        elif dtype.itemsize == 1:
            info = np.iinfo(dtype)
            array = rng.integers(info.min, info.max + 1, shape).astype(dtype)
        else:
            array = np.ones(shape, dtype)
        feed[value.name or ""] = array
    return feed


def table_rows(value: ir.Value) -> int | None:
    """Rows of the smallest table that `value` indexes, directly or through ops that keep its integers; else None."""
    smallest: int | None = None
    todo, seen = [(value, 0)], {value}
    while todo:
        current, offset = todo.pop()
        for node, position in current.uses():
            rows = _indexed_rows(node, position)
            if rows is not None:
                rows = max(1, rows - offset)
                smallest = rows if smallest is None else min(smallest, rows)
            if position not in _CARRIERS.get(node.op_type, ()) or node.domain not in ("", "ai.onnx"):
                continue
            added = _largest_constant(node.inputs[1 - position]) if node.op_type == "Add" else 0
            for out in node.outputs:
                if out not in seen and added is not None:
                    seen.add(out)
                    todo.append((out, offset + added))
    return smallest


def _indexed_rows(node: ir.Node, position: int) -> int | None:
    if node.domain == "sparsec" and node.op_type.startswith("Gather") and position == len(node.inputs) - 1:
        return node.attributes["rows"].as_int()
    if node.op_type in ("Gather", "GatherElements") and position == 1:
        table = node.inputs[0]
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        rows = table.shape[axis] if table is not None and table.shape is not None else 1
        return rows if isinstance(rows, int) else 1
    if node.op_type == "OneHot" and position == 0:
        return _largest_constant(node.inputs[1])
    return None


def _largest_constant(value: ir.Value | None) -> int | None:
    if value is None or value.const_value is None or value.const_value.size == 0:
        return None
    return int(value.const_value.numpy().max())


def load_inputs(path: str | Path, model: ir.Model) -> dict[str, Array]:
    """Inputs from an .npz file whose keys are input names.

    Raises:
        InputError: no such file, not an .npz, or names, dtypes or shapes that do not fit the model.
    """
    feed = open_arrays(Path(path))
    check_inputs(feed, model, str(path))
    return feed


def open_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file. Raises InputError: no such file, not an .npz."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:
        raise InputError(
            f"{path}: not an .npz file of arrays; write one with numpy.savez(path, name=array, ...)"
        ) from error


def check_inputs(feed: Mapping[str, Array], model: ir.Model, where: str) -> None:
    """Raise InputError unless `feed` has exactly the model's inputs, with their dtypes and shapes."""
    wanted = {v.name or "": v for v in model.graph.inputs if v.const_value is None}
    problems = [f"'{name}' is missing" for name in wanted if name not in feed]
    problems += [f"'{name}' is no input of the model" for name in feed if name not in wanted]
    for name, value in wanted.items():
        if name not in feed or value.dtype is None or value.shape is None:
            continue
        dtype, shape = value.dtype.numpy(), tuple(int(d) for d in value.shape.numpy())
        found = np.asarray(feed[name])
        if found.dtype != dtype or found.shape != shape:
            problems.append(f"'{name}' is {found.dtype}{list(found.shape)}, the model takes {dtype}{list(shape)}")
    if problems:
        raise InputError(f"{where}: " + "; ".join(problems))
