"""sparsec: a compiler that makes trained neural networks small and fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsec import lazy_imports

if TYPE_CHECKING:
    from sparsec.api import compile, compress, load
    from sparsec.errors import SparsecError
    from sparsec.validation import validate

__version__ = "0.1.0"
__all__ = ["SparsecError", "__version__", "compile", "compress", "load", "validate"]

lazy_imports.install()


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): `import sparsec` must not pay for onnx, numpy or torch.
    if name in ("compile", "compress", "load"):
        from sparsec import api

        return getattr(api, name)
    if name == "validate":
        from sparsec.validation import validate

        return validate
    if name == "SparsecError":
        from sparsec import errors

        return errors.SparsecError
    raise AttributeError(f"module 'sparsec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
