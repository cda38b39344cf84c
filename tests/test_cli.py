"""The command line: every command, as text and as JSON, and its exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsec
from sparsec.cli import main
from sparsec.options import parse_shapes, parse_values
from tests.models import DIGITS, DIGITS_MLP

N1 = ("--input-shapes", "N=1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(DIGITS, tmp_path / "digits.onnx")
    shutil.copy(DIGITS_MLP, tmp_path / "mlp.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must succeed; returns standard output, parsed if it is JSON."""

    def call(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        result = main(list(arguments))
        captured = capsys.readouterr()
        assert result == code, captured.err
        return json.loads(captured.out) if "--json" in arguments else captured.out

    return call


def test_bare_form_compresses_with_the_default_preset(run: Any, folder: Path) -> None:
    text = run("mlp.onnx", "a.onnx", *N1)
    assert "hidden.weight" in text
    run("compress", "mlp.onnx", "b.onnx", "--recipe", "balanced", *N1)
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_compress_as_json(run: Any, folder: Path) -> None:
    data = run("compress", "mlp.onnx", "a.onnx", "--recipe", "int8", *N1, "--json")
    assert data["after"]["file_bytes"] == (folder / "a.onnx").stat().st_size
    assert data["layers"][0]["scheme"] == "int8"
    assert 0 < data["after"]["error"] < 0.1
    assert data["verification"]["passed"]


def test_compile_inspect_verify(run: Any, folder: Path) -> None:
    data = run("compile", "mlp.onnx", "-o", "out", "--recipe", "int8", *N1, "--json")
    assert data["layers"][0]["kernel"]
    assert data == json.loads((folder / "out" / "report.json").read_text())

    text = run("inspect", "out")
    assert "hidden.weight" in text
    assert "float32" in text
    assert run("inspect", "out", "--json")["layers"][0]["scheme"] == "int8"

    run("compress", "mlp.onnx", "small.onnx", "--recipe", "int8", *N1)
    found = run("verify", "small.onnx", "out", "--json")
    assert found["bound"] == 1e-3
    assert found["error"] < 1e-5
    found = run("verify", "mlp.onnx", "out", "--json")
    assert found["bound"] is None
    assert found["error"] > 1e-4
    assert "no bound" in run("verify", "mlp.onnx", "small.onnx")
    assert "FAILED" in run("verify", "mlp.onnx", "small.onnx", "--tolerance", "1e-6", code=3)


def test_verify_on_own_inputs(run: Any, folder: Path) -> None:
    run("compile", "mlp.onnx", "-o", "out", *N1, "--no-verify")
    np.savez(folder / "x.npz", x=np.full((1, 64), 0.5, np.float32))
    found = run("verify", "mlp.onnx", "out", "--inputs", "x.npz", "--json")
    assert found["inputs"] == "x.npz"
    assert found["bound"] == 1e-4
    assert found["passed"]


def test_compile_without_verification_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "mlp.onnx", *N1, "--no-verify", "--jobs", "1", "--threads", "2", "--name", "net"]) == 0
    assert "not verified" in capsys.readouterr().err
    assert (folder / "build" / "net" / "include" / "net.h").exists()
    assert json.loads((folder / "build" / "net" / "report.json").read_text())["verification"] is None


def test_inspect_a_model(run: Any) -> None:
    text = run("inspect", "digits.onnx")
    assert "Nx1x8x8" in text
    assert "GlobalAveragePool" in text
    assert "cannot be compiled as it is" in text
    assert "(N)" in text
    text = run("inspect", "digits.onnx", *N1, "--why", "--recipe", "int8")
    assert "too small: 144 elements" in text
    assert "fold-batchnorm" in text
    data = run("inspect", "digits.onnx", *N1, "--json")
    assert data["operators"]["Conv"] == 4
    assert data["problems"] == []


def test_inspect_the_default_preset_of_an_encoded_file(run: Any) -> None:
    run("mlp.onnx", "small.onnx", *N1, "--recipe", "cb4-g32")
    data = run("inspect", "small.onnx", "--json")
    assert data["layers"][0]["scheme"] == "cb4-g32"
    assert data["layers"][0]["reason"] == "already encoded in the model file"


def test_bench(run: Any) -> None:
    data = run("bench", "mlp.onnx", "--against", "ort", "--seconds", "0.05", *N1, "--json")
    assert data["ratio"] == pytest.approx(data["median_ms"]["sparsec"] / data["median_ms"]["onnxruntime"])
    assert data["report"]["after"]["median_ms"] > 0
    text = run("bench", "mlp.onnx", "--seconds", "0.05", *N1)
    assert "x onnxruntime" in text


def test_targets(run: Any) -> None:
    assert "arm-v8.0" in run("targets")
    assert "x86-avx2" in run("targets", "--json")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["--version"], 0),
        (["comprss", "mlp.onnx"], 2),
        (["compile", "mlp.onnx", "--no-such-option"], 2),
        (["compile"], 2),
        (["bench", "mlp.onnx", "--against", "tflite"], 2),
        (["compile", "mlp.onnx", "--input-values", "sr=fast"], 2),
    ],
)
def test_usage(arguments: list[str], code: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    assert "Traceback" not in capsys.readouterr().err


def test_errors_as_json_and_with_a_trace(run: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run("compile", "no.onnx", "--json", code=1)
    assert data["error"]["type"] == "ModelError"
    assert "no.onnx" in data["error"]["message"]
    assert main(["compile", "no.onnx", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["compile", "no.onnx"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_is_called_a_bug(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sparsec import api

    def broken(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(api, "compress", broken)
    assert main(["mlp.onnx", "a.onnx"]) == 1
    assert "bug in sparsec" in capsys.readouterr().err


def test_the_installed_command(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "sparsec.cli", "no.onnx", "x.onnx"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: no.onnx: no such file.\n"
    assert done.stdout == ""


def test_options_are_the_keywords_of_the_api() -> None:
    import inspect

    from sparsec import cli

    for name in ("compile", "compress"):
        flags = set(inspect.signature(getattr(cli, name)).parameters)
        flags = {"verify" if flag == "no_verify" else flag for flag in flags}
        flags -= {"output", "force", "as_json", "verbose", "no_cache", "front"}  # SPARSEC_CACHE=off, report.front.save
        keywords = set(inspect.signature(getattr(sparsec, name)).parameters)
        # `recover` is a section of a recipe there; a file of --labels holds samples and labels of validation; a metric is a function
        assert keywords - flags == {"example_inputs", "progress", "recover", "validation", "metric", "aggregate"}
        assert flags <= keywords


def test_parse_shapes_and_values() -> None:
    assert parse_shapes("x=1x3x224x224,batch=1") == {"x": [1, 3, 224, 224], "batch": 1}
    assert parse_shapes("a=b=2x2") == {"a=b": [2, 2]}
    assert parse_values("sr=16000,scale=-0.5,n=-3,big=1e3") == {"sr": 16000, "scale": -0.5, "n": -3, "big": 1000.0}
    assert parse_shapes(None) is None
    assert parse_values(None) is None


def test_budget_and_front(run: Any, folder: Path) -> None:
    few = ("--budget", "6KB", "--candidates", "int8,cb4,cb2-c")
    text = run("compress", "mlp.onnx", "small.onnx", *few, *N1, "--front", "front.png")
    assert (folder / "small.onnx").stat().st_size <= 6000
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "chosen" in text
    data = run("compile", "mlp.onnx", *few, *N1, "--json", "--no-verify", "-o", "bundle")
    assert data["front"]["bytes"] == data["after"]["file_bytes"] <= 6000
    assert run("compress", "mlp.onnx", "b.onnx", *N1, "--front", "c.png", code=2) == ""
    assert not (folder / "b.onnx").exists()
