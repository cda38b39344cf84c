"""Recording and replaying: what the simulator computed comes out again of a (simulated) GPU, and what differs is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.blobs import BlobReader, BlobWriter
from bench.gpu_models import put_model
from sparsec.codegen.cuda.launch import Launch
from tests.cuda import replay, simulator
from tests.cuda.compiler import needs_compiler
from tests.cuda.driver import FakeGpu
from tests.cuda.joins import join_program, join_reference
from tests.cuda.record import Recorder
from tests.cuda.simulator import kernel_library, simulate
from tests.cuda.test_device import SOURCE

ROOT = Path(__file__).parents[2]
# Python, numpy and the checkout: all that is there on the machine with the GPU.
ALONE = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "bench", "tests", "sparsec") or name.startswith("sparsec.codegen"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
from tests.cuda.replay import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder(BlobWriter())
    simulator.OBSERVERS.append(made)
    yield made
    simulator.OBSERVERS.remove(made)


@pytest.fixture
def recorded(recorder: Recorder, gpu: FakeGpu, tmp_path: Path) -> Path:
    """Two runs of a kernel, and a model."""
    (gpu.kernels / "kernel.so").symlink_to(kernel_library(SOURCE, "kernel"))
    for seed in (1, 1, 2):  # equal checks are kept once
        x = np.random.default_rng(seed).normal(size=100).astype(np.float32)
        simulate(SOURCE, "kernel", Launch((2, 1, 1), (64, 1, 1)), [x, np.zeros(100, np.float16)])
    program, bias = join_program()
    arrays = [np.random.default_rng(3).normal(size=shape).astype(np.float32) for shape in ((4, 3, 37), (3, 37))]
    feed = dict(zip(("x", "r"), arrays, strict=True))
    entry, compiled = put_model(
        "model joins", program, feed, join_reference(arrays[0], arrays[1], bias), 1e-3, recorder.blobs
    )
    gpu.add(compiled)
    path = tmp_path / "recorded.zip"
    recorder.blobs.save(path, {"arch": "sm_90", "kernels": recorder.entries("sm_90"), "models": [entry]})
    return path


def start(*arguments: object, code: str = ALONE, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else ["-m", "tests.cuda.replay"]), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)


@needs_compiler
def test_what_was_recorded_comes_out_again(recorded: Path) -> None:
    done = start(recorded)
    assert done.stdout.startswith("2 kernel checks and 1 models on Simulated 90: 0 failed"), done.stderr
    assert done.returncode == 0
    assert start(recorded, "--no-models", "--every", 2).stdout.startswith("1 kernel checks and 0 models")
    assert start(recorded, "--only", "joins").stdout.startswith("0 kernel checks and 1 models")


@needs_compiler
def test_a_difference_is_one_line(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = BlobReader.array
    monkeypatch.setattr(
        BlobReader, "array", lambda self, kept: right(self, kept) * (1 if kept["shape"] == [100] else 2)
    )
    assert replay.main([str(recorded), "--only", "model"]) == 1
    failed, summary = capsys.readouterr().out.splitlines()
    assert failed.startswith("FAILED model joins: largest error ")
    assert summary.startswith("0 kernel checks and 1 models on Simulated 90: 1 failed")


@needs_compiler
def test_it_goes_on_behind_a_fault(recorded: Path) -> None:
    done = start(recorded, "--times", 1, "--no-models", code="", SPC_FAKE_FAIL_LAUNCH="2")
    lines = done.stdout.splitlines()
    assert "CUDA_ERROR_LAUNCH_FAILED" in lines[0]
    assert lines[0].startswith("FAILED tests/cuda/test_replay.py::test_it_goes_on_behind_a_fault")
    assert lines[1].startswith("2 kernel checks and 0 models on Simulated 90: 1 failed")
    assert done.returncode == 1


@needs_compiler
def test_for_another_gpu(recorded: Path) -> None:
    done = start(recorded, SPC_FAKE_SM="80")
    assert (done.returncode, done.stdout) == (1, "recorded for sm_90, this is an sm_80 (Simulated 80)\n")


def test_what_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recorded.zip"
    assert replay.main([str(path)]) == 1
    assert f"{path} cannot be read ([Errno 2] No such file" in capsys.readouterr().out
    BlobWriter().save(path, {"arch": "sm_90", "kernels": [], "models": []})
    monkeypatch.setenv("SPC_CUDA_DRIVER", "libcuda-is-nowhere.so")
    assert replay.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("a replay needs an NVIDIA GPU; there is none here (libcuda-is-nowhere.so: ")
    assert out.count("\n") == 1


def test_what_a_failed_test_recorded_goes(recorder: Recorder) -> None:
    simulate(SOURCE, "kernel", Launch((2, 1, 1), (64, 1, 1)), [np.ones(100, np.float32), np.zeros(100, np.float16)])
    (kept,) = recorder.kernels.values()
    assert kept["name"].startswith("tests/cuda/test_replay.py::test_what_a_failed_test_recorded_goes")
    for outcome, left in (("passed", 1), ("failed", 0)):
        recorder.pytest_runtest_logreport(
            pytest.TestReport(kept["test"], ("", 0, ""), {}, outcome, None, "call")  # type: ignore[arg-type]
        )
        assert len(recorder.kernels) == left


def test_blobs_come_back(tmp_path: Path) -> None:
    blobs, rng = BlobWriter(), np.random.default_rng()
    arrays: list[np.ndarray] = [
        rng.normal(size=7).astype(np.float16),
        np.arange(1 << 18, dtype=np.int64),
        np.zeros((0, 3), np.int8),
    ]
    kept = [blobs.put_array(array) for array in arrays]
    assert blobs.put_array(arrays[1].copy()) == kept[1]
    assert blobs.save(tmp_path / "blobs", {"arrays": kept}) < 1 << 20
    found = BlobReader(tmp_path / "blobs")
    for array, entry in zip(arrays, found.index["arrays"], strict=True):
        np.testing.assert_array_equal(found.array(entry), array)
        assert found.array(entry).dtype == array.dtype
