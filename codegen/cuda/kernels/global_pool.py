"""Global pooling, the parameters of kernels/global_pool.py: a thread a channel, or in row order a team of threads a plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.cuda.teams import Team, team_launch
from sparsec.codegen.kernels.global_pool import signature as signature
from sparsec.target import Target

_BLOCK = 64


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """Threads for all channels of all images."""
    planes = p["batch"] * p["channels"]
    return team_launch(planes, p["pixels"]) if p["layout"] == "row" else lines(-(-planes // _BLOCK), _BLOCK)


def build(p: Mapping[str, Any], k: Any) -> None:
    """The maximum or the mean of a plane."""
    T, pixels, channels, largest = k.T, p["pixels"], p["channels"], p["op"] == "max"
    planes, total = p["batch"] * channels, k.local(1)

    def joined(a: Any, b: Any) -> Any:
        return k.device("float32", "spc_maximum", a, b) if largest else a + b

    def take(at: Any) -> None:
        k.store(total, 0, joined(total[0], k.load(k.arg("x"), at)))

    def result() -> Any:
        return total[0] if largest else total[0] * T.float32(1.0 / pixels)

    k.store(total, 0, T.float32(float("-inf") if largest else 0.0))
    if p["layout"] == "row":
        team = Team(k, planes, pixels)
        with team.row(), T.Then():
            team.each(lambda i, step: take(team.index * pixels + i))
            k.store(total, 0, team.reduce(total[0], joined))
            with T.If(team.lane == 0), T.Then():
                k.store(k.arg("out"), team.index, result())
        return
    index = k.let(k.block[0] * _BLOCK + k.thread[0])
    with T.If(index < planes), T.Then():
        start = k.let(T.truncdiv(index, channels) * (pixels * channels) + T.truncmod(index, channels))
        with T.serial(0, pixels) as i:
            take(start + i * channels)
        k.store(k.arg("out"), index, result())
