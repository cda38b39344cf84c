"""Products without tensor cores, in float32: C[M, N] = act(A[M, K] . B[K, N] + bias + residual). One thread a result.

For products of a few inputs, and those that halves cannot hold. Takes the parameters of kernels/gemm.py with A in rows (B `rows`, `cols` or
`packed`) and those of kernels/matmul.py here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.cuda import epilogue
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.cuda.operands import start
from sparsec.codegen.isa.epilogue import activation_cost
from sparsec.codegen.kernels.gemm import panel_width
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

_BLOCK = 128


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: a, b, bias?, residual?; out: c, or the sums of p["parts"] parts of the inputs, bits of float32 (no bias, no residual)."""
    b = p["b"]
    size = p["batch_b"] * p["k"] * _padded(p, target) if b["kind"] == "packed" else b["size"]
    args = [Arg("a", "float32", p["a"]["size"], "in"), Arg("b", "float32", size, "in")]
    results = p["batch"] * p["m"] * p["n"]
    if (parts := p.get("parts", 1)) > 1:
        args.append(Arg("c", "uint32", parts * results, "out"))
    else:
        args += epilogue.arguments(p, p["batch_b"] * p["n"], p["c"]["size"])
        args.append(Arg("c", "float32", p["c"]["size"], "out"))
    return Signature(tuple(args), units=results, cost=results * (2 * p["k"] + 2 + activation_cost(p["act"])))


def _padded(p: Mapping[str, Any], target: Target) -> int:
    """Columns of all panels of a packed operand."""
    width = panel_width(p["n"], p["m"], target)
    return -(-int(p["n"]) // width) * width


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A thread a result; neighbours have neighbouring columns."""
    return lines(-(-p.get("parts", 1) * p["batch"] * p["m"] * p["n"] // _BLOCK), _BLOCK)


def build(p: Mapping[str, Any], k: Any) -> None:
    """One result of one thread."""
    T, m, n = k.T, p["m"], p["n"]
    assert p["a"]["kind"] in ("rows", "cols"), "convolutions have kernels of their own"
    results, parts = p["batch"] * m * n, p.get("parts", 1)
    whole = k.let(k.block[0] * _BLOCK + k.thread[0])
    with T.If(whole < parts * results), T.Then():
        part, index = k.let(T.truncdiv(whole, results)), k.let(T.truncmod(whole, results))
        column = k.let(T.truncmod(index, n))
        row = k.let(T.truncmod(T.truncdiv(index, n), m))
        batch = k.let(T.truncdiv(index, m * n))
        total = k.local(1)
        k.store(total, 0, T.float32(0))
        a, b = p["a"], p["b"]
        if b["kind"] == "packed":
            b_step = panel_width(n, m, k.target)
            inside = T.truncdiv(column, b_step) * (p["k"] * b_step) + T.truncmod(column, b_step)
            b_start = k.let((batch * (p["k"] * _padded(p, k.target)) if p["batch_b"] > 1 else 0) + inside)
        else:
            b_start = k.let(start(k, p, "b", batch) + column * (b["ldb"] if b["kind"] == "cols" else 1))
            b_step = 1 if b["kind"] == "cols" else b["ldb"]
        a_start = k.let(start(k, p, "a", batch) + row * (a["lda"] if a["kind"] == "rows" else 1))
        a_step = 1 if a["kind"] == "rows" else a["lda"]
        first = k.let(T.truncdiv(part * p["k"], parts))
        with T.serial(0, T.truncdiv((part + 1) * p["k"], parts) - first) as step:
            i = first + step
            value = k.load(k.arg("a"), a_start + i * a_step) * k.load(k.arg("b"), b_start + i * b_step)
            k.store(total, 0, k.load(total, 0) + value)
        if parts > 1:
            k.store(k.arg("c"), whole, k.device("uint32", "__float_as_uint", total[0]))
            return
        where = k.let(batch * p["c"]["batch_stride"] + row * p["c"]["ldc"] + column)
        place = k.let((batch * n if p["batch_b"] > 1 else 0) + column)
        k.store(k.arg("c"), where, epilogue.finish(k, p, k.load(total, 0), place, where))
