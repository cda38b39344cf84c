"""Which convolutions are joined with the depthwise one behind them, and what the joined step says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsec.codegen import expansions
from sparsec.codegen.bundle import write_bundle
from sparsec.codegen.lower import lower
from sparsec.codegen.plan import make_plan
from sparsec.target import host_target
from tests.kernels.test_expand_depthwise import PADS, check, model_of, small

__all__ = ["small"]  # a fixture of every test


def test_what_is_read_elsewhere_stays() -> None:
    check(host_target(), "s90", show=True, joined=False, **PADS)


def test_several_images_stay() -> None:
    check(host_target(), "s90", shape=(2, 5, 12, 13), joined=False, **PADS)


def test_rows_that_make_no_blocks_stay() -> None:
    check(host_target(), "s90", channels=1, joined=False, **PADS)


def test_what_is_near_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansions, "_LEAST", 1 << 20)
    check(host_target(), "s90", joined=False, **PADS)


@pytest.mark.parametrize("width", [30, 32])
def test_the_memory_between_is_gone_and_both_nodes_are_named(width: int) -> None:
    model, _ = model_of("s90", shape=(1, 8, 32, width), channels=64, **PADS)
    program = lower(model, host_target(), "test", dict.fromkeys(model.graph, "row"))
    (step,) = program.steps
    assert step.nodes == ("expand", "filter")
    assert make_plan(program).arena_bytes == 0
    assert step.signature.units >= 8
    work = {arg.name: 4 * arg.size for arg in step.signature.args if arg.role == "work"}
    whole = 4 * 64 * 32 * width
    if width % host_target().lanes:
        assert work["between"] * step.signature.units == whole
    else:  # a strip of the image at a time
        assert work["between"] * step.signature.units < whole / 2


def test_the_manifest_names_both_nodes(tmp_path: Path) -> None:
    model, _ = model_of("s90", shape=(1, 8, 16, 16), channels=24, **PADS)
    program = lower(model, host_target(), "test", dict.fromkeys(model.graph, "row"))
    (step,) = json.loads((write_bundle(program, tmp_path / "joined") / "manifest.json").read_text())["steps"]
    assert (step["node"], step["others"]) == ("filter", ["expand"])


def test_channels_make_blocks_that_threads_share_evenly() -> None:
    blocks = expansions._blocks
    assert blocks(144, 1, 9 * 256, 40 << 10) == 12
    assert blocks(96, 1, 9 * 480, 40 << 10) == 12
    assert blocks(144, 2, 100, 1 << 20) == 8
    assert blocks(18, 1, 100, 1 << 20) == 9
    assert blocks(7, 1, 100, 1 << 20) == 7
    assert blocks(7, 2, 100, 1 << 20) == 0
    assert blocks(8, 1, 1000, 10) == 0
