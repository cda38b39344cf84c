"""The generated C: valid for every name a model may use, strict, deterministic, readable."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from sparsec.codegen import zig
from sparsec.codegen.emit_c import C_TYPES, emit_c, identifier, unique_identifiers
from sparsec.codegen.plan import make_plan
from sparsec.codegen.program import MODEL_TYPES, Program
from sparsec.codegen.toolchain import runtime_folder
from sparsec.target import NAMED
from tests.codegen.programs import ProgramBuilder, concat_program, transpose_program

NASTY = [
    "input.1", "input_1", "/layer/MatMul_output_0", "*/ int x = 1; /*", "café", "int", "session", "given", "wanted", "",
    "1st", 'say "hi"\\n', "two\nlines", "??/", "onnx::Gather_0", "spc_run", "lo",
]  # fmt: skip


def _emit(program: Program):  # type: ignore[no-untyped-def]
    symbols = {s.spec.canonical(): f"spc_kernel_{i}" for i, s in enumerate(program.steps)}
    return emit_c(program, make_plan(program), symbols)


def _check_compiles(program: Program, folder: Path, extra: str = "") -> None:
    source = _emit(program)
    (folder / "model.c").write_text(source.model_c + extra)
    (folder / f"{source.identifier}.h").write_text(source.header)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wcast-qual", "-Wwrite-strings", "-Wcomment", "-Werror"]
    done = subprocess.run(
        [*zig.command("cc"), *flags, f"-I{runtime_folder()}", f"-I{folder}", "-c",
         str(folder / "model.c"), "-o", str(folder / "model.o")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_names_of_any_kind(tmp_path: Path) -> None:
    build = ProgramBuilder("mobilenet v2 (0.25)")
    for name in NASTY:
        x, y = build.input(name, (2, 3)), build.output(name, (3, 2))
        build.transpose(x, (1, 0), dest=y, node=name)
    _check_compiles(build.program, tmp_path)
    text = _emit(build.program).model_c
    assert text.isascii()
    assert "caf\\303\\251" in text  # the name survives in the table


@pytest.mark.parametrize("name", ["model", "stdint", "7b", "double", "spc", "main", "run", "step_0", "inputs", "日本"])
def test_model_names(name: str, tmp_path: Path) -> None:
    _check_compiles(transpose_program(name=name), tmp_path)


@pytest.mark.parametrize("dtype", sorted(MODEL_TYPES))
def test_every_dtype(dtype: str, tmp_path: Path) -> None:
    build = ProgramBuilder("typed")
    build.transpose(build.input("x", (2, 3), dtype), (1, 0), dest=build.output("y", (3, 2), dtype))
    call = f"\nint32_t use(spc_session *s, const {C_TYPES[dtype]} *a, {C_TYPES[dtype]} *b);\n"
    call += f"int32_t use(spc_session *s, const {C_TYPES[dtype]} *a, {C_TYPES[dtype]} *b) {{ return typed_run(s, a, b); }}\n"
    _check_compiles(build.program, tmp_path, call)


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    _check_compiles(Program("empty", NAMED["arm"]), tmp_path)


def test_readable() -> None:
    text = _emit(transpose_program()).model_c
    assert "/* 1: Transpose 'second'\n *    [5, 3, 17] -> [5, 17, 3] */\nstatic int32_t step_1(" in text
    assert re.search(r"spc_arena\(run, 0\), /\* src: first_out, float32 x 255 \*/", text)
    assert re.search(r"STEP\(0, step_0, \d+, 1, 4\); +/\* Transpose 'first' \*/", text)


def test_deterministic_and_told_apart() -> None:
    sources = [_emit(transpose_program()) for _ in range(2)]
    assert sources[0] == sources[1]
    others = [
        _emit(transpose_program(shape=(3, 5, 17))),
        _emit(concat_program()[0]),
        _emit(transpose_program(NAMED["arm"])),
    ]
    assert len({sources[0].model_id, *(o.model_id for o in others)}) == 4
    assert _emit(concat_program(seed=1)[0]).model_id == _emit(concat_program(seed=2)[0]).model_id


def test_identifiers() -> None:
    assert identifier("mobilenet-v2.onnx") == "mobilenet_v2_onnx"
    assert identifier("int") == "int_"
    assert identifier("9x", "model") == "m_9x"
    assert identifier("...") == "model"
    assert unique_identifiers(["a.b", "a_b", "a b", "a_b_2"], "v") == ["a_b", "a_b_2", "a_b_3", "a_b_2_2"]


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_target_says_what_the_processor_needs(name: str) -> None:
    text = _emit(transpose_program(NAMED[name])).model_c
    assert ("SPC_CPU_AVX2" in text) == name.startswith("x86")
    assert bool(re.search(r"SPC_CPU_AVX512\b", text)) == name.startswith("x86-avx512")
    assert ("SPC_CPU_AVX512_VNNI" in text) == (name in ("x86-avx512vnni", "x86-avx512vbmi2"))
    assert ("SPC_CPU_AVX512_VBMI2" in text) == (name == "x86-avx512vbmi2")
    assert ("SPC_CPU_AVX_VNNI" in text) == (name == "x86-avxvnni")
    assert ("SPC_CPU_DOTPROD" in text) == (name in ("arm", "arm-i8mm"))
    assert ("SPC_CPU_I8MM" in text) == (name == "arm-i8mm")
