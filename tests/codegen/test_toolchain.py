"""The tool chain: what it makes, what it links with, and its errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from sparsec.codegen.bundle import build_loadable, compile_program
from sparsec.codegen.toolchain import Toolchain
from sparsec.errors import TargetError, ToolchainError
from sparsec.runtime import Session
from sparsec.target import NAMED, host_target
from tests.codegen.programs import transpose_program


def test_error_shows_command_and_output(tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text("int f(void) { return undeclared_name; }\n")
    with pytest.raises(ToolchainError) as caught:
        Toolchain(NAMED["arm"]).compile(source, tmp_path / "bad.o")
    assert "bad.c" in str(caught.value)
    assert "undeclared_name" in str(caught.value)
    assert "zig cc" in str(caught.value)
    assert not (tmp_path / "bad.o").exists()


def test_unknown_compiler() -> None:
    with pytest.raises(ToolchainError, match="'no-such-cc' not found"):
        Toolchain(host_target(), cc="no-such-cc")


def _gcc() -> str:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    return "gcc"


def test_compiler_for_another_machine() -> None:
    other = NAMED["arm" if host_target().arch == "x86_64" else "x86-avx2"]
    with pytest.raises(ToolchainError, match="name a cross compiler"):
        Toolchain(other, cc=_gcc())


def test_system_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CC", _gcc())
    assert Toolchain(host_target()).cc == "gcc"
    made = build_loadable(transpose_program(shape=(2, 9, 4)))
    x = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)
    with Session(made.library, made.weights, threads=2) as session:
        np.testing.assert_array_equal(session.run([x])["y"], x.transpose(2, 1, 0))


def test_loadable_is_cached() -> None:
    program = transpose_program(shape=(4, 5, 6))
    compiled = compile_program(program)
    first = build_loadable(compiled)
    first.library.unlink()
    assert build_loadable(compiled).library == first.library
    changed = first.library.stat().st_mtime_ns
    assert build_loadable(program).library.stat().st_mtime_ns == changed


def test_foreign_architecture_is_not_loaded() -> None:
    other = NAMED["arm" if host_target().arch == "x86_64" else "x86-avx2"]
    with pytest.raises(TargetError, match="cannot load it"):
        build_loadable(transpose_program(other))
