"""Our side of `bench kernels`: a layer compiled through the public API, repeated with weights of its own, as library and weights."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.contests import Product

if TYPE_CHECKING:
    from sparsec.codegen.program import Program


def layer_model(product: Product) -> bytes:
    """An ONNX file with one MatMul of random weights: x [m, k] -> y [m, n]."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(1).standard_normal((product.k, product.n), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"], name="layer")],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (product.m, product.k))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (product.m, product.n))],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def recipe(scheme: str) -> dict[str, Any]:
    """Everything in `scheme`, with int8 activations where weights are coded: what the rivals do, too."""
    from sparsec.formats import Float, Scheme

    rule = {"targets": "*", "scheme": scheme}
    if not isinstance(Scheme.parse(scheme).codec, Float):
        rule["activations"] = "int8"
    return {"version": 1, "rules": [rule]}


def compiled_layer(product: Product, scheme: str) -> Program:
    """The lowered program of one layer. Raises SparsecError, SchemeError where the project has no such scheme."""
    import sparsec

    made = sparsec.compile(layer_model(product), recipe=recipe(scheme), verify=False, name="layer")
    return made.program


def repeated(program: Program, count: int) -> Program:
    """`count` times the steps of a program in one, each time with inputs, outputs and constants of its own.

    Constants get a tail that nobody reads: equal ones would be stored once.
    """
    from sparsec.codegen.program import Buffer, Ref
    from sparsec.codegen.program import Program as Made

    result = Made(program.name, program.target)
    for copy in range(count):
        result.inputs += [replace(i, name=f"{i.name}_{copy}") for i in program.inputs]
        result.outputs += [replace(o, name=f"{o.name}_{copy}") for o in program.outputs]
        mine: dict[Buffer, Buffer] = {}
        for buffer in program.buffers:
            data, size, index = buffer.data, buffer.size, buffer.index
            if buffer.kind == "const":
                assert data is not None
                tail = np.frombuffer(struct.pack("<Q", copy), data.dtype)
                data = np.concatenate([data.reshape(-1), tail])
                size += tail.size
            elif buffer.kind == "input":
                index += copy * len(program.inputs)
            elif buffer.kind == "output":
                index += copy * len(program.outputs)
            mine[buffer] = Buffer(f"{buffer.name}_{copy}", buffer.dtype, size, buffer.kind, index, data)
        result.buffers += mine.values()
        for step in program.steps:
            refs = tuple(Ref(mine[ref.buffer], ref.byte_offset) for ref in step.refs)
            result.steps.append(replace(step, refs=refs, node=f"{step.node}_{copy}"))
    return result


def stored_bytes(program: Program) -> int:
    """Bytes of the constants that its steps read."""
    used = {ref.buffer for step in program.steps for ref in step.refs if ref.buffer.kind == "const"}
    return sum(buffer.nbytes for buffer in used)


@contextmanager
def layer_job(program: Program, count: int, threads: int) -> Iterator[dict[str, Any]]:
    """The worker's job for `count` layers; its weights are deleted at the end of the context."""
    from sparsec.codegen.bundle import build_loadable

    made = build_loadable(repeated(program, count))
    with TemporaryDirectory(prefix="sparsec-bench-") as scratch:
        weights = Path(scratch) / "weights.bin"
        made.weights.tofile(weights)
        yield {
            "kind": "compiled", "source": str(made.library), "weights": str(weights), "threads": threads, "layers": count,
            "stored": stored_bytes(program), "inputs": None,
        }  # fmt: skip
