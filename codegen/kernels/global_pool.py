"""Global pooling: the mean or maximum over all pixels of each channel, in either layout. Lowered by pool.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

_PLANES = 16  # of a unit in row order: a cache line of results
_VECTORS = 4  # channel vectors summed side by side: independent chains hide the latency of the adds


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x [N, pixels, C] or [N, C, pixels], out [N, C]. Units: (image, chunk of channels), or runs of planes."""
    batch, channels, pixels = p["batch"], p["channels"], p["pixels"]
    args = (
        Arg("x", "float32", batch * pixels * channels, "in"),
        Arg("out", "float32", batch * channels, "out"),
    )
    if p["layout"] == "row":
        return Signature(args, -(-batch * channels // _PLANES), batch * pixels * channels)
    return Signature(args, batch * len(_chunks(channels, target.lanes)), batch * pixels * channels)


def _chunks(channels: int, lanes: int) -> list[tuple[int, int]]:
    """(first channel, channels) of each unit: whole chunks, then one narrower chunk."""
    size = lanes * min(_VECTORS, max(1, channels // lanes))
    return [(at, min(size, channels - at)) for at in range(0, channels, size)]


def build(p: Mapping[str, Any], k: Any) -> None:
    """One pass over the pixels per chunk of channels."""
    T, channels, pixels = k.T, p["channels"], p["pixels"]
    if p["layout"] == "row":
        _planes(p, k)
        return
    chunks = _chunks(channels, k.lanes)
    size = chunks[0][1]
    narrow = chunks[-1][1]
    with T.serial(k.lo, k.hi) as unit:
        image = T.bind(T.truncdiv(unit, len(chunks)))
        index = T.bind(unit - image * len(chunks))
        source = T.bind(image * (pixels * channels) + index * size)
        target = T.bind(image * channels + index * size)
        if narrow == size:
            _chunk(p, k, source, target, size)
        else:
            with T.If(index < len(chunks) - 1):
                with T.Then():
                    _chunk(p, k, source, target, size)
                with T.Else():
                    _chunk(p, k, source, target, narrow)


def _planes(p: Mapping[str, Any], k: Any) -> None:
    """Row order: a plane is contiguous, its vectors are joined at the end."""
    T, pixels, total = k.T, p["pixels"], p["batch"] * p["channels"]
    lanes = k.lanes
    while lanes > pixels:
        lanes //= 2
    whole = pixels // lanes
    chains = min(_VECTORS, whole)
    x, acc = k.arg("x"), k.local(chains * lanes)

    def join(a: Any, b: Any) -> Any:
        return T.max(a, b) if p["op"] == "max" else a + b

    def add(chain: int, at: Any) -> None:
        k.store(acc, chain * lanes, join(k.load(acc, chain * lanes, lanes), k.load(x, at, lanes)), lanes)

    start = float("-inf") if p["op"] == "max" else 0.0
    with T.serial(k.lo * _PLANES, T.min(k.hi * _PLANES, total)) as plane:
        at = T.bind(plane * pixels)
        for chain in range(chains):
            k.store(acc, chain * lanes, k.f32(start, lanes), lanes)
        with T.serial(0, whole // chains) as i:
            for chain in range(chains):
                add(chain, at + (i * chains + chain) * lanes)
        for vector in range(whole // chains * chains, whole):
            add(vector % chains, at + vector * lanes)
        value = k.load(acc, 0, lanes)
        for chain in range(1, chains):
            value = join(value, k.load(acc, chain * lanes, lanes))
        size = lanes
        while size > 1:  # halve the vector
            value, size = T.bind(value), size // 2
            low, high = (T.Shuffle([value], list(range(h, h + size))) for h in (0, size))
            value = join(low, high)
        value = T.bind(value)
        for pixel in range(whole * lanes, pixels):
            value = join(value, k.load(x, at + pixel))
        k.store(k.arg("out"), plane, value if p["op"] == "max" else value * T.float32(1.0 / pixels))


def _chunk(p: Mapping[str, Any], k: Any, source: Any, target: Any, width: int) -> None:
    T, channels, pixels = k.T, p["channels"], p["pixels"]
    parts = pieces(width, k.lanes)
    start = float("-inf") if p["op"] == "max" else 0.0
    acc = [k.local(n) for _, n in parts]

    def join(a: Any, b: Any) -> Any:
        return T.max(a, b) if p["op"] == "max" else a + b

    for (_, n), a in zip(parts, acc, strict=True):
        k.store(a, 0, k.f32(start, n), n)
    with T.serial(0, pixels) as i:
        for (c, n), a in zip(parts, acc, strict=True):
            k.store(a, 0, join(k.load(a, 0, n), k.load(k.arg("x"), source + i * channels + c, n)), n)
    for (c, n), a in zip(parts, acc, strict=True):
        value = k.load(a, 0, n)
        k.store(k.arg("out"), target + c, value if p["op"] == "max" else value * k.f32(1.0 / pixels, n), n)
