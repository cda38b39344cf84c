"""Softmax and LogSoftmax, the parameters of kernels/softmax.py: a team of threads a row, or a thread a column.

A column is read twice, its maximum and sum being found together (Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.cuda.teams import Team, team_launch
from sparsec.codegen.kernels.softmax import signature as signature
from sparsec.target import Target

_BLOCK = 128
_LOWEST = -3.4028234663852886e38


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A team a row where rows are contiguous, else a thread a column."""
    if p["inner"] == 1:
        return team_launch(p["outer"], p["n"])
    return lines(-(-p["outer"] * p["inner"] // _BLOCK), _BLOCK)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Maximum, sum of what is left of it, result."""
    if p["inner"] == 1:
        _rows(p, k)
    else:
        _columns(p, k)


def _exp(k: Any, x: Any) -> Any:
    return k.device("float32", "expf", x)


def _rows(p: Mapping[str, Any], k: Any) -> None:
    T, n = k.T, p["n"]
    team = Team(k, p["outer"], n)
    values, held = k.local(team.per_thread), k.local(1)

    def larger(a: Any, b: Any) -> Any:
        return k.device("float32", "spc_maximum", a, b)

    with team.row(), T.Then():
        base = k.let(team.index * n)
        k.store(held, 0, T.float32(_LOWEST))

        def read(i: Any, step: Any) -> None:
            k.store(values, step, k.load(k.arg("x"), base + i))
            k.store(held, 0, larger(held[0], values[step]))

        team.each(read)
        top = k.let(team.reduce(held[0], larger), "float32")
        k.store(held, 0, T.float32(0))

        def weigh(i: Any, step: Any) -> None:
            k.store(values, step, values[step] - top)
            weight = k.let(_exp(k, values[step]), "float32")
            k.store(held, 0, held[0] + weight)
            if not p["log"]:
                k.store(values, step, weight)

        team.each(weigh)
        total = k.let(team.reduce(held[0], lambda a, b: a + b), "float32")
        if p["log"]:
            shift = k.let(k.device("float32", "logf", total), "float32")
            team.each(lambda i, step: k.store(k.arg("y"), base + i, values[step] - shift))
        else:
            factor = k.let(T.float32(1) / total, "float32")
            team.each(lambda i, step: k.store(k.arg("y"), base + i, values[step] * factor))


def _columns(p: Mapping[str, Any], k: Any) -> None:
    T, n, inner = k.T, p["n"], p["inner"]
    x, y = k.arg("x"), k.arg("y")
    index = k.let(k.block[0] * _BLOCK + k.thread[0])
    with T.If(index < p["outer"] * inner), T.Then():
        base = k.let(T.truncdiv(index, inner) * (n * inner) + T.truncmod(index, inner))
        top, total = k.local(1), k.local(1)
        k.store(top, 0, T.float32(_LOWEST))
        k.store(total, 0, T.float32(0))
        with T.serial(0, n) as i:
            value = k.let(k.load(x, base + i * inner), "float32")
            new = k.let(k.device("float32", "spc_maximum", top[0], value), "float32")
            k.store(total, 0, total[0] * _exp(k, top[0] - new) + _exp(k, value - new))
            k.store(top, 0, new)
        last = k.device("float32", "logf", total[0]) if p["log"] else T.float32(1) / total[0]
        k.store(total, 0, last)
        with T.serial(0, n) as i:
            value = k.load(x, base + i * inner) - top[0]
            k.store(y, base + i * inner, value - total[0] if p["log"] else _exp(k, value) * total[0])
