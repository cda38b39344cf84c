"""`python -m bench setup`: make the rivals' environments below the cache folder. Versions come from bench/rivals/*.txt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import isa
from bench.environments import (
    FAMILIES,
    PINS,
    Family,
    NotSetUpError,
    cache_folder,
    digest,
    folder,
    is_ready,
    python_of,
    worker_command,
)
from bench.isa import NATIVE


class SetupError(Exception):
    """An environment cannot be made; the message says why and what was tried."""


def run(names: Sequence[str], force: bool) -> int:
    """Make the environments that are missing or out of date; 1 if one cannot be made (the others are made all the same).

    With another instruction set than this machine's (isa.py), programs that choose theirs when they are built are built for it too.
    """
    for name in names:
        if name not in FAMILIES:
            raise SystemExit(f"no rival '{name}'; there are: {', '.join(FAMILIES)}")
    print(f"environments are kept in {cache_folder()}", flush=True)
    failed = False
    for family in (FAMILIES[name] for name in names or FAMILIES):
        if is_ready(family, isa.chosen()) and not force:
            print(f"{family.name}: ready ({family.what})", flush=True)
            continue
        print(f"{family.name}: {family.what} ...", flush=True)
        note = folder(family).with_suffix(".failed")
        note.unlink(missing_ok=True)
        anew = force or not is_ready(family, NATIVE)
        try:
            _make(family, anew)
        except SetupError as error:
            failed = True
            if anew:
                shutil.rmtree(folder(family), ignore_errors=True)
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(str(error) + "\n")
            print(f"{family.name}: not set up: {error}", flush=True)
        else:
            print(f"{family.name}: ready", flush=True)
    return 1 if failed else 0


def _make(family: Family, anew: bool) -> None:
    """Virtual environment and packages (`anew`), what has to be built, and a check that the worker loads."""
    place = folder(family)
    if family.own and anew:
        python = _find_python(family.python)
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        _command([python, "-m", "venv", str(place)])
        pins = PINS / f"{family.name}.txt"
        _command([str(python_of(family)), "-m", "pip", "install", "-q", *family.pip_options, "-r", str(pins)])
        if family.name == "ggml":
            _build_ggml(place, NATIVE)
        (place / "ready").write_text(digest(family))
    if family.name == "ggml" and (chosen := isa.chosen()) != NATIVE:
        _build_ggml(place, chosen)
    try:
        command = worker_command(family.name, 1)
    except NotSetUpError as error:  # its instructions cannot be hidden
        raise SetupError(str(error)) from error
    done = subprocess.run(
        command.arguments, env=command.environment, cwd=PINS.parents[1], stdin=subprocess.DEVNULL, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SetupError(f"its worker does not start: {_last_line(done.stderr)}")


_GGML_OPTIONS = {
    NATIVE: ["-DGGML_NATIVE=ON"],
    "avx2": ["-DGGML_NATIVE=OFF", *(f"-DGGML_{name}=ON" for name in ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2"))],
}


def _build_ggml(place: Path, instruction_set: str) -> None:
    """libggml as the sdist of its Python binding vendors it, and our program on top, for an instruction set."""
    if not (cc := shutil.which("cc")) or not shutil.which("c++"):
        raise SetupError("no C and C++ compiler (cc, c++) on the PATH")
    python, source, build = str(place / "bin" / "python"), place / "source", place / "build"
    pins = PINS / "ggml_source.txt"
    # only the package itself must come as source; what its build needs may be binary
    name = pins.read_text().partition("==")[0].strip()
    pip = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name]
    _command([*pip, "-d", str(source), "-r", str(pins)])
    (archive,) = source.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(source, filter="data")
    (ggml,) = source.glob("*/vendor/llama.cpp/ggml")
    (ggml / "ggml.pc.in").touch()  # the sdist lacks it; it only fills a file for pkg-config
    cmake = [str(place / "bin" / "cmake")]
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", *_GGML_OPTIONS[instruction_set]]
    options += ["-DGGML_BUILD_TESTS=OFF", "-DGGML_BUILD_EXAMPLES=OFF"]
    _command([*cmake, "-S", str(ggml), "-B", str(build), *options])
    _command([*cmake, "--build", str(build), "--target", "ggml", "-j", str(os.cpu_count() or 1)])
    libraries = [str(build / "src" / f"lib{name}.a") for name in ("ggml", "ggml-cpu", "ggml-base")]
    flags = ["-O2", "-std=c11", "-D_POSIX_C_SOURCE=199309L", "-I", str(ggml / "include")]
    system = ["-lstdc++", "-lm", "-lgomp", "-lpthread", "-ldl"]
    _command(
        [cc, *flags, str(PINS / "ggml_bench.c"), *libraries, *system, "-o", str(isa.program(place, instruction_set))]
    )
    shutil.rmtree(source)
    shutil.rmtree(build)


def _find_python(version: str) -> str:
    """A Python of that version ("": this one)."""
    if not version:
        return sys.executable
    tried = []
    for candidate in _pythons(version):
        tried.append(candidate)
        try:
            done = subprocess.run(
                [candidate, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    raise SetupError(f"it needs Python {version}; tried {', '.join(tried)} (another: SPARSEC_BENCH_PYTHON=PATH)")


def _pythons(version: str) -> Iterator[str]:
    if given := os.environ.get("SPARSEC_BENCH_PYTHON"):
        yield given
    yield shutil.which(f"python{version}") or f"python{version}"
    yield from sorted(map(str, (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")))
    managed = Path.home() / ".local" / "share" / "uv" / "python"
    yield from sorted(map(str, managed.glob(f"cpython-{version}.*/bin/python{version}")))


def _command(arguments: Sequence[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        shown = " ".join(Path(a).name if a.startswith("/") else a for a in arguments[:6])
        raise SetupError(f"'{shown} ...' failed: {_last_line(done.stderr or done.stdout)}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("WARNING", "[notice]"))]
    return lines[-1].strip() if lines else "no message"
