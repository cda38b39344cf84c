"""Reductions, the parameters of kernels/reduce.py: a team of threads a result where neighbours in memory are reduced, else a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from sparsec.codegen.context import row_strides
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.cuda.portable import Held
from sparsec.codegen.cuda.teams import Team, team_launch
from sparsec.codegen.kernels.reduce import _after, _before, _combine, _start
from sparsec.codegen.kernels.reduce import signature as signature
from sparsec.target import Target

_BLOCK = 128
Dim = tuple[int, int]  # size, stride


def _dims(p: Mapping[str, Any]) -> tuple[list[Dim], list[Dim]]:
    """(kept, reduced) dimensions."""
    strides = row_strides([n for n, _ in p["dims"]])
    pairs = [((n, s), reduced) for (n, reduced), s in zip(p["dims"], strides, strict=True)]
    return [d for d, reduced in pairs if not reduced], [d for d, reduced in pairs if reduced]


def _teams(p: Mapping[str, Any]) -> bool:
    return bool(p["dims"][-1][1]) and not p["kind"].startswith("Arg")


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A team or a thread a result."""
    kept, reduced = (prod(n for n, _ in dims) for dims in _dims(p))
    return team_launch(kept, reduced) if _teams(p) else lines(-(-kept // _BLOCK), _BLOCK)


def _place(k: Any, dims: Sequence[Dim], index: Any) -> Any:
    """Where the element with this index among `dims` lies."""
    T = k.T
    at: Any = T.int32(0)
    for i, (n, stride) in reversed(list(enumerate(dims))):
        at = at + (T.truncmod(index, n) if i else index) * stride
        index = T.truncdiv(index, n)
    return at


def build(p: Mapping[str, Any], k: Any) -> None:
    """One result."""
    T, dtype = k.T, p["dtype"]
    kept, reduced = _dims(p)
    results, count = prod(n for n, _ in kept), prod(n for n, _ in reduced)
    h = Held(k, 0)
    x, out, total = k.arg("x"), k.arg("out"), k.local(1, dtype)
    if _teams(p):
        team = Team(k, results, count)
        with team.row(), T.Then():
            base = k.let(_place(k, kept, team.index))
            k.store(total, 0, _start(p, h, 1))

            def take(i: Any, step: Any) -> None:
                value = _before(p, h, k.load(x, base + _place(k, reduced, i)), 1)
                k.store(total, 0, _combine(p, h, total[0], value))

            team.each(take)
            k.store(total, 0, team.reduce(total[0], lambda a, b: _combine(p, h, a, b), dtype))
            with T.If(team.lane == 0), T.Then():
                k.store(out, team.index, _after(p, h, total[0], 1))
        return
    index = k.let(k.block[0] * _BLOCK + k.thread[0])
    with T.If(index < results), T.Then():
        base = k.let(_place(k, kept, index))
        if p["kind"].startswith("Arg"):
            _arg(p, k, base, reduced[0], index)
            return
        k.store(total, 0, _start(p, h, 1))
        with T.serial(0, count) as i:
            value = _before(p, h, k.load(x, base + _place(k, reduced, i)), 1)
            k.store(total, 0, _combine(p, h, total[0], value))
        k.store(out, index, _after(p, h, total[0], 1))


def _arg(p: Mapping[str, Any], k: Any, base: Any, dim: Dim, index: Any) -> None:
    """Where along `dim` the first (or last) extreme value is."""
    T, x = k.T, k.arg("x")
    best, where = k.local(1, p["dtype"]), k.local(1, "int32")
    k.store(best, 0, k.load(x, base))
    k.store(where, 0, T.int32(0))
    with T.serial(1, dim[0]) as i:
        value = k.let(k.load(x, base + i * dim[1]), p["dtype"])
        better = (value > best[0]) if p["kind"] == "ArgMax" else (value < best[0])
        with T.If(T.Or(better, T.EQ(value, best[0])) if p["last"] else better), T.Then():
            k.store(best, 0, value)
            k.store(where, 0, i)
    k.store(k.arg("out"), index, T.Cast("int64", where[0]))
