"""Bundles for a GPU: complete, deterministic, run without Python and without a CUDA toolkit; those for a processor do not grow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import sparsec
from sparsec.codegen import zig
from sparsec.codegen.bundle import Compiled, compile_program, write_bundle
from sparsec.errors import BundleError, DeviceError, TargetError
from sparsec.runtime import load
from tests.codegen.programs import concat_program
from tests.cuda.compiler import needs_compiler
from tests.cuda.driver import HERE, FakeGpu
from tests.cuda.joins import join_program, join_reference
from tests.elf import read_elf
from tests.runtime.test_c_runtime import system_cc

LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
SHAPES = ((4, 3, 37), (3, 37))


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile_program(join_program()[0])


@pytest.fixture(scope="module")
def bundle(compiled: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(compiled, tmp_path_factory.mktemp("gpu") / "joins")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[str, np.ndarray]]:
    """Inputs as .npy files, and what the model makes of them."""
    folder, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(8)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    paths = [folder / f"{i}.npy" for i in range(2)]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths, join_reference(*arrays, join_program()[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def demo(program: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, env=environment)


@needs_compiler
def test_contents(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {"src/spc_cuda.c", "src/spc_cuda.h", "src/spc_cuda_load.c", "src/spc_cuda_driver.c"} <= set(
        manifest["files"]
    )
    assert manifest["target"]["gpu"] == "sm_90"
    step = manifest["steps"][0]
    assert (step["grid"], step["block"], step["spills"], step["shared"]) == ([1, 1, 1], [256, 1, 1], 0, 0)
    assert 0 < step["registers"] < 255
    text = (bundle / "src" / "model.c").read_text()
    assert ".device = &spc_cuda_device" in text
    assert "/* Add 'add * / it'\n     * with a residual */\n    STEP(3, spc_cuda_join_" in text
    assert "spc_weight(run, 0), /* bias: bias, float32 x 37 */" in text


@needs_compiler
def test_same_inputs_same_bytes(bundle: Path, tmp_path: Path) -> None:
    assert contents(bundle) == contents(write_bundle(join_program()[0], tmp_path / "elsewhere" / "joins"))


@needs_compiler
def test_links_with_the_c_library_only(bundle: Path) -> None:
    for path in (bundle / "lib" / "libjoins.so", bundle / "bin" / "joins"):
        assert set(read_elf(path).needed) <= LIBRARIES, path
    shown = {s for s in read_elf(bundle / "lib" / "libjoins.so").defined if not s.startswith("_")}
    assert {"spc_session_run_device", "spc_explain", "joins_run"} <= shown
    assert not {s for s in shown if s.startswith("spc_cuda")}


@needs_compiler
def test_demo_program(
    bundle: Path, compiled: Compiled, gpu: FakeGpu, saved: tuple[list[Path], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    gpu.add(compiled)
    paths, wanted = saved
    done = demo(bundle / "bin" / "joins", "-n", 3, *paths, tmp_path / "y.npy", tmp_path / "z.npy")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("median of 3 runs: ")
    for name, array in wanted.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), array, rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SPC_CUDA_DRIVER": "/nowhere/libcuda.so.1"}, "there is no CUDA driver"),
        ({"SPC_FAKE_SM": "80"}, "compiled for sm_90, this GPU is sm_80"),
        ({"SPC_FAKE_FAIL_ALLOC": "2"}, "no room for the intermediate results"),
        ({"SPC_FAKE_FAIL_LAUNCH": "3"}, "a kernel failed"),
    ],
)
def test_demo_program_says_what_is_missing(
    bundle: Path,
    compiled: Compiled,
    gpu: FakeGpu,
    saved: tuple[list[Path], dict[str, np.ndarray]],
    variables: dict[str, str],
    message: str,
    tmp_path: Path,
) -> None:
    gpu.add(compiled)
    done = demo(bundle / "bin" / "joins", *saved[0], tmp_path / "y.npy", tmp_path / "z.npy", **variables)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.npy"))


@needs_compiler
def test_loads_in_python(
    bundle: Path, compiled: Compiled, gpu: FakeGpu, saved: tuple[list[Path], dict[str, np.ndarray]]
) -> None:
    gpu.add(compiled)
    with load(bundle) as session:
        result = session.run([np.load(path) for path in saved[0]])
    for name, array in saved[1].items():
        np.testing.assert_allclose(result[name], array, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_damaged_weights_are_found_before_the_gpu_is_asked(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "joins"))
    monkeypatch.setenv("SPC_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    with pytest.raises(DeviceError):
        load(copied)
    data = bytearray((copied / "weights.bin").read_bytes())
    data[-1] ^= 1
    (copied / "weights.bin").write_bytes(data)
    with pytest.raises(BundleError, match="checksum"):
        load(copied)


@needs_compiler
def test_sources_compile_without_warnings(bundle: Path, tmp_path: Path) -> None:
    """The sources of the bundle, with strict warnings, by hand as CMakeLists.txt does it."""
    sources = sorted((bundle / "src").glob("*.c"))
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{bundle / 'include'}"]
    program = tmp_path / "program"
    kernels = bundle / "lib" / "libjoins_kernels.a"
    command = [
        *zig.command("cc"),
        *flags,
        *map(str, sources),
        str(kernels),
        "-lm",
        "-lpthread",
        "-ldl",
        "-o",
        str(program),
    ]
    done = zig.run(command)
    assert done.returncode == 0, done.stderr
    shown = demo(program, "-h")
    assert "in  x: float32[4, 3, 37]" in shown.stdout
    assert "${CMAKE_DL_LIBS}" in (bundle / "CMakeLists.txt").read_text()


def linked(program: Path, bundle: Path, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """A program of C sources and the bundle's kernels, by the system's compiler."""
    inputs = [*map(str, sources), str(bundle / "lib" / "libjoins_kernels.a")]
    libraries = ["-lm", "-lpthread", "-ldl", "-o", str(program)]
    command = [system_cc(*flags), *flags, f"-I{bundle / 'include'}", *inputs, *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@needs_compiler
def test_under_the_sanitizers(
    bundle: Path, compiled: Compiled, gpu: FakeGpu, saved: tuple[list[Path], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """Runtime and model from the bundle's sources: no leak, no undefined behaviour, in a good run and in one that runs out of memory."""
    gpu.add(compiled)
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = linked(tmp_path / "program", bundle, sorted((bundle / "src").glob("*.c")), flags)
    arguments = ["-w", bundle / "weights.bin", *saved[0], tmp_path / "y.npy", tmp_path / "z.npy"]
    for variables, status in (({}, 0), ({"SPC_FAKE_FAIL_ALLOC": "2"}, 1), ({"SPC_FAKE_FAIL_ALLOC": "3"}, 1)):
        done = demo(program, *arguments, **variables)
        assert done.returncode == status, done.stderr
        assert "Sanitizer" not in done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), saved[1]["y"], rtol=1e-5, atol=1e-5)


@needs_compiler
def test_sessions_of_many_threads_under_the_sanitizer(
    bundle: Path, compiled: Compiled, gpu: FakeGpu, tmp_path: Path
) -> None:
    gpu.add(compiled)
    flags = ["-g", "-O1", "-fsanitize=thread"]
    sources = [p for p in sorted((bundle / "src").glob("*.c")) if p.name != "spc_demo.c"]
    program = linked(tmp_path / "program", bundle, [*sources, HERE / "sessions.c"], flags)
    done = demo(program, bundle / "weights.bin")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-4000:]


@needs_compiler
def test_a_bundle_for_a_machine_of_another_architecture(bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "joins"))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["target"]["arch"] = "riscv64"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TargetError, match="is for a GPU in a riscv64 machine"):
        sparsec.load(copied)


def test_bundles_for_a_processor_have_nothing_of_it(tmp_path: Path) -> None:
    folder = write_bundle(concat_program()[0], tmp_path / "joined")
    assert not [name for name in contents(folder) if "cuda" in name]
    assert "libdl.so.2" not in read_elf(folder / "lib" / "libjoined.so").needed
    for path in ("lib/libjoined.so", "bin/joined", "lib/libjoined.a"):
        data = (folder / path).read_bytes()
        assert b"libcuda" not in data
        assert b"spc_cuda" not in data
