"""`sparsec.compile(model, target="cuda")` with verification, report and errors; a simulated GPU where one is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec import api
from sparsec.codegen import nvrtc
from sparsec.errors import TargetError, ToolchainError, VerificationError
from sparsec.verify import half_bound
from tests.cuda.compiler import needs_compiler
from tests.cuda.driver import FakeGpu

BUDGET_OF_TIME = {"budget": "2ms"}


def network(rows: int = 33, seed: int = 0) -> ir.Model:
    """x [3, 32] -> gelu(x W1) W2 [3, 7]"""
    rng = np.random.default_rng(seed)
    weights = {"w1": rng.normal(size=(32, rows)) / 4, "w2": rng.normal(size=(rows, 7)) / 4}
    text = """<ir_version: 10, opset_import: ["" : 20]>
    network (float[3, 32] x) => (float[3, 7] y) {
        a = MatMul (x, w1)
        b = Gelu (a)
        y = MatMul (b, w2)
    }"""
    tensors = [ir.tensor(array.astype(np.float32), name=name) for name, array in weights.items()]
    return ir.from_onnx_text(text, initializers=tensors)


def close(compiled: sparsec.CompiledModel) -> None:
    assert isinstance(compiled._session, sparsec.runtime.Session)
    compiled._session.close()
    compiled._session = None


@needs_compiler
@pytest.mark.parametrize(("target", "recipe"), [("cuda", None), ("cuda:bf16", None), ("cuda", "cb4-g32")])
def test_verified(target: str, recipe: str | None, simulated: FakeGpu) -> None:
    compiled = sparsec.compile(network(), target, recipe)
    check = compiled.report.verification
    assert check is not None
    assert check.bound == half_bound("bfloat16" if "bf16" in target else "float16", 1)
    assert 0 < check.error < check.bound
    assert check.error > 1e-5  # halves were at work
    close(compiled)


@needs_compiler
def test_a_wrong_program_is_found(simulated: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = api.lower

    def wrong(*arguments: Any, **options: Any) -> Any:
        program = lowered(*arguments, **options)
        weight = next(b for b in program.buffers if b.kind == "const" and b.size >= 32 * 33)
        weight.data = weight.data[::-1].copy()
        return program

    monkeypatch.setattr(api, "lower", wrong)
    with pytest.raises(VerificationError, match="differs from the original"):
        sparsec.compile(network(), "cuda")


@needs_compiler
def test_without_a_gpu_it_cannot_be_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPC_CUDA_DRIVER", "libcuda-is-nowhere.so")
    with pytest.raises(VerificationError, match=r"cannot be verified here: .*no CUDA driver.*--no-verify"):
        sparsec.compile(network(), "cuda")


@needs_compiler
def test_benchmark(simulated: FakeGpu) -> None:
    compiled = sparsec.compile(network(), "cuda", verify=False)
    timing = compiled.benchmark(seconds=0.05)
    assert set(timing.medians) == {"sparsec", "onnxruntime"}
    assert compiled.report.after.milliseconds == timing.medians["sparsec"]
    close(compiled)


def test_a_missing_compiler_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compiler_version", lambda: "")
    with pytest.raises(ToolchainError, match=r"^GPU kernels need a compiler, .*pip install sparsec\[cuda\]"):
        sparsec.compile(network(rows=31), "cuda", verify=False)


def test_what_is_known_of_processors_alone() -> None:
    with pytest.raises(TargetError, match=r"tuning measures kernels of the processor.*--tune"):
        sparsec.compile(network(), "cuda", tune=True, verify=False)
    with pytest.raises(TargetError, match=r"cannot be predicted for target 'cuda'"):
        sparsec.compile(network(), "cuda", verify=False, **BUDGET_OF_TIME)


@needs_compiler
def test_keep_speed_takes_the_first_kernel() -> None:
    plain, fast = (sparsec.compile(network(), "cuda", "int8", verify=False, keep=keep) for keep in ("size", "speed"))
    assert [s.spec for s in plain.program.steps] == [s.spec for s in fast.program.steps]


def test_bounds() -> None:
    assert half_bound("float16", 0) == 0.0039
    assert half_bound("float16", 53) == 0.029
    assert half_bound("bfloat16", 53) == pytest.approx(8 * 0.029, rel=0.05)
