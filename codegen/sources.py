"""Which source files decide what a kernel family generates: its file and what that imports, found by reading the imports."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from sparsec import errors

_CODEGEN = Path(__file__).parent
_PACKAGE = Path(errors.__file__).parent
# Parts of codegen that kernels import for lowering, and that never see a kernel being built.
_LOWERING_ONLY = {"sparsec.codegen.context", "sparsec.codegen.lower", "sparsec.codegen.fusion"}
# What every kernel is built with.
_ALWAYS = ("sparsec.codegen.tvm_adapter", "sparsec.codegen.program")


@cache
def family_digest(family: str) -> str:
    """Hash of the sources behind one kernel family (codegen/kernels/<family>.py)."""
    digest = hashlib.sha256()
    for path in family_sources(family):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def family_sources(family: str) -> list[Path]:
    """The family's file, everything of codegen that it reaches through imports, and the modules of sparsec those name."""
    found: dict[str, Path] = {}
    todo = [f"sparsec.codegen.kernels.{family}", *_ALWAYS]
    while todo:
        name = todo.pop()
        path = _file_of(name)
        if path is None or name in found or name in _LOWERING_ONLY:
            continue
        found[name] = path
        if name.startswith("sparsec.codegen."):
            todo += _imports(path)
    return sorted(found.values())


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
