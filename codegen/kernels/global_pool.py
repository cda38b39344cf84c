"""Global pooling of channels-last images: the mean or maximum over all pixels of each channel. Lowered by pool.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.kernels.window import channel_pieces
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

_VECTORS = 4  # channel vectors summed side by side: independent chains hide the latency of the adds


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x [N, pixels, C], out [N, C]. Units: (image, chunk of channels)."""
    batch, channels, pixels = p["batch"], p["channels"], p["pixels"]
    args = (
        Arg("x", "float32", batch * pixels * channels, "in"),
        Arg("out", "float32", batch * channels, "out"),
    )
    return Signature(args, batch * len(_chunks(channels, target.lanes)), batch * pixels * channels)


def _chunks(channels: int, lanes: int) -> list[tuple[int, int]]:
    """(first channel, channels) of each unit: whole chunks, then one narrower chunk."""
    size = lanes * min(_VECTORS, max(1, channels // lanes))
    return [(at, min(size, channels - at)) for at in range(0, channels, size)]


def build(p: Mapping[str, Any], k: Any) -> None:
    """One pass over the pixels per chunk of channels."""
    T, channels, pixels = k.T, p["channels"], p["pixels"]
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


def _chunk(p: Mapping[str, Any], k: Any, source: Any, target: Any, width: int) -> None:
    T, channels, pixels = k.T, p["channels"], p["pixels"]
    pieces = channel_pieces(width, k.lanes)
    start = float("-inf") if p["op"] == "max" else 0.0
    acc = [k.local(n) for _, n in pieces]

    def join(a: Any, b: Any) -> Any:
        return T.max(a, b) if p["op"] == "max" else a + b

    for (_, n), a in zip(pieces, acc, strict=True):
        k.store(a, 0, k.f32(start, n), n)
    with T.serial(0, pixels) as i:
        for (c, n), a in zip(pieces, acc, strict=True):
            k.store(a, 0, join(k.load(a, 0, n), k.load(k.arg("x"), source + i * channels + c, n)), n)
    for (c, n), a in zip(pieces, acc, strict=True):
        value = k.load(a, 0, n)
        k.store(k.arg("out"), target + c, value if p["op"] == "max" else value * k.f32(1.0 / pixels, n), n)
