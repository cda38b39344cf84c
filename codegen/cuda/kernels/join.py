"""The sum of partial products: C[M, N] = act(sum over s of parts[s, M, N] + bias + residual), always in the order of s.

Products whose outputs alone would leave multiprocessors idle are split along K; the parts are joined here. With p["bits"] they are handed
over as whole numbers, so that they stay float32 between the kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.cuda import epilogue
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

_THREADS = 256


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: parts [S, M, N], bias? [N], residual? [M, N]; out: c [M, N]. p: m, n, parts, epilogue."""
    size = p["m"] * p["n"]
    args = [
        Arg("parts", "uint32" if p.get("bits") else "float32", p["parts"] * size, "in"),
        *epilogue.arguments(p, p["n"], size),
    ]
    return Signature((*args, Arg("c", "float32", size, "out")), units=1, cost=size * p["parts"])


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A thread an output."""
    return lines(-(-p["m"] * p["n"] // _THREADS), _THREADS)


def build(p: Mapping[str, Any], k: Any) -> None:
    """One output of C."""
    T, size = k.T, p["m"] * p["n"]
    index = k.let(k.block[0] * _THREADS + k.thread[0])
    with T.If(index < size), T.Then():
        total = k.local(1)

        def part_of(part: Any) -> Any:
            value = k.load(k.arg("parts"), part * size + index)
            return k.device("float32", "__uint_as_float", value) if p.get("bits") else value

        k.store(total, 0, part_of(0))
        with T.serial(1, p["parts"]) as part:
            k.store(total, 0, total[0] + part_of(part))
        k.store(k.arg("c"), index, epilogue.finish(k, p, total[0], T.truncmod(index, p["n"]), index))
