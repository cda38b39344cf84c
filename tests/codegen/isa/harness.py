"""Runs snippets of vector code on arrays: a snippet is a name, arguments and an emitter; a module's snippets compile together.

Snippets live in a module's SNIPPETS, because TVM runs in a process of its own, which imports that module.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sparsec.codegen import zig
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target, host_target

Array = np.ndarray[Any, Any]
# (k, lanes, values of the inputs) -> value of the output
Emit = Callable[[Any, int, Sequence[Any]], Any]


@dataclass(frozen=True)
class Snippet:
    """Maps `emit` over arrays of `size` elements, `lanes` at a time (None: the target's vector width).

    `inputs` and `output` are element types; booleans arrive as vectors of bool and are stored as bytes. An input of another
    size than `size` (given in `whole` by its position) is not walked over: the emitter gets its buffer.
    """

    inputs: tuple[str, ...]
    output: str
    size: int
    emit: Emit
    lanes: int | None = None
    whole: tuple[tuple[int, int], ...] = ()

    @property
    def signature(self) -> Signature:
        sizes = dict(self.whole)
        ins = [Arg(f"x{i}", dtype, sizes.get(i, self.size), "in") for i, dtype in enumerate(self.inputs)]
        return Signature((*ins, Arg("out", self.output, self.size, "out")), units=1)

    def write(self, k: Any) -> None:
        lanes = self.lanes or k.lanes
        assert self.size % lanes == 0
        with k.T.serial(0, self.size // lanes) as i:
            values = []
            for position, dtype in enumerate(self.inputs):
                buffer = k.arg(f"x{position}")
                value = buffer if position in dict(self.whole) else k.load(buffer, i * lanes, lanes)
                if dtype == "bool":
                    value = value > k.splat(k.T.uint8(0), lanes)
                values.append(value)
            result = self.emit(k, lanes, values)
            if self.output == "bool":
                result = k.T.Select(result, k.splat(k.T.uint8(1), lanes), k.splat(k.T.uint8(0), lanes))
            k.store(k.arg("out"), i * lanes, result, lanes)


def run(module: str, name: str, *arrays: Array, target: Target | None = None) -> Array:
    """The output of snippet `name` of the module's SNIPPETS, which takes `target` and gives name -> Snippet."""
    target = target or host_target()
    snippet = importlib.import_module(module).SNIPPETS(target)[name]
    out = np.full(snippet.size, 0, snippet.output)
    ins = [np.ascontiguousarray(a, d) for a, d in zip(arrays, snippet.inputs, strict=True)]
    for array, arg in zip(ins, snippet.signature.args, strict=False):
        assert array.size == arg.size, arg.name
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*ins, out)]
    library = _library(module, target)
    assert isinstance(library, ctypes.CDLL), library
    assert getattr(library, name)(*pointers, ctypes.c_int32(0), ctypes.c_int32(1)) == 0
    return out


@cache
def _library(module: str, target: Target) -> ctypes.CDLL | str:
    """The compiled snippets, or why they do not compile (found once, not by every test)."""
    with TemporaryDirectory(prefix="sparsec-isa-") as folder:
        return _linked(module, target, Path(folder))


def _linked(module: str, target: Target, folder: Path) -> ctypes.CDLL | str:
    command = [sys.executable, "-m", "tests.codegen.isa.harness", module, json.dumps(asdict(target)), str(folder / "o")]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    if done.returncode:
        return done.stderr
    link = [*zig.command("ld.lld"), "-shared", "-o", str(folder / "k.so"), str(folder / "o")]
    subprocess.run(link, check=True)
    return ctypes.CDLL(str(folder / "k.so"))


def _compile(module: str, target: Target, path: str) -> None:
    from sparsec.codegen.tvm_adapter import build_prim_func, compile_functions

    snippets: dict[str, Snippet] = importlib.import_module(module).SNIPPETS(target)
    built = {name: build_prim_func(name, s.signature, target, s.write) for name, s in snippets.items()}
    compile_functions(built, target, path)


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # TVM would import it
    fields = json.loads(sys.argv[2])
    lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    _compile(sys.argv[1], Target(**{**fields, **lists}), sys.argv[3])
