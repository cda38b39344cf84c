"""torch modules and exported programs become ONNX through `torch.onnx.export(dynamo=True)`."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from sparsec.errors import ModelError


def export_torch(obj: Any, example_inputs: Any = None) -> ir.Model:
    """Export in evaluation mode; input names are those of `forward`.

    Args:
        obj: `torch.export.ExportedProgram`, or `torch.nn.Module` / `torch.fx.GraphModule` with `example_inputs`.
        example_inputs: tensor or array, tuple or list (positional), dict (keyword).

    Raises:
        ModelError: no example inputs, an object that is neither module nor program, or torch cannot export it.
    """
    if isinstance(obj, torch.export.ExportedProgram):
        return _export(obj, (), {})
    if not isinstance(obj, torch.nn.Module):
        raise ModelError(
            f"cannot read a model from {type(obj).__module__}.{type(obj).__name__}; of torch's objects sparsec takes "
            "nn.Module, fx.GraphModule and export.ExportedProgram (for a state dict: build the module and load it)."
        )
    if example_inputs is None:
        raise ModelError(
            f"{type(obj).__name__} is a torch module: give example_inputs (a tuple of tensors, as for calling it), "
            "so that its graph can be traced."
        )
    args, kwargs = _split_inputs(example_inputs)
    with _eval_mode(obj):
        return _export(obj, args, kwargs)


def _export(obj: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ir.Model:
    try:
        with _quiet_exporter():
            # Not optimised here: its folding loses the names of weights, and ours comes next.
            program = torch.onnx.export(obj, args, kwargs=kwargs or None, dynamo=True, verbose=False, optimize=False)
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"torch cannot export {type(obj).__name__}: {first} "
            "(try torch.export.export on it to see where tracing fails)."
        ) from error
    assert program is not None
    model: ir.Model = program.model
    return model


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter prints progress and warns of packages it misses; neither is ours to show."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _split_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), {name: _tensor(value) for name, value in example_inputs.items()}
    if isinstance(example_inputs, tuple | list):
        return tuple(map(_tensor, example_inputs)), {}
    return (_tensor(example_inputs),), {}


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


@contextlib.contextmanager
def _eval_mode(module: torch.nn.Module) -> Iterator[None]:
    """Dropout and batch normalisation as at inference; every submodule gets its own flag back."""
    flags = [(sub, sub.training) for sub in module.modules()]
    for sub, _ in flags:
        sub.training = False
    try:
        yield
    finally:
        for sub, flag in flags:
            sub.training = flag
