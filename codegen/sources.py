"""Which source files decide what a kernel family generates: its file and what that imports, found by reading the imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import sparsec.runtime
from sparsec import errors
from sparsec.cache import digest, load, source_digest, store
from sparsec.codegen.program import family_module

_CODEGEN = Path(__file__).parent
_PACKAGE = Path(errors.__file__).parent
# Parts of codegen that kernels import for lowering, and that never see a kernel being built.
_LOWERING_ONLY = {"sparsec.codegen.context", "sparsec.codegen.lower", "sparsec.codegen.fusion"}
# What every kernel is built with, and what GPU kernels are built with beside it.
_ALWAYS = ("sparsec.codegen.tvm_adapter", "sparsec.codegen.program")
_GPU = ("sparsec.codegen.cuda.objects", "sparsec.codegen.cuda.generic")
_GPU_FILES = (_CODEGEN / "cuda" / "device.cuh", Path(sparsec.runtime.__file__).parent / "src" / "spc_cuda.h")


@cache
def family_digest(family: str, gpu: bool = False) -> str:
    """Hash of the sources behind one kernel family (codegen/kernels/<family>.py, codegen/cuda/kernels/), built for a CPU or a GPU."""
    # Reading imports takes a third of a second: what was found for the very same sources is kept.
    key = digest(family, source_digest(*_GPU_FILES) if gpu else "", _all_sources())
    found = load("sources", key)
    if found is not None:
        return str(found[0]["digest"])
    made = source_digest(*family_sources(family, gpu))[:16]
    store("sources", key, {"digest": made}, {})
    return made


@cache
def _all_sources() -> str:
    files = [*_CODEGEN.rglob("*.py"), *(path for path in _PACKAGE.rglob("*.py") if _CODEGEN not in path.parents)]
    return digest(*(part for path in sorted(files) for part in (str(path.relative_to(path.anchor)), path.read_bytes())))


def family_sources(family: str, gpu: bool = False) -> list[Path]:
    """The family's file, everything of codegen that it reaches through imports, and the modules of sparsec those name."""
    found: dict[str, Path] = {}
    todo = [family_module(family), *_ALWAYS, *(_GPU if gpu else ())]
    while todo:
        name = todo.pop()
        path = _file_of(name)
        if path is None or name in found or name in _LOWERING_ONLY:
            continue
        found[name] = path
        if name.startswith("sparsec.codegen."):
            todo += _imports(path)
    return sorted([*found.values(), *(_GPU_FILES if gpu else ())])


@cache
def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return sorted({name for name in names if name.startswith("sparsec.")})


def _file_of(module: str) -> Path | None:
    """The file of a module of sparsec; None for a package or a name inside a module."""
    parts = module.split(".")[1:]
    root = _CODEGEN.joinpath(*parts[1:]) if parts[0] == "codegen" else _PACKAGE.joinpath(*parts)
    file = root.with_suffix(".py")
    return file if file.is_file() else None
