"""What onnx_ir hardly uses is loaded on first use, and works then."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import sparsec
import onnx_ir
assert "sympy.core" not in sys.modules, "sympy was loaded with onnx_ir"
total = onnx_ir.SymbolicDim("batch") + 3
assert "sympy.core" in sys.modules
assert str(total.evaluate({"batch": 4})) == "7", total
import sympy.core.symbol
assert isinstance(sympy.Symbol("x"), sympy.core.symbol.Symbol)
"""


def test_symbolic_dimensions_load_sympy() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
