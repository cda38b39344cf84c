"""Normalisation of columns: y[f, t] = (x[f, t] - mean[t]) / sqrt(variance[t] + epsilon) * scale[f] + bias[f], for [images, n, pixels].

Layer and RMS normalisation of channels-last values [images, tokens, n], whose tokens lie side by side. Vectors run over tokens, so
nothing is summed up across lanes. A unit is a block of tokens; it is brought into scratch, where its rows lie side by side: at a
distance that is a power of two they would meet in a few sets of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind, sqrt
from sparsec.codegen.kernels.last_tile import with_size
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

# Tokens of a block: a line of the cache.
_WIDTH = 16
# Sums that are taken side by side: each addition waits for the one before.
_CHAINS = 4


def _width(target: Target) -> int:
    return max(_WIDTH, target.lanes)


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x [images, n, pixels], scale? [n], bias? [n], y like x; work: a block. Units: blocks of pixels of all images."""
    count, width = p["images"] * p["n"] * p["pixels"], _width(target)
    args = [Arg("x", "float32", count, "in")]
    args += [Arg(name, "float32", p["n"], "in") for name in ("scale", "bias") if p[name]]
    args += [Arg("y", "float32", count, "out"), Arg("block", "float32", p["n"] * width, "work")]
    return Signature(tuple(args), units=p["images"] * ceil(p["pixels"] / width), cost=8 * count)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    T, pixels, width = k.T, p["pixels"], _width(k.target)
    blocks = ceil(pixels / width)
    with T.serial(k.lo, k.hi) as unit:
        image = bind(k, T.truncdiv(unit, blocks))
        block = bind(k, unit - image * blocks)
        at = bind(k, image * (p["n"] * pixels) + block * width)

        def write(count: int, at: Any = at) -> None:
            _block(p, k, at, count)

        with_size(k, block, pixels, width, write)


def _block(p: Mapping[str, Any], k: Any, at: Any, count: int) -> None:
    """`count` columns from x[at] on."""
    T, n, lanes, width = k.T, p["n"], k.lanes, _width(k.target)
    x, y, held = k.arg("x"), k.arg("y"), k.arg("block")
    columns = range(0, ceil(count / lanes) * lanes, lanes)
    sets = max(1, _CHAINS // len(columns))

    def summed(term: Any) -> list[Any]:
        """The sums of term(row, column) over all rows, one vector for each of `columns`."""
        sums = k.local(sets * width)
        for j in range(0, sets * width, lanes):
            k.store(sums, j, k.f32(0.0, lanes), lanes)

        def add(row: Any, chain: int) -> None:
            for j in columns:
                slot = chain * width + j
                k.store(sums, slot, k.load(sums, slot, lanes) + term(row, j), lanes)

        with T.serial(0, n // sets) as step:
            for chain in range(sets):
                add(bind(k, step * sets + chain), chain)
        for chain in range(n % sets):
            add(T.int32(n // sets * sets + chain), chain)
        found = []
        for j in columns:
            total = k.load(sums, j, lanes)
            for chain in range(1, sets):
                total = total + k.load(sums, chain * width + j, lanes)
            found.append(bind(k, total))
        return found

    def brought(row: Any, j: int) -> Any:
        if count - j >= lanes:
            value = bind(k, k.load(x, at + row * p["pixels"] + j, lanes))
            k.store(held, row * width + j, value, lanes)
            return value if p["centre"] else value * value
        k.store(held, row * width + j, k.f32(0.0, lanes), lanes)
        for a, w in pieces(count - j, lanes):
            k.store(held, row * width + j + a, k.load(x, at + row * p["pixels"] + j + a, w), w)
        value = bind(k, k.load(held, row * width + j, lanes))
        return value if p["centre"] else value * value

    sums = summed(brought)
    if p["centre"]:
        means = [bind(k, total * k.f32(1.0 / n, lanes)) for total in sums]

        def centred(row: Any, j: int) -> Any:
            value = bind(k, k.load(held, row * width + j, lanes) - means[j // lanes])
            k.store(held, row * width + j, value, lanes)
            return value * value

        sums = summed(centred)
    factors = []  # in buffers, of which the last columns take parts
    for total in sums:
        variance = bind(k, total * k.f32(1.0 / n, lanes) + k.f32(p["epsilon"], lanes))
        factors.append(k.local(lanes))
        k.store(factors[-1], 0, k.f32(1.0, lanes) / sqrt(k, variance, lanes), lanes)
    with T.serial(0, n) as row:
        given = {name: bind(k, k.load(k.arg(name), row)) for name in ("scale", "bias") if p[name]}
        for j, factor in zip(columns, factors, strict=True):
            for a, w in pieces(min(count - j, lanes), lanes):
                value = k.load(held, row * width + j + a, w) * k.load(factor, a, w)
                if p["scale"]:
                    value = value * k.splat(given["scale"], w)
                if p["bias"]:
                    value = value + k.splat(given["bias"], w)
                k.store(y, at + row * p["pixels"] + j + a, value, w)
