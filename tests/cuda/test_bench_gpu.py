"""`bench gpu` without a GPU: its tables and bars, and what it prepares, run on the simulated one with numpy alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import gpu_bars, gpu_minilm, gpu_prepare, gpu_rivals, gpu_roofs, gpu_run
from bench.__main__ import main
from bench.blobs import BlobReader, BlobWriter
from bench.gpu_bars import BARS, COMPILED, EAGER, JOBS, MODEL_JOBS, READ_ROOF, Job, Roofs, Row, cells, judged
from bench.gpu_driver import Gpu, Workspace
from bench.gpu_models import put_model
from bench.gpu_products import GpuProduct, product, random_weight, repeated
from bench.gpu_rivals import RIVALS, copies_of
from bench.gpu_run import measure, roofs, time_product
from sparsec.formats.encoded import EncodedWeight, decode
from sparsec.target import Target, resolve_target
from tests.cuda.compiler import needs_compiler
from tests.cuda.driver import FakeGpu
from tests.cuda.joins import join_program, join_reference
from tests.cuda.simulator import kernel_library

ROOT = Path(__file__).parents[2]


def test_without_a_gpu_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SPC_CUDA_DRIVER", "libcuda-is-nowhere.so")
    assert main(["gpu"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("bench gpu needs an NVIDIA GPU; there is none here (")
    assert out.count("\n") == 1


def test_a_folder_without_what_was_prepared(gpu: FakeGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--run", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 'gpu.zip'} cannot be read (")
    assert out.endswith(f"write it with --prepare {tmp_path}\n")


def test_shares_of_the_roofs() -> None:
    row = Row("2 x 100x50", "int8", 1e-6, 5000, 5600, 20000)
    line = cells(row, Roofs(read=1e10, copy=1.1e10, matmul=4e10))
    assert line == ["2 x 100x50", "int8", "1.0", "0.0", "50 %", "51 %", "50 %", ""]
    assert cells(Row("j", "x", None, note="absent"), Roofs())[2:] == ["-", "-", "-", "-", "-", "absent"]
    assert cells(row, Roofs())[4:7] == ["-", "-", "-"]
    assert str(Roofs(read=3e12)) == "read 3000 GB/s, copy not measured, matmul not measured"


def test_bars_compare_with_the_best_rival() -> None:
    job = str(JOBS[1])
    rows = [
        Row(job, "cb4-g128", 2e-6, 2_000_000),
        Row(job, "torch fp16", 5e-6, 1),
        Row(job, "torch int4", 4e-6, 1),
        Row(job, "triton int4", 3e-6, 1),
        Row(job, "torch 2:4 CUTLASS", None, note="OSError: no"),
    ]
    lines = {(line[1], line[2]): line[3:] for line in judged(rows, Roofs(read=1.25e12))}
    assert lines["cb4-g128", "torch fp16"] == ["2.50x", "3x missed"]
    assert lines["cb4-g128", "triton int4"] == ["1.50x", "1.2x"]
    assert lines["cb4-g128", READ_ROOF] == ["80 %", "75 %"]
    assert lines["s16x1@50-cb4-g128", "cb4-g128"] == ["-", "1.6x not judged (s16x1@50-cb4-g128: not timed)"]
    wrong = [Row(job, "cb4-g128", 1e-6, 1, note="wrong result"), *rows[1:]]
    assert judged(wrong, Roofs())[0][3:] == ["-", "75 % not judged (cb4-g128: wrong result)"]
    alone = [rows[0], Row(job, "torch fp16", 8e-6, 1, note="not in a CUDA graph (RuntimeError: x)")]
    assert judged(alone, Roofs())[1][2:] == ["torch fp16, not in a CUDA graph", "4.00x", "3x"]
    rows.append(Row(job, "s16x1@50-cb4-g128", 1e-6, 1))
    (line,) = [line for line in judged(rows, Roofs()) if "2.35" in line[4]]
    assert line[3:] == ["-", "2.35x not judged (torch 2:4 CUTLASS: OSError: no)"]
    assert ["-", "75 % not judged (the read roof was not measured)"] in [line[3:] for line in judged(rows, Roofs())]


def test_bars_name_what_is_measured() -> None:
    timed = {str(job): {*job.schemes, *RIVALS, READ_ROOF} for job in JOBS}
    timed |= {str(job): {*job.schemes, COMPILED, EAGER} for job in MODEL_JOBS}
    for bar in BARS:
        assert {bar.ours, *bar.against} <= timed[bar.job]
    assert set(gpu_bars.TWO_OF_FOUR) | set(gpu_bars.FOUR_BITS) <= set(RIVALS)


def test_copies_exceed_the_cache() -> None:
    assert copies_of(8 << 20, 512 << 20) == 64
    assert copies_of(1 << 30, 512 << 20) == 2


@pytest.mark.parametrize(
    "scheme", ["fp32", "cb4-g128", "s16x1@50-cb4-g128", "s2:4-fp16", "vq2d4", "ternary", "uint4-g64", "s60-int8"]
)
def test_random_weights_decode_and_repeat(scheme: str, rng: np.random.Generator) -> None:
    weight = random_weight(scheme, 32, 256, rng)
    again = repeated(weight, 3)
    one, three = (decode(w) if isinstance(w, EncodedWeight) else w for w in (weight, again))
    assert np.isfinite(one).all()
    if scheme == "s60-int8":  # what is stored is not the same in every row, so rows end within a byte of the bitmap
        return
    np.testing.assert_array_equal(three, np.tile(one, (3, 1)))


# --- prepared, and run on the simulated GPU ---

SMALL = (Job(1, 128, 256, ("cb4-g128", "s16x1@50-cb4-g128")), Job(24, 64, 1024, ("cb4-g128",)))


def put_small(gpu_: FakeGpu, path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobReader:
    """Small products and a small roof, their kernels known to the simulated GPU under names of their own."""
    blobs = BlobWriter()
    products: list[dict[str, Any]] = []
    for job in SMALL:
        for scheme in job.schemes:
            prefix = f"p{len(products)}"

            def known(weight: EncodedWeight | np.ndarray, m: int, target: Target, prefix: str = prefix) -> GpuProduct:
                made = product(weight, m, target)
                for call in made.calls:
                    (gpu_.kernels / f"{prefix}{call.symbol}.so").symlink_to(kernel_library(call.source, call.symbol))
                return made

            with monkeypatch.context() as patched:
                patched.setattr(gpu_prepare, "product", known)
                entry = gpu_prepare.put_product(job, scheme, resolve_target("cuda"), blobs)
            for call in entry["calls"]:
                call["symbol"] = prefix + call["symbol"]
            products.append(entry)
    roofs = gpu_roofs.read_roofs("sm_90", blobs, loads=(2, 4), nbytes=1 << 15)
    for loads, kernel in zip((2, 4), roofs["kernels"], strict=True):
        kernel["symbol"] = f"read{loads}"
        link = gpu_.kernels / f"read{loads}.so"
        link.symlink_to(kernel_library(gpu_roofs.read_source(loads), "read_roof"))
    blobs.save(path, {"arch": "sm_90", "cold_bytes": 0, "roofs": roofs, "products": products, "models": []})
    return BlobReader(path)


@needs_compiler
def test_prepared_products_run(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_prepare, "_SPARSE_PERIOD", 64)
    archive = put_small(gpu, tmp_path / "gpu.zip", monkeypatch)
    real = Gpu(str(gpu.path))
    most = roofs(archive, real)
    rows: list[Row] = []
    assert most.read > 0
    assert most.copy > 0
    measure(archive, real, rows)
    ours = [row for row in rows if row.candidate not in RIVALS]
    assert [(row.job, row.candidate, row.note) for row in ours] == [
        ("1 x 128x256", "cb4-g128", ""),
        ("1 x 128x256", "s16x1@50-cb4-g128", ""),
        ("24 x 64x1024", "cb4-g128", "2 kernels"),
    ]
    assert all(row.seconds for row in ours)
    assert {row.note for row in rows if row.candidate in RIVALS} == {gpu_rivals.why_not()}
    assert len(rows) == 3 + 2 * len(RIVALS)
    entry = archive.index["products"][0]
    entry["wanted"] = archive.index["products"][1]["wanted"]
    with Workspace(real) as work:
        assert not time_product(archive, work, entry, 2, replays=1)[1]
    entry["calls"] = [{**call, "symbol": "nowhere"} for call in entry["calls"]]
    again = rows[1:]  # what is there is not timed again
    measure(archive, real, again)
    assert len(again) == len(rows)
    assert "cuModuleGetFunction failed with 500" in again[-1].note


@needs_compiler
def test_the_command_runs_with_numpy_alone(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_small(gpu, tmp_path / "gpu.zip", monkeypatch)
    code = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        known = name.split(".")[0] in {*sys.stdlib_module_names, "numpy", "bench", "sparsec"}
        if not known or name.startswith("sparsec.codegen"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
from bench.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "gpu", "--run", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| 24 x 64x1024 | cb4-g128" in done.stdout
    assert len(json.loads((tmp_path / "rows.json").read_text())["gpu"]["rows"]) == 3 + 2 * len(RIVALS)


@needs_compiler
def test_rows_behind_a_fault(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_small(gpu, tmp_path / "gpu.zip", monkeypatch)
    command = [sys.executable, "-m", "bench", "gpu", "--run", str(tmp_path), "--only", "1 x 128x256"]
    launches = 2 * (3 + gpu_roofs.REPLAYS)  # of the roofs
    launches += 2 + 2 * (2 + gpu_run.REPLAYS)  # of the first product, whose weight lies there twice
    environment = {**os.environ, "SPC_FAKE_FAIL_LAUNCH": str(launches + 1)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert "the GPU is lost to this process, another one goes on" in done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith("| 1 x 128x256")]
    assert len(table) == 2 + len(RIVALS)
    assert "CUDA_ERROR_LAUNCH_FAILED" in table[1]


def test_for_another_gpu(gpu: FakeGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BlobWriter().save(tmp_path / "gpu.zip", {"arch": "sm_80"})
    assert main(["gpu", "--run", str(tmp_path)]) == 1
    assert "is for sm_80, this is an sm_90 (Simulated 90): prepare it with --arch sm_90" in capsys.readouterr().out


@needs_compiler
def test_a_model_is_timed_on_arrays_of_the_gpu(gpu: FakeGpu, tmp_path: Path) -> None:
    program, bias = join_program()
    arrays = [np.random.default_rng(3).normal(size=shape).astype(np.float32) for shape in ((4, 3, 37), (3, 37))]
    feed = dict(zip(("x", "r"), arrays, strict=True))
    blobs, wanted = BlobWriter(), join_reference(arrays[0], arrays[1], bias)
    entry, compiled = put_model("joins", program, feed, wanted, 1e-3, blobs)
    wrong, _ = put_model("joins", program, feed, {name: array + 1 for name, array in wanted.items()}, 1e-3, blobs)
    gpu.add(compiled)
    facts = {"job": "joins", "stored_bytes": 7, "batch": 1, "tokens": 2}
    models = [entry | facts | {"scheme": "right"}, wrong | facts | {"scheme": "wrong"}]
    blobs.save(tmp_path / "gpu.zip", {"arch": "sm_90", "products": [], "models": models})
    rows: list[Row] = []
    measure(BlobReader(tmp_path / "gpu.zip"), Gpu(str(gpu.path)), rows)
    assert [(row.candidate, row.stored_bytes, bool(row.seconds)) for row in rows[:2]] == [
        ("right", 7, True),
        ("wrong", 7, True),
    ]
    assert rows[0].note == ""
    assert rows[1].note.startswith("wrong result: off by ")
    assert [row.candidate for row in rows[2:]] == [EAGER, COMPILED]


def test_rivals_that_fail_keep_their_rows() -> None:
    pytest.importorskip("torch")

    def fails() -> Row:
        raise NotImplementedError("no such thing\nin two lines")

    def lacks() -> Row:
        import bitsandbytes_of_nowhere  # type: ignore[import-not-found] # noqa: F401

        raise AssertionError

    assert gpu_rivals.row("j", "r", fails, "").note == "NotImplementedError: no such thing"
    assert gpu_rivals.row("j", "r", lacks, "").note == "not installed: bitsandbytes_of_nowhere"
    assert gpu_rivals.row("j", "r", fails, "not installed: torch").note == "not installed: torch"


# --- MiniLM ---


def test_the_rival_is_the_model() -> None:
    """The encoder that torch.compile is given computes what examples/minilm_model.py does, from the same weights."""
    torch = pytest.importorskip("torch")
    from examples.minilm_model import MiniLM

    ours = MiniLM(gpu_minilm.CONFIG)
    ours.load_state_dict({name: torch.from_numpy(array) for name, array in gpu_minilm.weights().items()})
    ids, mask = (torch.from_numpy(array) for array in gpu_minilm.inputs(2, 9).values())
    mask[1, 5:] = 0
    with torch.no_grad():
        wanted, found = ours(ids, mask), gpu_minilm.encoder().float()(ids, mask)
    assert wanted.shape == (2, gpu_minilm.WIDTH)
    assert float((wanted - found).abs().max() / wanted.abs().max()) < 5e-3  # the weights are rounded to halves


def test_numbers_are_drawn_alike_everywhere() -> None:
    assert gpu_minilm.drawn((3,), 7).tolist() == [13608266740756273489, 6871924604411611828, 318305935870461018]
    ids = gpu_minilm.inputs(64, 128)["input_ids"]
    assert (ids.shape, len(np.unique(ids)) > 6000) == ((64, 128), True)
