"""Reading nodes of the `sparsec` ONNX domain: the weight arrays on their inputs, and the whole node parsed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir

from sparsec import fixed
from sparsec.activations import activation as find_activation
from sparsec.errors import ModelError, WeightError
from sparsec.formats import EncodedWeight, Scheme

__all__ = ["DOMAIN", "Kind", "SparsecNode", "WeightInputs", "is_sparsec", "read_weight", "view", "weight_inputs_of"]

DOMAIN = "sparsec"
Kind = Literal["Decode", "MatMul", "Conv", "Gather"]


@dataclass(frozen=True, eq=False)
class WeightInputs:
    """The graph values that hold one weight W[rows, cols], in the order of `scheme.roles`."""

    scheme: Scheme
    rows: int
    cols: int
    values: tuple[ir.Value, ...]

    def read(self) -> EncodedWeight | np.ndarray:
        """The stored arrays, or float32 W[rows, cols] for scheme fp32.

        Raises WeightError unless they are constants that fit the scheme and sizes.
        """
        arrays = {}
        for role, value in zip(self.scheme.roles, self.values, strict=True):
            if value.const_value is None:
                raise WeightError(f"weight input '{value.name}' ({role} of a {self.scheme} weight) is not a constant")
            arrays[role] = value.const_value.numpy()
        if not self.scheme.is_plain:
            return EncodedWeight.from_arrays(self.scheme, self.rows, self.cols, arrays)
        plain = arrays["codes"]
        if plain.dtype != np.float32 or plain.shape != (self.rows, self.cols):
            found = f"{plain.dtype}{list(plain.shape)}"
            raise WeightError(f"weight '{self.values[0].name}' is {found}, needs float32[{self.rows}, {self.cols}]")
        return plain


def is_sparsec(node: ir.Node) -> bool:
    """True for a node of this domain."""
    return node.domain == DOMAIN and node.op_type in get_args(Kind)


@dataclass(frozen=True, eq=False)
class SparsecNode:
    """A node of this domain, parsed. Fields that its kind lacks are None, empty or their neutral value."""

    node: ir.Node
    kind: Kind
    weight_inputs: WeightInputs
    x: ir.Value | None = None
    bias: ir.Value | None = None
    residual: ir.Value | None = None
    indices: ir.Value | None = None
    activation: str = ""
    act_params: tuple[float, ...] = ()
    activations: str = ""
    kernel_shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    shape: tuple[int, ...] = ()
    trans: bool = False

    @property
    def scheme(self) -> Scheme:
        """The weight's scheme."""
        return self.weight_inputs.scheme

    @property
    def rows(self) -> int:
        """N: outputs."""
        return self.weight_inputs.rows

    @property
    def cols(self) -> int:
        """K: inputs per output."""
        return self.weight_inputs.cols

    @property
    def rounds(self) -> bool:
        """Whether x is rounded to int8 (sparsec/int8.py)."""
        return self.activations not in ("", fixed.NAME)

    @property
    def output(self) -> ir.Value:
        """The node's result."""
        return self.node.outputs[0]

    def weight(self) -> EncodedWeight | np.ndarray:
        """The encoded weight, or float32 [N, K] for scheme fp32 (see `WeightInputs.read`)."""
        return self.weight_inputs.read()


def view(node: ir.Node) -> SparsecNode:
    """Parse a node of this domain.

    Raises ModelError when inputs or attributes are missing, SchemeError for a bad scheme.
    """
    if not is_sparsec(node):
        raise ModelError(f"node '{node.name}' ({node.domain}::{node.op_type}) is not a sparsec operator")
    kind: Kind = node.op_type  # type: ignore[assignment]
    values = {key: attribute.value for key, attribute in node.attributes.items()}
    try:
        scheme = Scheme.parse(values.pop("scheme"))
        rows, cols = int(values.pop("rows")), int(values.pop("cols"))
    except KeyError as error:
        raise ModelError(f"node '{node.name}' (sparsec::{kind}) lacks the attribute {error}") from None
    first = 1 if kind in ("MatMul", "Conv") else 0
    weights = node.inputs[first : first + len(scheme.roles)]
    present = tuple(value for value in weights if value is not None)
    after = ("bias", "residual") if first else (("indices",) if kind == "Gather" else ())
    extra = node.inputs[first + len(scheme.roles) :]
    if len(present) != len(scheme.roles) or len(extra) > len(after) or (kind == "Gather" and not extra):
        wanted = [*(["x"] if first else []), *scheme.roles, *after]
        found = [None if value is None else value.name for value in node.inputs]
        raise ModelError(f"node '{node.name}' (sparsec::{kind}, scheme {scheme}) has inputs {found}; it takes {wanted}")
    fields: dict[str, Any] = dict(zip(after, extra, strict=False))
    if first:
        fields["x"] = node.inputs[0]
    known = {
        "activation",
        "act_params",
        "activations",
        "kernel_shape",
        "strides",
        "pads",
        "dilations",
        "group",
        "shape",
        "trans",
    }
    for key, value in values.items():
        if key in known:
            fields[key] = tuple(value) if isinstance(value, (list, tuple)) else value
    if "trans" in fields:
        fields["trans"] = bool(fields["trans"])
    find_activation(fields.get("activation", ""), fields.get("act_params", ()))
    return SparsecNode(node, kind, WeightInputs(scheme, rows, cols, present), **fields)


def weight_inputs_of(node: ir.Node) -> WeightInputs:
    """The weight values of a node, to build another node on the same initializers."""
    return view(node).weight_inputs


def read_weight(node: ir.Node) -> EncodedWeight | np.ndarray:
    """The encoded weight of a node, or float32 W[N, K] for scheme fp32."""
    return view(node).weight()
