"""What lowering rules work with: where each graph value lives in memory, and the steps appended so far.

A rule is `rule(node, lowering) -> Refusal | None`: it either appends steps for the node's outputs and returns None, or
refuses with a reason and the next rule for that op is asked (kernels/table.py lists them, most specialised first).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from sparsec.codegen.intern import Interned
from sparsec.codegen.program import (
    FROM_DATA,
    ITEMSIZE,
    Buffer,
    KernelSpec,
    Program,
    Ref,
    Signature,
    Step,
    family_module,
)
from sparsec.errors import ShapeError
from sparsec.target import Target

# How the elements of a tensor lie in memory: `row` is C order of the logical (ONNX) shape; `cl` (channels last) is C order of
# (N, spatial..., C) for a logical (N, C, spatial...).
Layout = Literal["row", "cl"]
LAYOUTS: tuple[Layout, ...] = ("row", "cl")


@dataclass(frozen=True)
class Refusal:
    """Why a rule does not take a node."""

    reason: str


@dataclass(frozen=True)
class Tensor:
    """Where and how one graph value lives: logical `shape`, physical `layout`, at `offset` bytes into `buffer`."""

    buffer: Buffer
    dtype: str
    shape: tuple[int, ...]
    layout: Layout = "row"
    offset: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def physical_shape(self) -> tuple[int, ...]:
        """The shape in memory order."""
        if self.layout == "cl":
            return (self.shape[0], *self.shape[2:], self.shape[1])
        return self.shape

    @property
    def ref(self) -> Ref:
        return Ref(self.buffer, self.offset)


Rule = Callable[[ir.Node, "Lowering"], Refusal | None]


def row_strides(shape: Sequence[int]) -> list[int]:
    """Strides in elements of a C-order array."""
    strides, step = [], 1
    for dim in reversed(shape):
        strides.append(step)
        step *= dim
    return strides[::-1]


def same_memory(shape: Sequence[int]) -> bool:
    """Whether row and channels-last order coincide for this shape (one channel, or one pixel)."""
    return len(shape) < 3 or shape[1] == 1 or int(np.prod(shape[2:], dtype=np.int64)) == 1


@dataclass(frozen=True)
class Place:
    """Where a Concat wants an input (places.py): `offset` elements into its result `out`, which lies in `layout`.

    A `pitch` of 0 is a dense part of the result, else it is the number of channels from one pixel to the next.
    """

    out: ir.Value
    layout: Layout
    offset: int
    pitch: int


@dataclass(frozen=True)
class Part:
    """Where a value lies inside another one (places.py): `offset` elements into `source`, `pitch` elements from row to row."""

    source: ir.Value
    offset: int
    pitch: int


@dataclass(frozen=True)
class State:
    """A state of a Lowering (`Lowering.save`)."""

    buffers: list[Buffer]
    steps: list[Step]
    tensors: dict[tuple[ir.Value, Layout], Tensor]
    native: dict[ir.Value, Layout]
    consts: Interned[Tensor]
    names: dict[str, int]
    in_place: frozenset[ir.Value]


class Lowering:
    """State of one lowering: what rules read values from, allocate buffers with and append steps to."""

    def __init__(self, model: ir.Model, target: Target, name: str) -> None:
        self.model = model
        self.graph = model.graph
        self.target = target
        self.program = Program(name=name, target=target)
        # Elementwise nodes left for their consumer's kernel (see fusion.py).
        self.deferred: set[ir.Node] = set()
        # The kernel family that takes another one's place, with the same parameters (a GPU's for the processor's).
        self.family_for: Callable[[str, Mapping[str, Any]], str] = lambda family, params: family
        # The layout a node computes in, where there was a choice (see layouts.py).
        self.plan: dict[ir.Node, Layout] = {}
        # What a family keeps for its later nodes, such as an operand in another order.
        self.notes: dict[Any, Tensor] = {}
        # Values that are produced where a Concat wants them (see places.py), and those that were, with a pitch.
        self.places: dict[ir.Value, Place] = {}
        self.in_place: set[ir.Value] = set()
        # Values that are read inside another one (see places.py), and nodes that have no steps for such a reason.
        self.parts: dict[ir.Value, Part] = {}
        self.left_out: set[ir.Node] = set()
        self._tensors: dict[tuple[ir.Value, Layout], Tensor] = {}
        self._native: dict[ir.Value, Layout] = {}
        self._consts: Interned[Tensor] = Interned()
        self._names: dict[str, int] = {}

    # --- facts about values ---

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Static shape of a value. Raises ShapeError when a dimension is unknown."""
        dims = value.shape
        if dims is None or not all(isinstance(d, int) for d in dims):
            raise ShapeError(
                f"value '{value.name}' has no static shape ({dims}); bind the model's inputs with --input-shapes"
            )
        return tuple(int(d) for d in dims)  # type: ignore[arg-type]

    def dtype(self, value: ir.Value) -> str:
        """Element type of a value as a numpy name ("float32", "int64", "bool" ...)."""
        if value.dtype is None:
            raise ShapeError(f"value '{value.name}' has no element type")
        return str(value.dtype.numpy())

    def constant(self, value: ir.Value | None) -> np.ndarray[Any, Any] | None:
        """The array of an initializer, or None when the value is computed at run time."""
        if value is None:
            return None
        tensor = value.const_value
        return None if tensor is None else np.asarray(tensor.numpy())

    # --- trying ---

    def save(self) -> State:
        """What `restore` needs to undo, or to redo, everything that rules do from here on."""
        return State(
            list(self.program.buffers), list(self.program.steps), dict(self._tensors), dict(self._native),
            self._consts.copy(), dict(self._names), frozenset(self.in_place),
        )  # fmt: skip

    def restore(self, state: State) -> None:
        """Go to a saved state."""
        self.program.buffers[:], self.program.steps[:] = state.buffers, state.steps
        self._tensors, self._native = dict(state.tensors), dict(state.native)
        self._consts, self._names = state.consts.copy(), dict(state.names)
        self.in_place = set(state.in_place)

    def rename(self, old: ir.Value, new: ir.Value) -> None:
        """What was made as `old` is `new`."""
        if old in self.in_place:
            self.in_place.remove(old)
            self.in_place.add(new)
            return
        self._native[new] = self._native.pop(old)
        for key in [key for key in self._tensors if key[0] is old]:
            self._tensors[(new, key[1])] = self._tensors.pop(key)

    # --- reading ---

    def layout(self, value: ir.Value) -> Layout:
        """The layout the value was produced in (constants and inputs: row)."""
        return self._native.get(value, "row")

    def get(self, value: ir.Value, layout: Layout = "row") -> Tensor:
        """The value in the wanted layout; appends one conversion step the first time a value is wanted in another."""
        key = (value, layout)
        if key in self._tensors:
            return self._tensors[key]
        array = self.constant(value)
        if array is not None:
            if layout == "cl" and not same_memory(array.shape):
                array = np.moveaxis(array, 1, -1)
            tensor = self.const(array, value.name or "const", shape=self.shape(value), layout=layout)
            self._tensors[key] = tensor
            return tensor
        source = self._tensors[(value, self.layout(value))]
        if same_memory(source.shape):
            tensor = Tensor(source.buffer, source.dtype, source.shape, layout, source.offset)
        else:
            tensor = self.temp(source.dtype, source.shape, layout, name=f"{value.name}.{layout}")
            self._convert(source, tensor, value)
        self._tensors[key] = tensor
        return tensor

    def _convert(self, source: Tensor, dest: Tensor, value: ir.Value) -> None:
        rank = len(source.shape)
        axes = [0, *range(2, rank), 1] if dest.layout == "cl" else [0, rank - 1, *range(1, rank - 1)]
        strides = row_strides(source.physical_shape)
        self.copy(
            source,
            dest,
            shape=dest.physical_shape,
            src_strides=[strides[a] for a in axes],
            node=value.name or "",
            op="Layout",
            note=f"{source.layout} -> {dest.layout}",
        )

    def part(self, value: ir.Value) -> tuple[Tensor, int]:
        """Where a value [..., positions, heads, elements] lies, in row order: (tensor, elements from position to position)."""
        part, shape = self.parts.get(value), self.shape(value)
        if part is None:
            return self.get(value), int(np.prod(shape[-2:], dtype=np.int64))
        whole = self.get(part.source)
        offset = whole.offset + part.offset * ITEMSIZE[whole.dtype]
        return Tensor(whole.buffer, whole.dtype, shape, "row", offset), part.pitch

    def planned(self, node: ir.Node, allowed: Sequence[Layout]) -> Layout:
        """The layout the plan wants `node` to compute in; the first of `allowed` where it says nothing or none of them."""
        wanted = self.plan.get(node)
        return wanted if wanted is not None and wanted in allowed else allowed[0]

    # --- making ---

    def buffer_name(self, wanted: str) -> str:
        """A name unique in the program."""
        count = self._names.get(wanted, 0)
        self._names[wanted] = count + 1
        return wanted if count == 0 else f"{wanted}.{count}"

    def temp(self, dtype: str, shape: Sequence[int], layout: Layout = "row", name: str = "temp") -> Tensor:
        """A fresh arena tensor that belongs to no graph value."""
        shape = tuple(shape)
        buffer = Buffer(self.buffer_name(name), dtype, int(np.prod(shape, dtype=np.int64)), "arena")
        self.program.buffers.append(buffer)
        return Tensor(buffer, dtype, shape, layout)

    def new(self, value: ir.Value, layout: Layout = "row") -> Tensor:
        """The arena tensor a rule writes a node's output to: a part of another one's where a Concat wants it there."""
        place = self.places.get(value)
        if place is not None and place.layout == layout and not place.pitch:
            whole = self.result_of(place)
            offset = whole.offset + place.offset * ITEMSIZE[whole.dtype]
            tensor = Tensor(whole.buffer, whole.dtype, self.shape(value), layout, offset)
        else:
            tensor = self.temp(self.dtype(value), self.shape(value), layout, name=value.name or "value")
        self.bind(value, tensor)
        return tensor

    def strided(self, value: ir.Value, layout: Layout) -> tuple[Tensor, int]:
        """Like `new`, for kernels that can leave a distance between pixels: (where to write, elements from pixel to pixel)."""
        place = self.places.get(value)
        if place is None or place.layout != layout or not place.pitch:
            return self.new(value, layout), self.shape(value)[1]
        whole = self.result_of(place)
        self.in_place.add(value)
        offset = whole.offset + place.offset * ITEMSIZE[whole.dtype]
        return Tensor(whole.buffer, whole.dtype, self.shape(value), layout, offset), place.pitch

    def result_of(self, place: Place) -> Tensor:
        """The tensor of a Concat's result, made when the first of its inputs is."""
        key = (place.out, place.layout)
        return self._tensors[key] if key in self._tensors else self.new(place.out, place.layout)

    def bind(self, value: ir.Value, tensor: Tensor) -> None:
        """Say that `value` lives at `tensor` (a fresh buffer, or a view of another tensor's memory)."""
        self._native[value] = tensor.layout
        self._tensors[(value, tensor.layout)] = tensor

    def const(
        self, array: np.ndarray[Any, Any], name: str, *, shape: Sequence[int] | None = None, layout: Layout = "row"
    ) -> Tensor:
        """A constant buffer; equal arrays are stored once. `shape` is the logical shape when the array is permuted or packed."""
        array = np.ascontiguousarray(array)
        logical = tuple(array.shape if shape is None else shape)
        kind = (str(array.dtype), logical, layout)
        tensor = self._consts.find(array, kind)
        if tensor is None:
            buffer = Buffer(self.buffer_name(name), str(array.dtype), array.size, "const", data=array.reshape(-1))
            self.program.buffers.append(buffer)
            tensor = Tensor(buffer, str(array.dtype), logical, layout)
            self._consts.add(array, tensor, kind)
        return tensor

    def call(
        self,
        family: str,
        params: Mapping[str, Any],
        ins: Sequence[Tensor],
        outs: Sequence[Tensor],
        *,
        node: str,
        op: str,
        note: str = "",
        scratch: Mapping[str, int] | None = None,
        cost: int | None = None,
    ) -> None:
        """Append one kernel call. `ins` and `outs` follow the in and out arguments of the family's signature.

        `scratch` and `cost` are for kernels that leave sizes to their data (`Signature.bound`).
        """
        family = self.family_for(family, params)
        module = importlib.import_module(family_module(family))
        signature: Signature = module.signature(params, self.target)
        wanted = [a for a in signature.args if a.role != "work"]
        given = [*ins, *outs]
        assert len(wanted) == len(given), f"{family}: {len(given)} tensors for {len(wanted)} arguments"
        for arg, tensor in zip(wanted, given, strict=True):
            assert arg.dtype == tensor.dtype, f"{family}.{arg.name} wants {arg.dtype}, got {tensor.dtype} ({node})"
            # what the kernel reads there is found by its other constants, so it must be one, and whole
            assert arg.size != FROM_DATA or (tensor.buffer.kind == "const" and tensor.size == tensor.buffer.size), (
                arg.name
            )
        signature = signature.bound([tensor.size for tensor in given], scratch or {}, cost)
        self.program.steps.append(
            Step(KernelSpec(family, dict(params)), signature, tuple(t.ref for t in given), node, op, note)
        )

    def copy(
        self,
        source: Tensor,
        dest: Tensor,
        *,
        shape: Sequence[int],
        src_strides: Sequence[int],
        src_offset: int = 0,
        dst_strides: Sequence[int] | None = None,
        dst_offset: int = 0,
        node: str,
        op: str,
        note: str = "",
    ) -> None:
        """dest[dst_offset + sum(i_d * dst_strides[d])] = source[src_offset + sum(i_d * src_strides[d])] for all i in `shape`.

        Strides and offsets count elements of the tensors' memory; `dst_strides` defaults to C order of `shape`.
        Transpose, Slice, Expand, Concat, Pad and layout changes are all this one family.
        """
        params = {
            "dtype": source.dtype,
            "shape": list(shape),
            "src_size": source.size,
            "src_offset": src_offset,
            "src_strides": list(src_strides),
            "dst_size": dest.size,
            "dst_offset": dst_offset,
            "dst_strides": list(row_strides(shape) if dst_strides is None else dst_strides),
        }
        self.call("copy", params, [source], [dest], node=node, op=op, note=note)
