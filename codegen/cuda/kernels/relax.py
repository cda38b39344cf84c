"""The long tail on a GPU: a node goes through TVM's Relax and dlight, each loop nest that comes out is a kernel; untuned.

How many kernels a node takes, and what lies between them, only TVM knows: the rule asks a worker (`plan`), through the cache.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from sparsec.codegen.build import plan_kernels
from sparsec.codegen.context import Lowering, Refusal, Tensor
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.kernels.relax import cannot_compile, node_model, relax_note
from sparsec.codegen.program import Arg, KernelSpec, Signature
from sparsec.errors import ToolchainError
from sparsec.target import Target

FAMILY = "cuda.relax"


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """What kernel p["kernel"] of the node reads and writes, in the types Relax gives it."""
    ins = [Arg(f"in{i}", dtype, size, "in") for i, (dtype, size) in enumerate(p["ins"])]
    outs = [Arg(f"out{i}", dtype, size, "out") for i, (dtype, size) in enumerate(p["outs"])]
    return Signature((*ins, *outs), units=1)


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """What dlight bound the loops to."""
    return lines(p["blocks"], p["threads"])


def plan(p: Mapping[str, Any]) -> dict[str, Any]:
    """In a worker process: the kernels of a node in order, and dtype and size of what they write."""
    from sparsec.codegen.relax_adapter import gpu_kernels

    kernels, tensors = gpu_kernels(base64.b64decode(p["model"]))
    return {
        "tensors": tensors,
        "kernels": [
            {
                "ins": [name for name, _ in k.reads],
                "outs": [name for name, _ in k.writes],
                "blocks": k.extents["blockIdx.x"],
                "threads": k.extents["threadIdx.x"],
            }
            for k in kernels
        ],
    }


def build_function(p: Mapping[str, Any], symbol: str) -> Any:
    """The PrimFunc of one kernel."""
    from sparsec.codegen.relax_adapter import gpu_function

    return gpu_function(base64.b64decode(p["model"]), p["kernel"], symbol)


def lower_relax(node: ir.Node, low: Lowering) -> Refusal | None:
    """An op that kernels/relax.py lists, shapes static."""
    found = node_model(node, low)
    if isinstance(found, Refusal):
        return found
    model, passed, outs = found
    text = base64.b64encode(model).decode()
    try:
        planned = plan_kernels(KernelSpec(FAMILY, {"model": text}), low.target)
    except ToolchainError as error:
        return cannot_compile(error)
    places: dict[str, Tensor] = {f"in{i}": low.get(v, "row") for i, v in enumerate(passed)}
    places |= {f"out{i}": low.new(v) for i, v in enumerate(outs)}
    for name, (dtype, size) in planned["tensors"].items():
        if name not in places:
            places[name] = low.temp(dtype, (size,), name=f"{node.name}.{name}")
    for index, kernel in enumerate(planned["kernels"]):
        ins, results = [places[n] for n in kernel["ins"]], [places[n] for n in kernel["outs"]]
        params = {
            "model": text,
            "kernel": index,
            "ins": [[t.dtype, t.size] for t in ins],
            "outs": [[t.dtype, t.size] for t in results],
            "blocks": kernel["blocks"],
            "threads": kernel["threads"],
        }
        low.call(FAMILY, params, ins, results, node=node.name or "", op=node.op_type, note=relax_note(passed, low))
    return None
