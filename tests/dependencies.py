"""Who depends on whom: Python modules from their imports, C files from their includes and the symbols of their objects."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.elf import read_elf

Graph = dict[str, set[str]]


def python_files(packages: Mapping[str, Path]) -> dict[str, Path]:
    """Module name -> file, for packages given as name -> folder; an outer package leaves out folders of an inner one."""
    found: dict[str, Path] = {}
    for package, folder in packages.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [*package.split("."), *path.relative_to(folder).with_suffix("").parts]
            found.setdefault(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path)
    return found


def python_imports(files: Mapping[str, Path]) -> Graph:
    """Module -> modules of `files` it imports, anywhere in it: at the top, inside functions, for type checkers only."""
    return {name: _imports(name, path, files) - {name} for name, path in files.items()}


def _imports(name: str, path: Path, files: Mapping[str, Path]) -> set[str]:
    found: set[str] = set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {_nearest(alias.name, files) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {_nearest(f"{module}.{alias.name}", files) for alias in node.names}
    return found - {""}


def _nearest(dotted: str, files: Mapping[str, Path]) -> str:
    """The module that `dotted` (a module, or a name inside one) lies in; "" for somebody else's."""
    while dotted and dotted not in files:
        dotted = dotted.rpartition(".")[0]
    return dotted


def c_includes(folder: Path) -> Graph:
    """File name -> files of the folder it includes."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in (".c", ".h")}
    pattern = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
    return {name: set(pattern.findall(path.read_text())) & set(files) for name, path in files.items()}


def c_symbol_uses(objects: Iterable[Path]) -> Graph:
    """Object's stem + ".c" -> those whose global symbols it needs."""
    facts = {path.with_suffix(".c").name: read_elf(path) for path in objects}
    return {
        user: {maker for maker, other in facts.items() if maker != user and fact.undefined & other.defined}
        for user, fact in facts.items()
    }


def contract(graph: Graph, package: str) -> Graph:
    """The graph of what lies directly in `package` ("" for the outermost): each of its sub-packages is one node.

    What lies outside of the package is left out; the package's own `__init__` is the node of its name.
    """
    prefix = f"{package}." if package else ""

    def node(name: str) -> str | None:
        if name == package:
            return name
        return prefix + name[len(prefix) :].split(".")[0] if name.startswith(prefix) else None

    result: Graph = {}
    for user, used in graph.items():
        source = node(user)
        if source is not None:
            result.setdefault(source, set()).update({t for u in used if (t := node(u)) is not None} - {source})
    return result


def cycles(graph: Graph) -> list[list[str]]:
    """The strongly connected sets of two or more nodes, each sorted (Tarjan, SIAM J. Comput. 1(2), 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found
