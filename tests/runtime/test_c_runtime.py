"""The C runtime: strict warnings, its own C test under the sanitizers, and what it links with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sparsec.codegen import zig
from sparsec.codegen.toolchain import CUDA_SOURCES, RUNTIME_SOURCES, Toolchain, runtime_folder
from sparsec.target import NAMED
from tests.elf import read_elf

SOURCES = runtime_folder()
C_TEST = Path(__file__).with_name("test_runtime.c")
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{SOURCES}"]
ZIG = list(zig.command("cc"))


def system_cc(*flags: str) -> str:
    """A compiler that links with these flags; skips the test where there is none."""
    cc = shutil.which("gcc") or shutil.which("clang")
    if cc is None:
        pytest.skip("no system C compiler: the sanitizers need one")
    probe = subprocess.run(
        [cc, *flags, "-x", "c", "-", "-o", "/dev/null"],
        input="int main(void){return 0;}",
        text=True,
        capture_output=True,
    )
    if probe.returncode:
        pytest.skip(f"{cc} cannot link with {' '.join(flags)}")
    return cc


def _build_and_run(command: list[str], folder: Path) -> None:
    program = folder / "test_runtime"
    sources = [str(SOURCES / s) for s in RUNTIME_SOURCES]
    built = subprocess.run(
        [*command, *STRICT, "-g", *sources, str(C_TEST), "-o", str(program), "-lpthread"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program), str(folder)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-4000:]


def test_address_and_undefined(tmp_path: Path) -> None:
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    _build_and_run([system_cc(*flags), *flags], tmp_path)


def test_threads(tmp_path: Path) -> None:
    flags = ["-O1", "-fsanitize=thread"]
    _build_and_run([system_cc(*flags), *flags, "-DTEST_TSAN"], tmp_path)


@pytest.mark.parametrize("define", [[], ["-DSPC_NO_THREADS"]], ids=["threads", "no-threads"])
def test_with_zig(define: list[str], tmp_path: Path) -> None:
    _build_and_run([*ZIG, "-O2", *define], tmp_path)


@pytest.mark.parametrize("triple", ["x86_64-linux-gnu.2.17", "aarch64-linux-musl"])
@pytest.mark.parametrize("define", [[], ["-DSPC_NO_THREADS"], ["-DSPC_BARE"]], ids=["full", "no-threads", "bare"])
def test_no_warnings(triple: str, define: list[str], tmp_path: Path) -> None:
    for source in sorted(SOURCES.glob("*.c")):
        if source.name in ("spc_demo.c", "spc_npy.c", *CUDA_SOURCES) and "-DSPC_BARE" in define:
            continue
        command = [*ZIG, "-target", triple, *STRICT, *define, "-c", str(source), "-o", str(tmp_path / "a.o")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_header_is_cplusplus_too(tmp_path: Path) -> None:
    source = tmp_path / "user.cpp"
    source.write_text('#include "spc_runtime.h"\nint main() { return spc_status_text(SPC_OK) == nullptr; }\n')
    command = [*ZIG, "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", "-c", str(source), "-o", str(tmp_path / "user.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_small() -> None:
    processor = [path for path in SOURCES.iterdir() if not path.name.startswith("spc_cuda")]
    assert sum(len(path.read_text().splitlines()) for path in processor) < 2000
    assert sum(len(path.read_text().splitlines()) for path in SOURCES.iterdir()) < 3000
    code = sum(read_elf(path).code_bytes for path in Toolchain(NAMED["arm"]).runtime_objects())
    assert 0 < code < 64 * 1024


def test_bare_needs_no_operating_system(tmp_path: Path) -> None:
    undefined: set[str] = set()
    defined: set[str] = set()
    for source in RUNTIME_SOURCES:
        made = tmp_path / "bare.o"
        flags = ["-target", "aarch64-linux-musl", "-std=c11", "-O2", "-fno-sanitize=all", "-DSPC_BARE"]
        subprocess.run([*ZIG, *flags, "-c", str(SOURCES / source), "-o", str(made)], check=True)
        facts = read_elf(made)
        undefined |= facts.undefined
        defined |= facts.defined
    assert undefined - defined <= {"memcpy", "memmove", "memset", "memcmp"}
