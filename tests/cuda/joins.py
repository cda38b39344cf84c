"""Small programs for a GPU, built without the front end."""

from __future__ import annotations

import numpy as np

from sparsec.codegen.program import Program
from sparsec.target import resolve_target
from tests.codegen.programs import ProgramBuilder

PLAIN = {"bias": False, "residual": False, "act": "", "act_params": []}


def join_program(
    m: int = 3, n: int = 37, parts: int = 4, target: str = "cuda:sm_90", name: str = "joins"
) -> tuple[Program, np.ndarray]:
    """(x [parts, m, n], r [m, n]) -> y = relu(sum(x) + bias) + ... in three steps, two of them of one kernel; returns the bias [n]."""
    bias = np.random.default_rng(7).normal(size=n).astype(np.float32)
    build = ProgramBuilder(name, resolve_target(target))
    x, r = build.input("x", (parts, m, n)), build.input("r", (m, n))
    y, z = build.output("y", (m, n)), build.output("z", (m, n))
    low = build.low
    first, second = low.temp("float32", (m, n), name="first"), low.temp("float32", (m, n), name="second")
    size = {"m": m, "n": n}
    biased = {**size, **PLAIN, "parts": 1, "bias": True, "act": "relu"}
    low.call("cuda.join", {**size, **PLAIN, "parts": parts}, [x], [first], node="sum", op="ReduceSum")
    low.call("cuda.join", biased, [first, low.const(bias, "bias")], [second], node="act", op="Relu")
    low.call("cuda.join", biased, [second, low.const(bias, "bias")], [z], node="again", op="Relu")
    added = {**size, **PLAIN, "parts": 1, "residual": True}
    low.call("cuda.join", added, [second, r], [y], node="add */ it", op="Add", note="with a residual")
    return build.program, bias


def join_reference(x: np.ndarray, r: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """What join_program computes."""
    second = np.maximum(x.sum(0) + bias, 0)
    return {"y": second + r, "z": np.maximum(second + bias, 0)}
