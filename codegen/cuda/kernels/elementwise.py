"""Chains of elementwise operators: kernels/elementwise.py with a thread for 8 neighbouring elements, moved as a whole.

Where the innermost dimension is no multiple of 8 and there are several rows of it, a thread computes one element.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from sparsec.codegen.cuda import vectors
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.cuda.portable import Held
from sparsec.codegen.kernels.elementwise import _element, _merged
from sparsec.codegen.kernels.elementwise import signature as signature
from sparsec.target import Target

_BLOCK = 128


def _width(p: Mapping[str, Any]) -> int:
    """Elements of a thread."""
    dims, strides = _merged(p)
    whole = dims[-1] % vectors.WIDTH == 0 or (len(dims) == 1 and dims[0] > vectors.WIDTH)
    return vectors.WIDTH if whole and all(s[-1] in (0, 1) for s in strides) else 1


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A thread for each run of elements."""
    dims, _ = _merged(p)
    threads = prod(dims[:-1]) * -(-dims[-1] // _width(p))
    return lines(-(-threads // _BLOCK), _BLOCK)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Where the run begins in every operand, then the run."""
    T = k.T
    dims, strides = _merged(p)
    width, inner = _width(p), dims[-1]
    runs = -(-inner // width)
    index = k.let(k.block[0] * _BLOCK + k.thread[0])
    with T.If(index < prod(dims[:-1]) * runs), T.Then():
        row = k.let(T.truncdiv(index, runs))
        at = k.let(T.truncmod(index, runs) * width)
        base = []
        for s in strides:
            place: Any = T.int32(0)
            left: Any = row
            for d in range(len(dims) - 2, -1, -1):
                place = place + T.truncmod(left, dims[d]) * s[d]
                left = T.truncdiv(left, dims[d])
            base.append(k.let(place))
        out = k.let(row * inner)
        if width == 1:
            _element(p, Held(k, 0), base, strides, out, at, 1)
            return
        streams = [(f"x{i}", base[i]) for i, s in enumerate(strides) if s[-1] == 1]
        test = vectors.aligned(k, [(k.arg(name), place + at) for name, place in [*streams, ("out", out)]])
        if inner % width:
            test = T.And(at + width <= inner, test)
        with T.If(test):
            with T.Then():
                registers = {name: vectors.run(k, k.arg(name).dtype) for name in [n for n, _ in streams] + ["out"]}
                for name, place in streams:
                    vectors.move(k, registers[name], 0, k.arg(name), place + at)
                with T.serial(0, width) as lane:
                    held = Held(k, lane)
                    for name, buffer in registers.items():
                        held.hold(name, buffer)
                    _element(p, held, base, strides, out, at + lane, 1)
                vectors.move(k, k.arg("out"), out + at, registers["out"], 0)
            with T.Else(), T.serial(0, T.min(width, inner - at)) as lane:
                _element(p, Held(k, 0), base, strides, out, at + lane, 1)
