"""Small programs made of copy kernels, built without the front end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Tensor, row_strides
from sparsec.codegen.intern import Interned
from sparsec.codegen.program import Buffer, IoInfo, Program
from sparsec.target import Target, host_target


class ProgramBuilder:
    """Appends copy steps to a Program the way lowering rules do."""

    def __init__(self, name: str = "toy", target: Target | None = None) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name=name)
        self.low = Lowering(ir.Model(graph, ir_version=10), target or host_target(), name)
        self.program: Program = self.low.program

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> Tensor:
        return self._io(name, shape, dtype, "input", self.program.inputs)

    def output(self, name: str, shape: Sequence[int], dtype: str = "float32") -> Tensor:
        return self._io(name, shape, dtype, "output", self.program.outputs)

    def _io(self, name: str, shape: Sequence[int], dtype: str, kind: str, infos: list[IoInfo]) -> Tensor:
        shape = tuple(shape)
        size = int(np.prod(shape, dtype=np.int64))
        buffer = Buffer(name, dtype, size, kind, len(infos))  # type: ignore[arg-type]
        infos.append(IoInfo(name, dtype, shape))
        self.program.buffers.append(buffer)
        return Tensor(buffer, dtype, shape)

    def transpose(self, source: Tensor, axes: Sequence[int], dest: Tensor | None = None, node: str = "t") -> Tensor:
        """dest = source.transpose(axes), into a fresh arena tensor by default."""
        shape = [source.shape[a] for a in axes]
        strides = row_strides(source.shape)
        dest = dest or self.low.temp(source.dtype, shape, name=f"{node}_out")
        self.low.copy(
            source, dest, shape=shape, src_strides=[strides[a] for a in axes], node=node, op="Transpose",
            note=f"{list(source.shape)} -> {shape}",
        )  # fmt: skip
        return dest

    def copy_into(self, source: Tensor, dest: Tensor, dst_offset: int, node: str = "c") -> None:
        """dest.flat[dst_offset:][:source.size] = source.flat: one part of a Concat along the first axis."""
        self.low.copy(source, dest, shape=[source.size], src_strides=[1], dst_offset=dst_offset, node=node, op="Concat")


def transpose_program(target: Target | None = None, shape: Sequence[int] = (3, 17, 5), name: str = "toy") -> Program:
    """x [a, b, c] -> y [c, b, a] in two steps through the arena."""
    build = ProgramBuilder(name, target)
    x = build.input("x", shape)
    y = build.output("y", (shape[2], shape[1], shape[0]))
    middle = build.transpose(x, (2, 0, 1), node="first")
    build.transpose(middle, (0, 2, 1), dest=y, node="second")
    return build.program


def concat_program(target: Target | None = None, name: str = "joined", seed: int = 5) -> tuple[Program, np.ndarray]:
    """(x int64 [4, 3], a constant [6, 3] stored twice) -> concat(x, constant, constant) [16, 3]; returns the constant too."""
    constant = np.random.default_rng(seed).integers(-99, 99, (6, 3))
    build = ProgramBuilder(name, target)
    x = build.input("x", (4, 3), "int64")
    y = build.output("y", (16, 3), "int64")
    build.copy_into(x, y, 0)
    for index in range(2):
        build.low._consts = Interned()  # two const buffers with equal bytes
        build.copy_into(build.low.const(constant, f"w{index}"), y, 12 + 18 * index)
    return build.program, constant
