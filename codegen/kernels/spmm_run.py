"""Runs of spmm.py: the entries of one strip in one chunk, multiplied into S x vectors sums in registers, and where the sums go.

Numbers are float32, whole (spmm_bytes.py) or fixed-point (spmm_fixed.py). Sums of float32 and whole numbers go on from chunk to
chunk, through scratch; those of groups of values and of 16 bits begin at zero in every run and join float32 sums at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsec.codegen.isa.vecmath import bind, hold
from sparsec.codegen.kernels import spmm_values
from sparsec.codegen.kernels.spmm_bytes import Rounding
from sparsec.codegen.kernels.spmm_fixed import Fixed, in_floats
from sparsec.codegen.kernels.spmm_plan import TileKind, accumulator_sets, in_place, keeps_sums, pitch, sums_pitch
from sparsec.codegen.kernels.spmm_results import Results

Sums = Callable[[int, int], Any]
"""(row of the strip, vector of pixels) -> what has been summed."""


@dataclass(frozen=True)
class Run:
    """Number `number` of a weight's runs, in one tile: `count` entries of `strip` from entry `first` on. sums: which of the strips
    whose sums are in scratch it is; first_value: the entry its first value is of, as values are numbered."""

    kind: TileKind
    image: Any
    pixel: Any
    chunk: Any
    number: Any
    strip: Any
    count: Any
    first: Any
    sums: Any
    first_value: Any


class Runs:
    """Writes the runs of one kernel (`k`: KernelBuilder)."""

    def __init__(
        self, p: Mapping[str, Any], k: Any, rounding: Rounding | None, fixed: Fixed | None, results: Results
    ) -> None:
        self.p, self.k, self.T, self.lanes = p, k, k.T, k.lanes
        self.rounding, self.fixed, self.results = rounding, fixed, results
        self.words = fixed if rounding is None else rounding
        self.dtype = "float32" if self.words is None else "int32"  # of accumulators
        self.values = k.arg("values" if spmm_values.is_plain(p["values"]) else "decoded")
        self.strip: int = p["strip"]
        self.pitch, self.sums_pitch = pitch(p, k.lanes), sums_pitch(p, k.lanes)
        self.in_place = in_place(p)
        self.grouped = rounding is not None and rounding.groups
        self.resumes = p["chunks"] > 1 and not self.grouped and fixed is None

    def write(self, run: Run) -> None:
        """Add the entries of a run to its sums; store them, or the rows they are of if the run is the last of its strip."""
        T, p, k = self.T, self.p, self.k
        acc = k.local(self.strip * run.kind.vectors * self.lanes, self.dtype)
        base: Any = hold(k, run.sums * (self.strip * self.sums_pitch)) if keeps_sums(p) else None
        if self.resumes:
            with T.If(run.chunk > 0):
                with T.Then():
                    for s, v, slot in self._slots(run):
                        k.store(acc, slot, self._kept(base, s, v), self.lanes)
                with T.Else():
                    self._begin(run, acc)
        else:
            self._begin(run, acc)
        self._entries(run, acc)
        if self.fixed is not None:
            self._finish_fixed(self.fixed, run, acc, base)
        elif self.grouped:
            self._join_groups(run, acc, base)
        else:
            self._finish(run, acc, base)

    def _slots(self, run: Run) -> list[tuple[int, int, int]]:
        """(row of the strip, vector, place in the accumulators)."""
        vectors = run.kind.vectors
        return [(s, v, (s * vectors + v) * self.lanes) for s in range(self.strip) for v in range(vectors)]

    def _kept(self, base: Any, s: int, v: int) -> Any:
        """A vector of the sums in scratch."""
        return self.k.load(self.k.arg("sums"), base + s * self.sums_pitch + v * self.lanes, self.lanes)

    def _keep(self, base: Any, s: int, v: int, value: Any) -> None:
        self.k.store(self.k.arg("sums"), base + s * self.sums_pitch + v * self.lanes, value, self.lanes)

    def _zeros(self) -> Any:
        return self.k.splat(self.T.Cast(self.dtype, self.T.int32(0)), self.lanes)

    def _begin(self, run: Run, acc: Any) -> None:
        k = self.k
        for s, _, slot in self._slots(run):
            origin = self._zeros()
            if self.rounding is not None and self.rounding.origins:
                row = (run.number if self.grouped else run.strip) * self.strip + s
                origin = k.splat(k.load(k.arg("origins"), row), self.lanes)
            elif self.results.begun:
                origin = bind(k, k.splat(k.load(k.arg("bias"), run.strip * self.strip + s), self.lanes))
            k.store(acc, slot, origin, self.lanes)

    # --- entries ---

    def _entries(self, run: Run, acc: Any) -> None:
        T, p, k, lanes = self.T, self.p, self.k, self.lanes
        start = bind(k, run.first_value * self.strip)
        origin: Any = bind(k, run.chunk * (p["chunk"] * self.pitch)) if p["whole"] and p["chunks"] > 1 else 0
        if self.in_place:
            origin = hold(k, run.image * (p["k"] * p["pixels"]) + run.pixel)
        if accumulator_sets(self.strip, run.kind.vectors) == 1:
            with T.serial(0, run.count) as e:
                self._add(run, start, origin, e, acc)
            return
        other = k.local(self.strip * run.kind.vectors * lanes, self.dtype)
        for _, _, slot in self._slots(run):
            k.store(other, slot, self._zeros(), lanes)
        pairs = bind(k, run.count >> 1)
        with T.serial(0, pairs) as pair:
            self._add(run, start, origin, bind(k, pair * 2), acc)
            self._add(run, start, origin, bind(k, pair * 2 + 1), other)
        with T.If((run.count & 1) == 1), T.Then():
            self._add(run, start, origin, bind(k, run.count - 1), acc)
        for _, _, slot in self._slots(run):
            a, b = k.load(acc, slot, lanes), k.load(other, slot, lanes)
            k.store(acc, slot, a + b if self.fixed is None else self.fixed.plus(a, b), lanes)

    def _add(self, run: Run, start: Any, origin: Any, e: Any, into: Any) -> None:
        """The products of entry `e` of the run. start: of its values; origin: of the chunk in the panel."""
        T, k, lanes, height, vectors = self.T, self.k, self.lanes, self.strip, run.kind.vectors
        column = bind(
            k, T.Cast("int32", k.load(k.arg("offsets"), run.first + e)) * (self.p["pixels"] if self.in_place else 2)
        )
        places = [start + e * height + s for s in range(height)]
        if self.words is not None:
            words = [self.words.weights(k.load(self.values, place)) for place in places]
            for v in range(vectors):
                x = self.words.inputs(origin + column + v * lanes)
                for s in range(height):
                    slot = (s * vectors + v) * lanes
                    k.store(into, slot, self.words.add(k.load(into, slot, lanes), x, words[s]), lanes)
            return
        weights = [bind(k, k.splat(k.load(self.values, place), lanes)) for place in places]
        panel = k.arg("x" if self.in_place else "panel")
        for v in range(vectors):
            x = k.load(panel, origin + column + v * lanes, lanes)
            if height > 1:
                x = bind(k, x)
            for s in range(height):
                slot = (s * vectors + v) * lanes
                k.store(into, slot, k.load(into, slot, lanes) + x * weights[s], lanes)

    # --- sums ---

    def _finish(self, run: Run, acc: Any, base: Any) -> None:
        T, p, k, lanes = self.T, self.p, self.k, self.lanes

        def value(s: int, v: int) -> Any:
            return k.load(acc, (s * run.kind.vectors + v) * lanes, lanes)

        def keep() -> None:
            for s, v, _ in self._slots(run):
                self._keep(base, s, v, value(s, v))

        if p["dest"] == "tokens":
            keep()
        elif self.resumes:
            with T.If(run.chunk < p["chunks"] - 1):
                with T.Then():
                    keep()
                with T.Else():
                    self.results.planes(run.kind, run.image, run.pixel, run.strip, value)
        else:
            self.results.planes(run.kind, run.image, run.pixel, run.strip, value)

    def _join_groups(self, run: Run, acc: Any, base: Any) -> None:
        """Whole sums of one group, times its scales, join float32 sums."""
        T, k, lanes = self.T, self.k, self.lanes
        for s, v, slot in self._slots(run):
            scale = k.splat(T.Cast("float32", k.load(k.arg("run_scales"), run.number * self.strip + s)), lanes)
            to = bind(k, base + s * self.sums_pitch + v * lanes)
            value = T.Cast(f"float32x{lanes}", k.load(acc, slot, lanes)) * scale
            k.store(k.arg("sums"), to, k.load(k.arg("sums"), to, lanes) + value, lanes)

    def _finish_fixed(self, fixed: Fixed, run: Run, acc: Any, base: Any) -> None:
        """16-bit sums join float32 sums, which begin with the first chunk."""
        T, p = self.T, self.p
        floats, steps = in_floats(run.kind, self.lanes), fixed.steps(run.chunk)
        found = [fixed.sums(run.kind, acc, s, steps) for s in range(self.strip)]

        def first(s: int, v: int) -> Any:
            return found[s][v]

        def more(s: int, v: int) -> Any:
            return self._kept(base, s, v) + found[s][v]

        def keep(value: Sums) -> None:
            for s in range(self.strip):
                for v in range(floats.vectors):
                    self._keep(base, s, v, value(s, v))

        def finish(value: Sums) -> None:
            if p["dest"] == "tokens":
                keep(value)
            else:
                self.results.planes(floats, run.image, run.pixel, run.strip, value)

        if p["chunks"] == 1:
            finish(first)
            return
        with T.If(run.chunk == 0):
            with T.Then():
                keep(first)
            with T.Else(), T.If(run.chunk < p["chunks"] - 1):
                with T.Then():
                    keep(more)
                with T.Else():
                    finish(more)
