"""`bench gpu` without a GPU: its one line, its tables, and the kernels it would start."""

from __future__ import annotations

import numpy as np
import pytest

from bench import gpu
from bench.__main__ import main
from bench.gpu import BARS, JOBS, Job, Roofs, Row, cells, copies_of, judged
from bench.gpu_products import product, random_weight
from bench.gpu_rivals import RIVALS
from sparsec.formats.encoded import EncodedWeight, decode
from sparsec.target import resolve_target
from tests.cuda.compiler import needs_compiler
from tests.cuda.simulator import simulate


def test_without_a_gpu_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "why_not", lambda: "bench gpu needs an NVIDIA GPU")
    assert main(["gpu"]) == 1
    assert capsys.readouterr().out == "bench gpu needs an NVIDIA GPU\n"


def test_shares_of_the_roofs() -> None:
    job = Job(2, 100, 50, ())
    line = cells(Row(job, "int8", 1e-6, 5000), Roofs(copy=1.1e10, matmul=4e10))
    assert line == ["2 x 100x50", "int8", "1.0", "0.0", "51 %", "50 %", ""]
    assert cells(Row(job, "x", None, note="absent"), Roofs(1, 1))[2:] == ["-", "-", "-", "-", "absent"]


def test_bars_compare_with_the_best_rival() -> None:
    job = JOBS[1]
    rows = [
        Row(job, "cb4-g128", 2e-6, 1),
        Row(job, "torch fp16", 5e-6, 1),
        Row(job, "torch int4", 4e-6, 1),
        Row(job, "triton int4", 3e-6, 1),
    ]
    assert judged(rows) == [
        ["1 x 11008x4096", "cb4-g128", "torch fp16", "2.50", "3 missed"],
        ["1 x 11008x4096", "cb4-g128", "triton int4", "1.50", "1.2"],
    ]


def test_bars_name_what_is_measured() -> None:
    for bar in BARS:
        assert bar.job in JOBS
        assert {bar.ours, *bar.rivals} <= {*bar.job.schemes, *RIVALS}


def test_copies_exceed_the_cache() -> None:
    assert copies_of(8 << 20) == 64
    assert copies_of(1 << 30) == 2


@pytest.mark.parametrize(
    "scheme", ["fp32", "cb4-g128", "s16x1@50-cb4-g128", "s2:4-fp16", "vq2d4", "ternary", "uint4-g64", "s60-int8"]
)
def test_random_weights_decode(scheme: str, rng: np.random.Generator) -> None:
    weight = random_weight(scheme, 32, 256, rng)
    assert np.isfinite(decode(weight) if isinstance(weight, EncodedWeight) else weight).all()


@needs_compiler
@pytest.mark.parametrize(("m", "kernels"), [(1, 1), (24, 2)])
def test_the_kernels_it_starts_multiply(m: int, kernels: int, rng: np.random.Generator) -> None:
    weight = random_weight("cb4-g128", 32, 1024, rng)
    made = product(weight, m, resolve_target("cuda"))
    assert len(made.calls) == kernels
    assert isinstance(weight, EncodedWeight)
    memory = {**made.weights, **{name: np.zeros(size, np.uint8) for name, size in made.sizes.items()}}
    a = rng.standard_normal((m, 1024)).astype(np.float16)
    memory[made.a] = a.reshape(-1).view(np.uint8)
    for call in made.calls:
        after = simulate(
            call.source, call.symbol, call.launch, [memory[name] for name in call.buffers], orders=("ascending",)
        )
        memory |= dict(zip(call.buffers, after, strict=True))
    got = memory[made.c].view(np.float16).reshape(m, 32)
    np.testing.assert_allclose(got, a.astype(np.float32) @ decode(weight).T, atol=0.05)
