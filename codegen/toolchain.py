"""The C tool chain: zig's clang and lld from PyPI's `ziglang`, which carry the C library of every target, or a system compiler.

Objects of the runtime are cached by content; a model needs one compilation (model.c) and its links.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

import sparsec.runtime
from sparsec.cache import digest, root, source_digest
from sparsec.codegen import zig
from sparsec.errors import ToolchainError
from sparsec.target import Target

RUNTIME_SOURCES = ("spc_runtime.c", "spc_blob.c", "spc_pool.c", "spc_cpu.c", "spc_host.c", "spc_open.c")
CUDA_SOURCES = ("spc_cuda.c", "spc_cuda_graph.c", "spc_cuda_steps.c", "spc_cuda_load.c", "spc_cuda_driver.c")
"""Of the runtime, for models for a GPU only."""
DEMO_SOURCES = ("spc_npy.c", "spc_demo.c")
HEADERS = ("spc_runtime.h", "spc_internal.h", "spc_npy.h")
CUDA_HEADERS = ("spc_cuda.h", "spc_cuda_session.h", "spc_cuda_load.h", "spc_cuda_driver.h")

_FLAGS = ("-std=c11", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections")
_LINK = ("-s", "-Wl,--gc-sections", "-Wl,--build-id=none")


def runtime_folder() -> Path:
    """The folder of the runtime's C sources."""
    return Path(sparsec.runtime.__file__).parent / "src"


class Toolchain:
    """Compiles and links C for one target.

    `cc` is a system compiler's name or path (default: $SPARSEC_CC; without it, zig). A system compiler must be one for
    the target's architecture. All methods raise ToolchainError with the command and what it printed.
    """

    def __init__(self, target: Target, cc: str | None = None) -> None:
        self.target = target
        self.cc = cc or os.environ.get("SPARSEC_CC") or ""
        # Shared libraries are loaded by programs of the usual distributions: glibc, as old as the architecture allows.
        self.shared_triple = target.zig_triple.replace("-musl", "-gnu.2.17")
        if self.cc:
            self._check_system_compiler()

    def _check_system_compiler(self) -> None:
        if shutil.which(self.cc) is None:
            raise ToolchainError(
                f"C compiler '{self.cc}' not found; give another with cc= or SPARSEC_CC, or none for zig"
            )
        machine = _run([self.cc, "-dumpmachine"]).strip()
        wanted = {"x86_64": ("x86_64", "amd64"), "aarch64": ("aarch64", "arm64")}.get(
            self.target.arch, (self.target.arch,)
        )
        if not machine.startswith(wanted):
            raise ToolchainError(
                f"C compiler '{self.cc}' makes code for {machine}, but target '{self.target.name}' is {self.target.arch}; "
                "name a cross compiler with cc= or SPARSEC_CC, or none for zig"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """C files of the runtime that a model for the target needs."""
        return RUNTIME_SOURCES + (CUDA_SOURCES if self.target.gpu else ())

    @property
    def headers(self) -> tuple[str, ...]:
        """Headers of the same."""
        return HEADERS + (CUDA_HEADERS if self.target.gpu else ())

    @property
    def _libraries(self) -> list[str]:
        # The driver is found with dlopen, which older C libraries have in a library of its own.
        return ["-lm", "-lpthread", *(["-ldl"] if self.target.gpu else [])]

    @cached_property
    def key(self) -> tuple[str, ...]:
        """Which compiler, for which machine: part of the cache keys of all it makes."""
        release = _run([self.cc, "--version"]) if self.cc else version("ziglang")
        return (self.cc, release, self.target.zig_triple, self.shared_triple)

    def _compiler(self, triple: str) -> list[str]:
        if self.cc:
            return [self.cc]
        return [*zig.command("cc"), "-target", triple, "-fno-sanitize=all"]

    def compile(self, source: Path, output: Path, *, includes: Sequence[Path] = (), static: bool = False) -> None:
        """C file -> position-independent object; `static` for the C library of the demo program."""
        triple = self.target.zig_triple if static else self.shared_triple
        flags = [*_FLAGS, f"-ffile-prefix-map={source.parent}=."]
        _run([*self._compiler(triple), *flags, *(f"-I{i}" for i in includes), "-c", str(source), "-o", str(output)])

    def shared(self, objects: Iterable[Path], output: Path, exports: Iterable[str], name: str) -> None:
        """Objects -> shared library that calls itself `name` and shows only the symbols `exports`."""
        with tempfile.TemporaryDirectory() as scratch:
            script = Path(scratch) / "exports.map"
            script.write_text("{ global: " + " ".join(f"{e};" for e in exports) + " local: *; };\n")
            arguments = [
                *_LINK,
                "-shared",
                f"-Wl,--version-script={script}",
                "-Wl,-Bsymbolic",
                f"-Wl,-soname,{name}",
            ]
            _run(
                [
                    *self._compiler(self.shared_triple),
                    *arguments,
                    "-o",
                    str(output),
                    *map(str, objects),
                    *self._libraries,
                ]
            )

    def executable(self, objects: Iterable[Path], output: Path) -> None:
        """Objects (compiled with `static`) -> program; static where the target's C library is musl."""
        static = ["-static"] if not self.cc and "musl" in self.target.zig_triple else []
        command = [*self._compiler(self.target.zig_triple), *_LINK, *static, "-o", str(output)]
        _run([*command, *map(str, objects), *self._libraries])

    def archive(self, members: Iterable[tuple[str, Path]], output: Path) -> None:
        """(member name, object) -> static library without dates and owners."""
        with tempfile.TemporaryDirectory() as scratch:
            names = []
            for name, path in members:
                shutil.copyfile(path, Path(scratch) / name)
                names.append(name)
            _run([*zig.command("ar"), "rcsD", str(output.resolve()), *names], cwd=Path(scratch))

    def runtime_objects(self, *, static: bool = False, demo: bool = False) -> list[Path]:
        """Objects of the runtime (and of the demo program), compiled once for each C library and kept in the cache."""
        sources = self.sources + (DEMO_SOURCES if demo else ())
        triple = self.target.zig_triple if static else self.shared_triple
        folder = root() / "runtime" / digest(runtime_digest(), *self.key, triple)
        missing = [s for s in sources if not (folder / s).with_suffix(".o").exists()]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch, ThreadPoolExecutor() as executor:

                def build(name: str) -> None:
                    made = (Path(scratch) / name).with_suffix(".o")
                    self.compile(runtime_folder() / name, made, static=static)
                    made.replace((folder / name).with_suffix(".o"))

                list(executor.map(build, missing))
        return [(folder / s).with_suffix(".o") for s in sources]


@cache
def runtime_digest() -> str:
    """Hash of the runtime's sources and of the flags they are compiled with."""
    sources = [
        runtime_folder() / name for name in (*HEADERS, *CUDA_HEADERS, *RUNTIME_SOURCES, *CUDA_SOURCES, *DEMO_SOURCES)
    ]
    return digest(source_digest(*sources), *_FLAGS, *_LINK)


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    try:
        done = zig.run(command, cwd)
    except OSError as error:
        raise ToolchainError(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        printed = (done.stderr or done.stdout).strip()[-4000:]
        raise ToolchainError(f"the C tool chain failed (status {done.returncode}):\n  {_shown(command)}\n{printed}")
    return done.stdout


def _shown(command: Sequence[str]) -> str:
    return " ".join(command if len(command) < 60 else [*command[:30], "...", *command[-10:]])
