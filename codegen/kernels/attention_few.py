"""Attention of a few queries, as when decoding with a cache: vectors run over the elements of a head.

All queries that share a head of k and v (groups of heads, a few positions) are computed together, so that k and v are read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa.transpose import transpose
from sparsec.codegen.isa.vecmath import bind, exp_negative
from sparsec.codegen.kernels.rows import for_run, reduce_run
from sparsec.codegen.program import Arg

_LOWEST = -3.4028234663852886e38
_ROWS = 4  # queries computed together


def work(p: Mapping[str, Any]) -> tuple[Arg, ...]:
    """Scratch: the weights of every key, a row for each query computed together."""
    return (Arg("weights", "float32", min(_ROWS, p["groups"] * p["t"]) * p["s"], "work"),)


def build(p: Mapping[str, Any], k: Any) -> None:
    """A unit is one head of k and v; parameters as in attention.py, masks with a key stride of 1."""
    T, groups = k.T, p["groups"]
    kv_heads = p["heads"] // groups
    queries = [(g, t) for g in range(groups) for t in range(p["t"])]
    with T.serial(k.lo, k.hi) as unit:
        batch, head = bind(k, T.truncdiv(unit, kv_heads)), bind(k, T.truncmod(unit, kv_heads))
        for i in range(0, len(queries), _ROWS):
            _Few(p, k, batch, head, queries[i : i + _ROWS]).write()


class _Few:
    def __init__(self, p: Mapping[str, Any], k: Any, batch: Any, head: Any, queries: list[tuple[int, int]]) -> None:
        self.p, self.k, self.T, self.queries = p, k, k.T, queries
        self.batch, self.head = batch, head
        self.weights = k.arg("weights")

    def _start(self, name: str, group: int = 0, row: int = 0) -> Any:
        s, grouped = self.p[name], name in ("q", "out", "mask")
        head = self.head * self.p["groups"] + group if grouped else self.head
        return bind(self.k, self.batch * s["batch"] + head * s["head"] + row * s["row"])

    def write(self) -> None:
        """Scores, softmax, weighted sum."""
        self._scores()
        totals = [self._softmax(r, t) for r, (_, t) in enumerate(self.queries)]
        self._sum(totals)

    def _scores(self) -> None:
        T, k, p = self.T, self.k, self.p
        width = 1 << (min(k.lanes, p["d"]).bit_length() - 1)
        chunks, row = p["d"] // width, p["k"]["row"]
        keys = self._start("k")
        q_at = [self._start("q", g, t) for g, t in self.queries]
        masks = [self._start("mask", g, t) if p["mask"] else None for g, t in self.queries]
        with T.serial(0, p["s"] // width) as group:
            first = bind(k, keys + group * (width * row))
            for r, query in enumerate(q_at):
                partial = []
                for i in range(width):
                    sum_ = k.f32(0.0, width)
                    for c in range(chunks):
                        left = k.load(k.arg("q"), query + c * width, width)
                        sum_ = sum_ + left * k.load(k.arg("k"), first + i * row + c * width, width)
                    partial.append(bind(k, sum_))
                lanes = transpose(k, partial) if width > 1 else partial
                while len(lanes) > 1:
                    lanes = [bind(k, a + b) for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
                dots = k.local(width)
                k.store(dots, 0, lanes[0], width)
                if p["d"] % width:
                    self._rest(dots, query, first, width, chunks * width)
                self._keep(r, group * width, k.load(dots, 0, width), masks[r], width)
        if p["s"] % width:
            with T.serial(p["s"] // width * width, p["s"]) as key:
                for r, query in enumerate(q_at):
                    dot = k.local(1)
                    k.store(dot, 0, T.float32(0))
                    with T.serial(0, p["d"]) as d:
                        product = k.load(k.arg("q"), query + d) * k.load(k.arg("k"), keys + key * row + d)
                        k.store(dot, 0, k.load(dot, 0) + product)
                    self._keep(r, key, k.load(dot, 0), masks[r], 1)

    def _rest(self, dots: Any, query: Any, first: Any, width: int, done: int) -> None:
        """Elements of the head beyond the whole vectors."""
        k, p = self.k, self.p
        for i in range(width):
            with self.T.serial(done, p["d"]) as d:
                product = k.load(k.arg("q"), query + d) * k.load(k.arg("k"), first + i * p["k"]["row"] + d)
                k.store(dots, i, k.load(dots, i) + product)

    def _keep(self, r: int, key: Any, dot: Any, mask: Any, lanes: int) -> None:
        k, p = self.k, self.p
        score = dot * k.f32(p["scale"], lanes)
        if mask is not None:
            # finite, so that a row of which all keys are hidden weighs them alike, as in attention.py
            score = score + self.T.max(k.f32(_LOWEST, lanes), k.load(k.arg("mask"), mask + key, lanes))
        k.store(self.weights, r * p["s"] + key, score, lanes)

    def _softmax(self, r: int, t: int) -> Any:
        """Turn scores into exp(score - maximum), zero after a causal query's own key; returns their sum (a local of one)."""
        k, p, weights = self.k, self.p, self.weights
        keys = max(0, p["s"] - p["t"] + t + 1) if p["causal"] else p["s"]
        base = r * p["s"]
        top = reduce_run(
            k,
            keys,
            lambda lanes: k.f32(_LOWEST, lanes),
            lambda i, lanes: k.load(weights, base + i, lanes),
            lambda a, b, lanes: self.T.max(a, b),
        )

        def weight(i: Any, lanes: int) -> Any:
            shifted = k.load(weights, base + i, lanes) - k.splat(k.load(top, 0), lanes)
            value = bind(k, exp_negative(k, shifted, lanes))
            k.store(weights, base + i, value, lanes)
            return value

        total = reduce_run(k, keys, lambda lanes: k.f32(0.0, lanes), weight, lambda a, b, lanes: a + b)
        if keys < p["s"]:
            for_run(
                k,
                p["s"] - keys,
                lambda i, lanes: k.store(weights, base + keys + i, k.f32(0.0, lanes), lanes),
            )
        return total

    def _sum(self, totals: list[Any]) -> None:
        """out = weights . v / total, a few vectors of the head at a time."""
        T, k, p, rows = self.T, self.k, self.p, len(self.queries)
        start = self._start("v")
        out = [self._start("out", g, t) for g, t in self.queries]
        at, width = 0, k.lanes
        while at < p["dv"]:
            while width > p["dv"] - at:
                width //= 2
            count = min(2, (p["dv"] - at) // width)
            acc = k.local(rows * count * width)
            for i in range(0, rows * count * width, width):
                k.store(acc, i, k.f32(0.0, width), width)
            with T.serial(0, p["s"]) as key:
                value = [
                    bind(k, k.load(k.arg("v"), start + key * p["v"]["row"] + at + c * width, width))
                    for c in range(count)
                ]
                for r in range(rows):
                    factor = k.splat(k.load(self.weights, r * p["s"] + key), width)
                    for c in range(count):
                        slot = (r * count + c) * width
                        k.store(acc, slot, k.load(acc, slot, width) + factor * value[c], width)
            for r in range(rows):
                factor = bind(k, T.float32(1) / k.load(totals[r], 0))
                for c in range(count):
                    result = k.load(acc, (r * count + c) * width, width) * k.splat(factor, width)
                    k.store(k.arg("out"), out[r] + at + c * width, result, width)
            at += count * width
