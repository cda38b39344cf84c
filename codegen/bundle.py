"""Program -> bundle folder, or -> a shared library and weights for this process.

A bundle is written to a temporary folder beside its destination and renamed when it is complete, so a folder under the final name
is always whole. The same program gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.codegen.blob import make_blob
from sparsec.codegen.build import BuiltKernel, build_kernels
from sparsec.codegen.cuda.emit import CudaEmitter
from sparsec.codegen.emit_c import Source, emit_c
from sparsec.codegen.link import Linker
from sparsec.codegen.plan import Plan, StepPlan, make_plan
from sparsec.codegen.program import IoInfo, Program, Step
from sparsec.codegen.toolchain import DEMO_SOURCES, Toolchain, runtime_folder
from sparsec.errors import OutputError, TargetError
from sparsec.target import Target, host_target

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Compiled:
    """What both forms are made of: kernels, plan, C text and the weights blob (uint8, 64-byte aligned)."""

    program: Program
    kernels: Mapping[str, BuiltKernel]
    plan: Plan
    source: Source
    blob: np.ndarray[Any, Any]

    @property
    def objects(self) -> list[tuple[str, Path]]:
        """(archive member, object file) of every kernel, sorted by symbol."""
        found = {k.symbol: k.object_path for k in self.kernels.values()}
        return [(f"{symbol}.o", path) for symbol, path in sorted(found.items())]

    def linker(self, cc: str | None = None) -> Linker:
        """Makes the binaries; `cc` as for `Toolchain`."""
        return Linker(self.source, self.objects, Toolchain(self.program.target, cc))


@dataclass(frozen=True)
class Loadable:
    """A program ready to be loaded here: sparsec.runtime.Session(library, weights)."""

    library: Path
    weights: np.ndarray[Any, Any]


def compile_program(program: Program, *, jobs: int | None = None, progress: Progress | None = None) -> Compiled:
    """Build the kernels, plan the memory, print the C, pack the weights. Raises ToolchainError."""
    kernels = build_kernels([s.spec for s in program.steps], program.target, jobs=jobs, progress=progress)
    plan = make_plan(program)
    symbols = {text: kernel.symbol for text, kernel in kernels.items()}
    source = emit_c(program, plan, symbols, CudaEmitter if program.target.gpu else None)
    return Compiled(program, kernels, plan, source, make_blob(plan, source.model_id))


def build_loadable(
    program: Program | Compiled, *, jobs: int | None = None, progress: Progress | None = None, cc: str | None = None
) -> Loadable:
    """A shared library (cached by content) and the weights for this process.

    Raises TargetError when the program is for another architecture than this machine's, ToolchainError.
    """
    compiled = program if isinstance(program, Compiled) else compile_program(program, jobs=jobs, progress=progress)
    _check_runs_here(compiled.program.target)
    return Loadable(compiled.linker(cc).shared(), compiled.blob)


def write_bundle(
    program: Program | Compiled,
    out_dir: str | os.PathLike[str],
    *,
    force: bool = False,
    recipe_yaml: str = "",
    report: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, str | bytes] | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    cc: str | None = None,
) -> Path:
    """Write the bundle folder (docs/bundle.md) and return its path.

    `recipe_yaml` becomes effective-recipe.yaml, `report` (JSON-able) report.json, `extra_files` (relative path -> content)
    is written as it is. An existing folder is replaced with `force`, and only once the new one is complete.

    Raises OutputError when `out_dir` exists without `force` or cannot be written, ToolchainError.
    """
    out = Path(os.path.abspath(out_dir))
    check_output(out, force=force)
    compiled = program if isinstance(program, Compiled) else compile_program(program, jobs=jobs, progress=progress)
    linker = compiled.linker(cc)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        folder = scratch / "bundle"
        folder.mkdir()
        with ThreadPoolExecutor(1) as executor:  # hashing a large weights.bin takes as long as all else here
            weights_hash = executor.submit(_sha256, compiled.blob.data)
            _fill(folder, compiled, linker)
        if recipe_yaml:
            (folder / "effective-recipe.yaml").write_text(recipe_yaml)
        if report is not None:
            (folder / "report.json").write_text(_json(report))
        for name, content in sorted((extra_files or {}).items()):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        (folder / "manifest.json").write_text(
            _json(_manifest(compiled, folder, {"weights.bin": weights_hash.result()}))
        )
        _move_in(folder, out, scratch / "old", force=force)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def check_output(out: Path, *, force: bool) -> None:
    """Raise OutputError unless a bundle may be written to `out`; callers ask before they start long work."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out} exists and is not a folder; give another output folder")
    if not out.exists():
        return
    if not force:
        raise OutputError(f"{out} exists; give another output folder, or --force (force=True) to replace it")
    if any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise OutputError(f"{out} holds something else than a bundle (no manifest.json); --force does not replace it")


def _check_runs_here(target: Target) -> None:
    host = host_target()
    if target.arch != host.arch:
        raise TargetError(
            f"the program is for target '{target.name}' ({target.arch}); this machine is {host.arch} and cannot load it. "
            "Write a bundle and run it there (or bin/ under qemu)"
        )


def _fill(folder: Path, compiled: Compiled, linker: Linker) -> None:
    name = compiled.source.identifier
    for sub in ("include", "src", "lib", "bin"):
        (folder / sub).mkdir()
    tools = linker.tools
    for header in tools.headers:
        where = "include" if header == "spc_runtime.h" else "src"
        shutil.copyfile(runtime_folder() / header, folder / where / header)
    for source in (*tools.sources, *DEMO_SOURCES):
        shutil.copyfile(runtime_folder() / source, folder / "src" / source)
    (folder / "include" / f"{name}.h").write_text(compiled.source.header)
    (folder / "src" / "model.c").write_text(compiled.source.model_c)
    (folder / "CMakeLists.txt").write_text(_cmake(name, tools))

    def weights() -> None:
        with open(folder / "weights.bin", "wb") as file:
            file.write(compiled.blob.data)

    def copied(make: Callable[[], Path], to: Path) -> None:
        shutil.copy(make(), to)

    with ThreadPoolExecutor(4) as executor:
        kernels = executor.submit(copied, linker.kernels_archive, folder / "lib" / f"lib{name}_kernels.a")
        written = executor.submit(weights)
        linker.model_object()  # before the three that need it, so that it is compiled once
        links: list[Future[None]] = [
            kernels,
            written,
            executor.submit(copied, linker.archive, folder / "lib" / f"lib{name}.a"),
            executor.submit(copied, linker.shared, folder / "lib" / f"lib{name}.so"),
            executor.submit(copied, linker.program, folder / "bin" / name),
        ]
        for link in links:
            link.result()


def _move_in(folder: Path, out: Path, old: Path, *, force: bool) -> None:
    check_output(out, force=force)
    if not out.exists():
        folder.rename(out)
        return
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:  # an interrupt too must not lose the old bundle
        if not out.exists():
            old.rename(out)
        raise


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _manifest(compiled: Compiled, folder: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    """hashes: of files whose SHA-256 is known already."""
    program, plan, name = compiled.program, compiled.plan, compiled.source.identifier
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    names = [str(p.relative_to(folder)) for p in files]
    return {
        "format": 1,
        "sparsec": version("sparsec"),
        "name": name,
        "model": program.name,
        "model_id": f"{compiled.source.model_id:016x}",
        "target": program.target.describe(),
        "inputs": [_io(i) for i in program.inputs],
        "outputs": [_io(o) for o in program.outputs],
        "bytes": {
            "weights": plan.weights_bytes,
            "arena": plan.arena_bytes,
            "arena_floor": plan.arena_floor,
            "work_per_thread": plan.work_bytes,
        },
        "steps": [
            {
                "node": step.node,
                **({"others": list(step.others)} if step.others else {}),
                "op": step.op,
                "note": step.note,
                "kernel": compiled.kernels[step.spec.canonical()].symbol,
                **_started(compiled.kernels[step.spec.canonical()], step, planned),
            }
            for step, planned in zip(program.steps, plan.steps, strict=True)
        ],
        "library": f"lib/lib{name}.so",
        "weights": "weights.bin",
        "program": f"bin/{name}",
        "files": {
            name: {"bytes": p.stat().st_size, "sha256": hashes.get(name) or _sha256(p.read_bytes())}
            for name, p in zip(names, files, strict=True)
        },
    }


def _started(kernel: BuiltKernel, step: Step, planned: StepPlan) -> dict[str, Any]:
    """How a step runs: units on threads, or blocks of threads of a GPU and what a thread and a block occupy."""
    if "grid" in kernel.meta:
        return {key: kernel.meta[key] for key in ("grid", "block", "registers", "shared", "spills")}
    return {"units": step.signature.units, "threads": planned.threads}


def _io(info: IoInfo) -> dict[str, Any]:
    return {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _cmake(name: str, tools: Toolchain) -> str:
    runtime = " ".join(f"src/{s}" for s in tools.sources)
    libraries = "Threads::Threads m" + (" ${CMAKE_DL_LIBS}" if tools.target.gpu else "")
    demo = " ".join(f"src/{s}" for s in DEMO_SOURCES)
    return f"""# Builds the model and its demo program from source; the kernels come compiled.
cmake_minimum_required(VERSION 3.13)
project({name} C)
set(CMAKE_C_STANDARD 11)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
find_package(Threads REQUIRED)

add_library({name} STATIC src/model.c {runtime})
target_include_directories({name} PUBLIC include)
target_link_libraries({name} PUBLIC ${{CMAKE_CURRENT_SOURCE_DIR}}/lib/lib{name}_kernels.a {libraries})

add_executable({name}_demo {demo})
target_link_libraries({name}_demo {name})
"""
