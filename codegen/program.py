"""The lowered program: kernel calls on buffers, before memory is planned and C is written.

`lower.py` makes it, `plan.py` places its arena buffers, `build.py` compiles its kernels, `emit_c.py` prints it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from sparsec.target import Target

BufferKind = Literal["input", "output", "arena", "const"]

# Storage types of buffers; ONNX bool is one byte holding 0 or 1.
ITEMSIZE = {
    "float32": 4, "float64": 8, "float16": 2, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2,
    "int32": 4, "uint32": 4, "int64": 8, "uint64": 8, "bool": 1, "bfloat16": 2,
}  # fmt: skip
MODEL_TYPES = frozenset(ITEMSIZE) - {"bfloat16"}
"""Element types that values of a model may have; bfloat16 is storage between kernels of a GPU alone."""


@dataclass(eq=False)
class Buffer:
    """A block of memory: `size` elements of `dtype`. `data` holds the bytes of a const buffer."""

    name: str
    dtype: str
    size: int
    kind: BufferKind
    index: int = 0  # position among the model's inputs or outputs
    data: np.ndarray[Any, Any] | None = None

    @property
    def nbytes(self) -> int:
        return self.size * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Ref:
    """A pointer argument: `buffer` plus an offset in bytes."""

    buffer: Buffer
    byte_offset: int = 0


FROM_DATA = -1
"""`Arg.size` where the size does not change the code: it follows from the data bound to the argument (`Signature.bound`)."""


@dataclass(frozen=True)
class Arg:
    """One pointer parameter of a kernel: `size` elements of `dtype` (or FROM_DATA); a work argument is per-thread scratch."""

    name: str
    dtype: str
    size: int
    role: Literal["in", "out", "work"]


PIECES = 4
"""Pieces of a thread's share where nothing speaks against cutting it."""


@dataclass(frozen=True)
class Signature:
    """The C interface of a kernel: int32_t f(args..., int32_t lo, int32_t hi), 0 <= lo <= hi <= units.

    Arguments come in the order in, out, work. `cost` estimates the work of all units in floating-point operations (a byte
    moved counts as one), so that small steps are not spread over threads. A kernel that `may_fail` can return non-zero (`k.fail`).
    A thread's share of the units is cut into at most so many `pieces`, which a thread that is done takes from others: one where
    every call prepares what its units have in common.

    A family leaves what only data decides out of its parameters, so that layers that differ in nothing else share a kernel: such
    arguments have size FROM_DATA, and the step's own signature, with all sizes, is made of it by `bound`.
    """

    args: tuple[Arg, ...]
    units: int
    cost: int = 0
    may_fail: bool = False
    pieces: int = PIECES

    def bound(self, tensors: Sequence[int], scratch: Mapping[str, int], cost: int | None = None) -> Signature:
        """This signature with every size: `tensors` are the elements given for the in and out arguments, `scratch` those of work
        arguments (by name), `cost` replaces an estimate that depends on the data."""
        sizes = iter(tensors)
        args = []
        for arg in self.args:
            given = scratch.get(arg.name) if arg.role == "work" else next(sizes)
            if arg.size == FROM_DATA:
                assert given is not None, f"nothing says how large {arg.name} is"
                arg = replace(arg, size=given)
            args.append(arg)
        assert not {*scratch} - {arg.name for arg in self.args}, f"no scratch of these names: {sorted(scratch)}"
        return replace(self, args=tuple(args), cost=self.cost if cost is None else cost)


@dataclass(frozen=True)
class KernelSpec:
    """A kernel to generate: `family` names a module (family_module), `params` its JSON-able parameters.

    `storage` has, for GPU kernels, the dtype each argument is stored in where that is not the signature's; empty: as in the signature.
    """

    family: str
    params: Mapping[str, Any]
    storage: tuple[str, ...] = ()

    def canonical(self) -> str:
        """The same text for the same kernel, whatever the order of the parameters."""
        parts = [self.family, dict(self.params), *([list(self.storage)] if self.storage else [])]
        return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def family_module(family: str) -> str:
    """Name of the module behind a kernel family: `gemm` is in codegen/kernels, `cuda.gemm` in codegen/cuda/kernels."""
    head, dot, tail = family.rpartition(".")
    return f"sparsec.codegen.{head}.kernels.{tail}" if dot else f"sparsec.codegen.kernels.{family}"


@dataclass(eq=False)
class Step:
    """One kernel call. `refs` are the in and out arguments in the order of the signature (work follows by itself)."""

    spec: KernelSpec
    signature: Signature
    refs: tuple[Ref, ...]
    node: str  # name of the ONNX node it comes from
    op: str  # ONNX op type, for reports and profiles
    note: str = ""  # shapes and scheme, for the comment in the generated C
    others: tuple[str, ...] = ()  # names of further nodes that are computed in it

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of all nodes it computes."""
        return (*self.others, self.node)


@dataclass(frozen=True)
class IoInfo:
    """An input or output of the model: name, dtype and logical shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Option:
    """One way to compute a node that was compared: what it is, seconds predicted and measured (None: not measured)."""

    label: str
    predicted: float
    measured: float | None = None

    @property
    def seconds(self) -> float:
        """What decides."""
        return self.predicted if self.measured is None else self.measured

    def __str__(self) -> str:
        if self.measured is None:
            return f"{self.label} {1e3 * self.predicted:.3g} ms predicted"
        return f"{self.label} {1e3 * self.measured:.3g} ms measured ({1e3 * self.predicted:.3g} predicted)"


@dataclass(frozen=True)
class Decision:
    """What was compared for a node, the winner first. decoded: its weight was decoded at compile time.

    reason: why that had to be, where nothing was compared because no kernel takes the weight as it is; stored: what it was decoded to.
    """

    options: tuple[Option, ...]
    decoded: bool = False
    reason: str = ""
    stored: str = "float32"

    def __str__(self) -> str:
        return self.reason or "; ".join(map(str, self.options))


@dataclass(frozen=True)
class StoredWeight:
    """A weight of float values that kernels read in another type than the graph has: `dtype`, the bytes of all that is stored of it, and
    those that the graph stores (weights that were joined share them)."""

    dtype: str
    nbytes: int
    graph_nbytes: int


@dataclass(eq=False)
class Program:
    """A model lowered for one target."""

    name: str
    target: Target
    inputs: list[IoInfo] = field(default_factory=list)
    outputs: list[IoInfo] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    status: Buffer | None = None
    """Of a program for a GPU whose kernels may fail: int32, one a step, an arena buffer with the whole run as its life. It is zero
    when a run begins; what is not zero after it is the error code of that step."""
    decisions: dict[str, Decision] = field(default_factory=dict)
    """Node name -> which ways to compute it were compared, and how long each takes (choice.py)."""
    stored: dict[str, StoredWeight] = field(default_factory=dict)
    """Node name -> what its weight is stored in, where that is not the type the graph has."""
