"""Modules that a dependency imports at its top and hardly ever uses are loaded on first use."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_RARELY_USED = ("onnx_ir._symbolic_shapes", "sympy")
"""onnx_ir computes with symbolic dimensions through these; here every shape is static. sympy takes half a second."""


class _Finder:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _RARELY_USED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def install() -> None:
    """From now on these modules, if they are not loaded yet, are loaded when an attribute of theirs is first read."""
    sys.meta_path.insert(0, _Finder())
