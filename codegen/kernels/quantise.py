"""Rounding of activations to int8 and back to float32, for products whose kernel has no byte arithmetic (sparsec/int8.py).

A unit is one group of inputs that share a scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from sparsec.codegen.context import Lowering, Tensor
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.program import Arg, Signature
from sparsec.int8 import ACTIVATION_MAX, activation_group
from sparsec.op_view import SparsecNode
from sparsec.target import Target

# Maxima that are taken side by side: each waits for the one before.
_CHAINS = 4


def product_input(op: SparsecNode, low: Lowering) -> Tensor:
    """x of a sparsec::MatMul, rounded to int8 and back where the node says so: for kernels that multiply floats."""
    assert op.x is not None
    source = low.get(op.x)
    if not op.rounds:
        return source
    size = activation_group(op.activations, op.cols) or op.cols
    dest = low.temp("float32", low.shape(op.x), name=f"{op.x.name}.int8")
    params = {"groups": prod(low.shape(op.x)) // size, "size": size}
    low.call("quantise", params, [source], [dest], node=op.node.name or "", op="Quantise", note=op.activations)
    return dest


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x [groups * size]; out: y, like x."""
    total = p["groups"] * p["size"]
    return Signature((Arg("x", "float32", total, "in"), Arg("y", "float32", total, "out")), p["groups"], cost=8 * total)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    T, n, size = k.T, k.lanes, p["size"]
    x, y = k.arg("x"), k.arg("y")
    with T.serial(k.lo, k.hi) as unit:
        start = bind(k, unit * size)
        largest = bind(k, largest_of_run(k, x, start, size))
        inverse = bind(k, inverse_scale(k, largest))
        scale = bind(k, largest * T.float32(1.0 / ACTIVATION_MAX))

        def rounded(at: Any, lanes: int, inverse: Any = inverse, scale: Any = scale) -> None:
            whole = T.nearbyint(k.load(x, at, lanes) * k.splat(inverse, lanes))
            k.store(y, at, whole * k.splat(scale, lanes), lanes)

        if size >= n:
            with T.serial(0, size // n) as i:
                rounded(start + i * n, n)
        for i in range(size // n * n, size):
            rounded(start + i, 1)


def inverse_scale(k: Any, largest: Any) -> Any:
    """What an input is multiplied with; finite for a run of zeros."""
    return k.T.float32(float(ACTIVATION_MAX)) / k.T.max(largest, k.T.float32(1e-30))


def partial_vector(k: Any, x: Any, at: Any, count: int) -> Any:
    """`count` < lanes floats with zeros behind them."""
    held = k.local(k.lanes)
    k.store(held, 0, k.f32(0.0, k.lanes), k.lanes)
    for i in range(count):
        k.store(held, i, k.load(x, at + i))
    return k.load(held, 0, k.lanes)


def largest_of_run(k: Any, x: Any, start: Any, count: int) -> Any:
    """max |x| of `count` floats."""
    T, n = k.T, k.lanes
    chains = max(1, min(_CHAINS, count // n))
    held = [k.local(n) for _ in range(chains)]
    for best in held:
        k.store(best, 0, k.f32(0.0, n), n)

    def take(best: Any, at: Any) -> None:
        k.store(best, 0, T.max(k.load(best, 0, n), T.fabs(k.load(x, at, n))), n)

    together, rest = divmod(count // n, chains)
    if together:
        with T.serial(0, together) as i:
            at = bind(k, start + i * (chains * n))
            for chain, best in enumerate(held):
                take(best, at + chain * n)
    for i, best in zip(range(rest), held, strict=False):
        take(best, start + (together * chains + i) * n)
    best = held[0]
    for other in held[1:]:
        k.store(best, 0, T.max(k.load(best, 0, n), k.load(other, 0, n)), n)
    if count % n:
        rest = partial_vector(k, x, start + count // n * n, count % n)
        k.store(best, 0, T.max(k.load(best, 0, n), T.fabs(rest)), n)
    return T.call_llvm_pure_intrin("float32", "llvm.vector.reduce.fmax", k.load(best, 0, n))
