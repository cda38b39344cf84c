"""Front ends: whatever holds a trained model arrives as one `onnx_ir.Model` with static input shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from sparsec.errors import ModelError
from sparsec.frontend.bind import bind_shapes, bind_values

__all__ = ["load_model"]


def load_model(
    obj: Any,
    example_inputs: Any = None,
    input_shapes: Mapping[str, int | Sequence[int]] | None = None,
    input_values: Mapping[str, Any] | None = None,
) -> ir.Model:
    """Read a model and bind every input to a static shape.

    Args:
        obj: path of an ONNX file (external data is mapped, not read), its bytes, `onnx.ModelProto`,
            `onnx_ir.Model` (copied, the argument stays as it is), `torch.nn.Module`,
            `torch.export.ExportedProgram` or `torch.fx.GraphModule`.
        example_inputs: for torch modules: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        input_shapes: `{"x": [1, 3, 224, 224]}` binds an input, `{"batch": 1}` binds a named dimension everywhere.
        input_values: `{"sr": 16000}` turns an input into a constant.

    Returns:
        A new model; initializers that were also inputs are constants, all inputs have static shapes.

    Raises:
        ModelError: the file is missing, truncated or not ONNX, or a torch module came without example inputs.
        ShapeError: a dynamic dimension is not bound (all are listed), or a binding does not fit.
    """
    if _is_torch(obj):
        from sparsec.frontend.torch import export_torch

        model = export_torch(obj, example_inputs)
    else:
        from sparsec.frontend.onnx import read_onnx

        if example_inputs is not None:
            raise ModelError(
                f"example_inputs belong to torch modules; a {type(obj).__name__} does not need them. "
                "Bind dynamic dimensions with input_shapes."
            )
        model = read_onnx(obj)
    bind_values(model, input_values or {})
    bind_shapes(model, input_shapes or {})
    return model


def _is_torch(obj: Any) -> bool:
    """True for torch's own objects and for subclasses of nn.Module; looks at names so torch is never imported."""
    return any(cls.__module__.split(".")[0] == "torch" for cls in type(obj).__mro__)
