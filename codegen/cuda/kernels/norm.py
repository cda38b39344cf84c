"""Normalisation of rows, the parameters of kernels/norm.py: a team of threads a row, which stays in registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.teams import Team, team_launch
from sparsec.codegen.kernels.norm import signature as signature
from sparsec.target import Target


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A team a row."""
    return team_launch(p["rows"], p["n"])


def build(p: Mapping[str, Any], k: Any) -> None:
    """Mean, variance about it, result; sums in float32."""
    T, n = k.T, p["n"]
    team = Team(k, p["rows"], n)
    values, total = k.local(team.per_thread), k.local(1)

    def add(value: Any) -> None:
        k.store(total, 0, total[0] + value)

    with team.row(), T.Then():
        base = k.let(team.index * n)
        k.store(total, 0, T.float32(0))

        def read(i: Any, step: Any) -> None:
            k.store(values, step, k.load(k.arg("x"), base + i))
            add(values[step])

        team.each(read)
        if p["centre"]:
            mean = k.let(team.reduce(total[0], lambda a, b: a + b) * T.float32(1.0 / n), "float32")
            team.each(lambda i, step: k.store(values, step, values[step] - mean))
        k.store(total, 0, T.float32(0))
        team.each(lambda i, step: add(values[step] * values[step]))
        variance = team.reduce(total[0], lambda a, b: a + b) * T.float32(1.0 / n)
        factor = k.let(T.float32(1) / T.sqrt(variance + T.float32(p["epsilon"])), "float32")
        channel = k.let(T.truncmod(team.index, p["channels"])) if p["channels"] else None

        def write(i: Any, step: Any) -> None:
            value = values[step] * factor
            if p["scale"]:
                value = value * k.load(k.arg("scale"), i if channel is None else channel)
            if p["bias"]:
                value = value + k.load(k.arg("bias"), i if channel is None else channel)
            k.store(k.arg("y"), base + i, value)

        team.each(write)
