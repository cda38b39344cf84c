"""The benchmark harness: its arithmetic, its errors, and one real measurement."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.interleave import Runner, Series, Worker, WorkerError, ratio
from bench.operators import slow_relax
from bench.output import markdown
from bench.size import code_bytes
from bench.zoo import MissingData, get

ORT, OURS = Runner("ort"), Runner("sparsec", "int8")


def test_ratio_pairs_the_rounds() -> None:
    # the machine slowed down threefold in the last rounds: each round's ratio is still 0.5
    series = {ORT: Series((2.0, 2.0, 6.0, 6.0), 0.1), OURS: Series((1.0, 1.0, 3.0, 3.0), 0.1)}
    assert ratio(series, OURS, ORT) == 0.5
    assert series[OURS].median == 2.0
    assert Series((5.0, 5.0, 5.0, 5.0), 0.0).spread == 0.0
    assert str(OURS) == "sparsec int8"


def test_markdown_is_aligned_and_escaped() -> None:
    lines = markdown(("name", "ms"), [["a|b", "1.5"], ["longer name", "10.25"]]).splitlines()
    assert lines[2] == "| a\\|b        |   1.5 |"
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith(":|")


def test_code_bytes_counts_executable_sections(tmp_path: Path) -> None:
    sections = [(0, 0, 0), (1, 6, 100), (1, 2, 7), (8, 6, 50), (1, 6, 11)]  # type, flags, bytes
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 40, 64)
    struct.pack_into("<HH", header, 58, 64, len(sections))
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", 0, kind, flags, 0, 0, size, 0, 0, 0, 0) for kind, flags, size in sections
    )
    path = tmp_path / "code.o"
    path.write_bytes(bytes(header) + table)
    assert code_bytes(path) == 111
    path.write_bytes(b"not an object")
    with pytest.raises(ValueError, match=r"code\.o is not"):
        code_bytes(path)


def test_steps_from_relax_above_their_share_are_flagged() -> None:
    steps = [{"family": family, "share": share} for family, share in (("gemm", 0.8), ("relax", 0.11), ("relax", 0.09))]
    assert slow_relax(steps) == [steps[1]]


def test_unknown_model_names_the_zoo() -> None:
    with pytest.raises(SystemExit, match=r"'resnet9' is not in the zoo; it has: .*resnet8"):
        main(["models", "resnet9"])


def test_a_failing_worker_says_why() -> None:
    with pytest.raises(WorkerError, match="not in the zoo"):
        Worker(Runner("sparsec"), "nothing", 1)


@pytest.mark.slow
def test_models_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        get("kws")
    except MissingData as missing:
        pytest.skip(str(missing))
    path = tmp_path / "result.json"
    assert main(["models", "kws", "--threads", "1", "--rounds", "4", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert [r["runner"] for r in found["results"]] == ["ort", "sparsec"]
    assert found["results"][0]["ratio"] == 1.0
    assert all(len(r["rounds_ms"]) == 4 and r["ms"] > 0 for r in found["results"])
    assert [(r["model"], r["steps"], r["largest"], r["flagged"]) for r in found["relax"]] == [("kws", 0, None, False)]
    assert "| kws   | sparsec |       1 |" in capsys.readouterr().out


@pytest.mark.slow
def test_operators_command_covers_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        get("kws")
    except MissingData as missing:
        pytest.skip(str(missing))
    path = tmp_path / "steps.json"
    assert main(["operators", "kws", "--rounds", "3", "--json", str(path)]) == 0
    steps = json.loads(path.read_text())["steps"]
    assert sum(s["share"] for s in steps) == pytest.approx(1)
    assert sorted(s["step"] for s in steps) == list(range(len(steps)))
    assert "depthwise" in capsys.readouterr().out
