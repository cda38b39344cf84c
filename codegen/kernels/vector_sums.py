"""The loops that all kernels of vector_gemv.py share: chunks of outputs, spans of inputs, and what becomes of the sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Any

from sparsec.codegen.isa.epilogue import apply_activation
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import gemv_inputs
from sparsec.codegen.kernels.vector_weights import MOST_UNITS, inputs_params, padded_rows, tiles_at_once


class VectorSums:
    """What both kinds of activations share. `lanes`: numbers looked up at once; `units`: codes of a word."""

    lanes: int
    units: int

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.rows, self.tile = padded_rows(p), p["tile"]
        self.words = ceil(p["k"] / 32) * 8 // self.units
        # Words of a span: those of a group, or as many as sums can take.
        self.span = (p["group"] or 4 * MOST_UNITS[p["form"]]) // (4 * self.units)
        self.spans = ceil(ceil(p["k"] / (4 * self.units)) / self.span)

    def write(self) -> None:
        T, k, most = self.T, self.k, tiles_at_once(self.p)
        with T.If(k.lo < k.hi), T.Then(), T.serial(0, self.p["m"]) as row:
            self._prepare(row)
            with T.serial(0, T.truncdiv(k.hi - k.lo + (most - 1), most)) as chunk:
                first = bind(k, k.lo + chunk * most)
                self.first = bind(k, first * self.tile)
                self.count = bind(k, T.min(k.hi - first, most) * self.tile)
                self._clear("total", k.f32(0.0, k.lanes), k.lanes)
                with T.serial(0, self.spans) as span:
                    self._span(span, bind(k, T.min(self.words - span * self.span, self.span)))
                self._finish(row)

    def _each(self, lanes: int, body: Callable[[Any], None], *, step: int = 1) -> None:
        """`body` for the first output of every vector (of `step` vectors) of the chunk."""
        with self.T.serial(0, self.T.truncdiv(self.count, lanes * step)) as i:
            body(bind(self.k, i * (lanes * step)))

    def _clear(self, name: str, zero: Any, lanes: int) -> None:
        self._each(lanes, lambda at: self.k.store(self.k.arg(name), at, zero, lanes))

    def _prepare(self, row: Any) -> None:
        """Before all outputs of a row of activations."""

    def _span(self, span: Any, words: Any) -> None:
        """Add the words of a span to `total`."""
        raise AssertionError

    def _x_scale(self) -> Any:
        return None

    def _group_scale(self, span: Any, at: Any, lanes: int) -> Any:
        k = self.k
        return self.T.Cast(f"float32x{lanes}", k.load(k.arg("scales"), span * self.rows + self.first + at, lanes))

    def _finish(self, row: Any) -> None:
        """Scales of whole rows, bias, residual, activation, and the stores."""
        T, k, p, n = self.T, self.k, self.p, self.k.lanes
        factor = self._x_scale()
        if p["scales"] == "tensor":
            scale = k.load(k.arg("scales"), 0)
            factor = scale if factor is None else factor * scale
        factor = None if factor is None else bind(k, factor)

        def store(at: Any, width: int) -> None:
            to = self.first + at
            of_row = to + row * p["rows"]
            value = k.load(k.arg("total"), at, width)
            if p["scales"] == "channel":
                value = value * k.load(k.arg("scales"), to, width)
            if factor is not None:
                value = value * k.splat(factor, width)
            if p["bias"]:
                value = value + k.load(k.arg("bias"), to, width)
            if p["residual"]:
                value = value + k.load(k.arg("residual"), of_row, width)
            k.store(k.arg("y"), of_row, apply_activation(k, p["act"], p["act_params"], value, width), width)

        count = bind(k, T.min(self.count, p["rows"] - self.first))
        with T.serial(0, T.truncdiv(count, n)) as i:
            store(i * n, n)
        rest = p["rows"] % n
        if rest:
            with T.If(self.first + self.count > p["rows"]), T.Then():
                for at, width in pieces(rest, n):
                    store(bind(k, count - rest + at), width)


class WholeSums(VectorSums):
    """Rounded inputs, sums in whole numbers."""

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        super().__init__(p, k)
        self.inputs = gemv_inputs.Inputs(inputs_params(p), k)

    def _prepare(self, row: Any) -> None:
        self.inputs.quantise(row, self.T.int32(0))

    def _x_scale(self) -> Any:
        k = self.k
        scale = k.load(k.arg("book_scale"), 0)
        return scale if self.p["x_group"] else scale * k.load(k.arg("xscale"), 0)

    @contextmanager
    def _words(self, span: Any, words: Any) -> Iterator[Any]:
        """The words of a span one after the other, with `low` and `high` zero before the first."""
        T, k, n = self.T, self.k, self.lanes
        for name in ("low", "high"):
            self._clear(name, k.splat(T.int16(0), n), n)
        with T.serial(0, words) as i:
            yield bind(k, span * self.span + i)

    def _products(self, x0: Any) -> Iterator[Any]:
        """Products of four inputs with half the codebook: vectors of 16 int16."""
        T, k, n = self.T, self.k, 16
        x = [bind(k, k.splat(T.Cast("int16", k.load(k.arg("xq"), x0 + e)), n)) for e in range(4)]
        for at in range(0, 128, n):
            first, second, third, fourth = (k.load(k.arg("book"), 256 * e + at, n) * x[e] for e in range(4))
            held = k.local(n, "int16")
            k.store(held, 0, (first + second) + (third + fourth), n)
            yield k.load(held, 0, n)

    def _sums_modulo(self, at: Any, n: int) -> Any:
        """n sums as int32: `low` has them modulo 2**16, `high` the sums of the products' upper bytes."""
        T, k = self.T, self.k
        high = bind(k, T.Cast(f"int32x{n}", k.load(k.arg("high"), at, n)) << k.i32(8, n))
        low = T.Cast(f"int32x{n}", k.load(k.arg("low"), at, n))
        return high + ((low - high) & k.i32(0xFFFF, n))

    def _sums_of_bytes(self, at: Any, n: int) -> Any:
        """n sums as int32: `low` has those of the lower bytes (signed), `high` those of the upper ones."""
        T, k = self.T, self.k
        low, high = (T.Cast(f"int32x{n}", k.load(k.arg(name), at, n)) for name in ("low", "high"))
        return (high << k.i32(8, n)) + low

    def _flush(self, span: Any, at: Any, whole: Any) -> None:
        """total += `whole`, 16 sums as int32, for the outputs from `at` on."""
        T, k, n = self.T, self.k, 16
        value = T.Cast(f"float32x{n}", whole)
        if self.p["scales"] == "group":
            value = value * self._group_scale(span, at, n)
        if self.p["x_group"]:
            value = value * k.splat(k.load(k.arg("xscale"), span), n)
        k.store(k.arg("total"), at, k.load(k.arg("total"), at, n) + value, n)
