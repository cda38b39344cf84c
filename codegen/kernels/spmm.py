"""Sparse weights times dense activations: y[n, p] = act(sum_k W[n, k] x[k, p] + bias[n] + residual[n, p]), over stored weights only.

The pixel (or token) axis is vectorised: a register tile holds S outputs x `vectors` vectors of pixels, and the inner loop
over the stored columns of a strip loads one offset, broadcasts S weights and multiplies them with the activations at that
offset, as in Elsen et al., "Fast Sparse ConvNets" (CVPR 2020). Activations are packed per tile into a panel [column][pitch],
a chunk of columns at a time, so that the panel stays in level-1 cache; between chunks partial sums wait in a second one.

A unit is (band, image, tile, range of strips), where every group of a convolution has bands of its own: spmm_weights.py says what
these are, spmm_plan.py how large, spmm_pack.py
where activations come from, spmm_values.py how values are decoded, spmm_results.py how results are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from sparsec.codegen.isa.epilogue import activation_cost
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import spmm_bytes, spmm_fixed, spmm_values, spmm_weights
from sparsec.codegen.kernels.spmm_pack import Packer, panel_slack, stage_shape
from sparsec.codegen.kernels.spmm_plan import TileKind, in_place, keeps_sums, pitch, span, sums_pitch, tile_kinds, tiles
from sparsec.codegen.kernels.spmm_results import Results
from sparsec.codegen.kernels.spmm_run import Run, Runs
from sparsec.codegen.kernels.spmm_values import SLACK
from sparsec.codegen.program import FROM_DATA, PIECES, Arg, Signature
from sparsec.target import Target


def _input_size(p: Mapping[str, Any]) -> int:
    w = p.get("window")
    per_image = w["c"] * w["ih"] * w["iw"] if w else p["values"].get("cols", p["k"]) * p["pixels"]
    return int(p["images"] * p.get("groups", 1) * per_image)


def padded_rows(p: Mapping[str, Any]) -> int:
    """Rows of per-row constants: whole strips."""
    return int(ceil(p["n"] / p["strip"]) * p["strip"])


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x, the weight's arrays, bias?, residual?; out: y; work: panel, sums?, decoded values?, staged image rows?."""
    lanes, strip = target.lanes, p["strip"]
    width, out_size = pitch(p, lanes), p["images"] * p["n"] * p["pixels"]
    args = [Arg("x", "float32", _input_size(p), "in"), *spmm_weights.arguments(p)]
    whole, fixed = spmm_bytes.is_whole(p["values"]), spmm_fixed.is_fixed(p["values"])
    if whole:
        args += spmm_bytes.arguments(p["values"], strip, ceil(p["n"] / strip), target)
    elif fixed:
        args += spmm_fixed.arguments(strip, ceil(p["n"] / strip))
    else:
        args += spmm_values.arguments(p["values"], strip, ceil(p["n"] / strip))
    sums = "int32" if whole and not p["values"]["groups"] else "float32"
    if p["bias"]:
        args.append(Arg("bias", "float32", padded_rows(p), "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", out_size, "in"))
    args.append(Arg("y", "float32", out_size, "out"))
    columns = p["k"] if p["whole"] else p["chunk"]
    slack = panel_slack(p, lanes)
    if not in_place(p):
        args.append(Arg("panel", "int32" if whole or fixed else "float32", columns * width + slack, "work"))
    if fixed:
        args += spmm_fixed.work_arguments(p, 2 * width, slack)
    if keeps_sums(p):
        args.append(Arg("sums", sums, FROM_DATA, "work"))
    if whole:
        args += spmm_bytes.work_arguments(width)
    if not spmm_values.is_plain(p["values"]):
        args.append(Arg("decoded", "float32", FROM_DATA, "work"))
    if p["source"] == "window":
        args.append(Arg("stage", "float32", stage_shape(p, lanes, width * int(p.get("per_lane", 1))).size, "work"))
    units = p["bands"] * p["images"] * tiles(p, lanes) * p["ranges"]
    return Signature(tuple(args), units=units, pieces=1 if p["ranges"] > 1 else PIECES)


def scratch(p: Mapping[str, Any], sizes: Mapping[str, int], target: Target) -> dict[str, int]:
    """Floats of the work arguments that depend on the weight (`sizes`: Entries.sizes)."""
    found = {}
    if keeps_sums(p):
        strips = sizes["range_strips"] if p["whole"] else sizes["band_strips"]
        found["sums"] = (strips * p["strip"] + target.lanes) * sums_pitch(p, target.lanes)
    if not spmm_values.is_plain(p["values"]):
        found["decoded"] = sizes["band_entries"] * p["strip"] + SLACK
    return found


def cost(p: Mapping[str, Any], entries: int) -> int:
    """`Signature.cost` for a weight of so many entries."""
    points = p["pixels"] * p["images"]
    return int(2 * entries * p["strip"] * points + points * p["n"] * (2 + activation_cost(p["act"])))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the loop nest (see the module's docstring)."""
    _Spmm(p, k).write()


class _Spmm:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T, self.lanes = p, k, k.T, k.lanes
        self.pitch = pitch(p, k.lanes)
        self.sums_pitch = sums_pitch(p, k.lanes)
        self.kinds = tile_kinds(p, k.lanes)
        self.tiles = tiles(p, k.lanes)
        self.rounding = spmm_bytes.Rounding(p, k, self.pitch) if spmm_bytes.is_whole(p["values"]) else None
        self.fixed = spmm_fixed.Fixed(p, k, self.pitch) if spmm_fixed.is_fixed(p["values"]) else None
        if self.fixed is None:
            self.pack = Packer(p, k, self.pitch, self.rounding)
        else:
            self.pack = Packer(p, k, 2 * self.pitch, panel="floats")
        self.strip: int = p["strip"]
        self.plain = spmm_values.is_plain(p["values"])
        self.values = k.arg("values") if self.plain else k.arg("decoded")
        self.results = Results(p, k, self.rounding, self.sums_pitch)
        self.runs = Runs(p, k, self.rounding, self.fixed, self.results)
        # first entry and first strip of the band: what scratch is indexed from
        self.entry_base: Any = 0
        # image, or group of its channels, that is read
        self.part: Any = 0
        self.strip_base: Any = 0

    def write(self) -> None:
        T, p, k = self.T, self.p, self.k
        ranges, count = p["ranges"], self.tiles * p["images"]
        ready = k.local(2, "int32")  # ranges whose values are decoded
        k.store(ready, 0, T.int32(0))
        k.store(ready, 1, T.int32(0))
        with T.serial(T.truncdiv(k.lo, ranges), T.truncdiv(k.hi + (ranges - 1), ranges)) as q:
            band = bind(k, T.truncdiv(q, count)) if p["bands"] > 1 else T.int32(0)
            tile_of_all = bind(k, q - band * count)
            image = bind(k, T.truncdiv(tile_of_all, self.tiles)) if p["images"] > 1 else T.int32(0)
            tile = bind(k, tile_of_all - image * self.tiles)
            if (groups := p.get("groups", 1)) > 1:  # a band reads the channels of its group only
                self.part = bind(k, image * groups + T.truncdiv(band, p["bands"] // groups))
            else:
                self.part = image
            first = bind(k, T.max(k.lo - q * ranges, 0))
            end = bind(k, T.min(k.hi - q * ranges, ranges))
            if p["bands"] > 1:
                self.entry_base = bind(k, k.load(k.arg("starts"), band * (2 * p["chunks"] * ranges) + 1))
                self.strip_base = bind(k, k.load(k.arg("bounds"), band * ranges))
            if not self.plain:
                a, b = bind(k, band * ranges + first), bind(k, band * ranges + end)
                known = T.And(k.load(ready, 0) <= a, b <= k.load(ready, 1))
                with T.If(T.Not(known)), T.Then():
                    self._decode(band, first, end)
                    k.store(ready, 0, a)
                    k.store(ready, 1, b)
            self._dispatch(self.kinds, band, image, tile, first, end)

    def _dispatch(self, kinds: list[TileKind], band: Any, image: Any, tile: Any, first: Any, end: Any) -> None:
        kind, rest = kinds[0], kinds[1:]
        if not rest:
            self._tile(kind, band, image, tile, first, end)
            return
        with self.T.If(tile < kind.first + kind.count):
            with self.T.Then():
                self._tile(kind, band, image, tile, first, end)
            with self.T.Else():
                self._dispatch(rest, band, image, tile, first, end)

    def _group(self, band: Any, chunk: Any, index: Any) -> Any:
        """Number of a (band, chunk, range) in `starts`."""
        return (band * self.p["chunks"] + chunk) * self.p["ranges"] + index

    def _decode(self, band: Any, first: Any, end: Any) -> None:
        """Values of the ranges [first, end) of a band, all chunks."""
        T, p, k = self.T, self.p, self.k
        starts = k.arg("starts")
        decoder = spmm_values.Decoder(p["values"], k, self.strip, p["n"], self.values)
        with T.serial(0, p["chunks"]) as chunk:
            a = bind(k, k.load(starts, self._group(band, chunk, first) * 2 + 1))
            b = bind(k, k.load(starts, self._group(band, chunk, end) * 2 + 1))
            decoder.flat(a, b, self.entry_base)
        if not spmm_values.needs_runs(p["values"]):
            return

        def finish(run: Any, strip: Any, count: Any, position: Any, chunk: Any) -> None:
            decoder.run(run, strip, count, position, chunk, self.entry_base, self.pitch, p["chunk"])

        with T.serial(0, p["chunks"]) as chunk:
            self._runs(band, chunk, first, end, lambda r, s, c, at: finish(r, s, c, at, chunk))

    def _runs(self, band: Any, chunk: Any, first: Any, end: Any, body: Any) -> None:
        """body(run, strip, entries, first entry) for the runs of the ranges [first, end) in one chunk."""
        T, p, k = self.T, self.p, self.k
        starts, runs = k.arg("starts"), k.arg("runs")
        position = k.local(1, "int32")

        def one_span(a: Any, b: Any) -> None:
            k.store(position, 0, k.load(starts, a * 2 + 1))
            with T.serial(k.load(starts, a * 2), k.load(starts, b * 2)) as run:
                strip = bind(k, T.Cast("int32", k.load(runs, run * 2)))
                count = bind(k, T.Cast("int32", k.load(runs, run * 2 + 1)))
                at = bind(k, k.load(position, 0))
                body(run, strip, count, at)
                k.store(position, 0, at + count)

        if spmm_values.entry_pad(p["values"]) == 1:
            one_span(bind(k, self._group(band, chunk, first)), bind(k, self._group(band, chunk, end)))
            return
        with T.serial(first, end) as index:  # padding lies between ranges
            group = bind(k, self._group(band, chunk, index))
            one_span(group, group + 1)

    # --- one tile ---

    def _tile(self, kind: TileKind, band: Any, image: Any, tile: Any, first: Any, end: Any) -> None:
        T, p, k = self.T, self.p, self.k
        pixel = bind(k, (tile - kind.first) * (kind.vectors * span(p, self.lanes)) + kind.pixel)
        if self.rounding is not None:
            self.rounding.scales(kind, pixel)
        if p["whole"]:
            with T.serial(0, p["chunks"]) as chunk:
                self._pack(kind, pixel, chunk)
            with T.serial(first, end) as index:
                if keeps_sums(p):
                    self.strip_base = bind(k, k.load(k.arg("bounds"), band * p["ranges"] + index))
                self._clear(kind, band, index, index + 1)
                with T.serial(0, p["chunks"]) as chunk:
                    self._products(kind, band, image, pixel, chunk, index, index + 1)
                self._finish(kind, band, pixel, index, index + 1)
            return
        self._clear(kind, band, first, end)
        with T.serial(0, p["chunks"]) as chunk:
            self._pack(kind, pixel, chunk)
            self._products(kind, band, image, pixel, chunk, first, end)
        self._finish(kind, band, pixel, first, end)

    def _clear(self, kind: TileKind, band: Any, first: Any, end: Any) -> None:
        """Zeros in the sums of the ranges [first, end), where every run adds to them."""
        if self.rounding is None or not self.rounding.groups:
            return
        T, k, lanes, bounds = self.T, self.k, self.lanes, self.k.arg("bounds")
        low = bind(k, (k.load(bounds, band * self.p["ranges"] + first) - self.strip_base) * self.strip)
        high = bind(k, (k.load(bounds, band * self.p["ranges"] + end) - self.strip_base) * self.strip)
        with T.serial(low, high) as row:
            for v in range(kind.vectors):
                k.store(k.arg("sums"), row * self.sums_pitch + v * lanes, k.f32(0.0, lanes), lanes)

    def _pack(self, kind: TileKind, pixel: Any, chunk: Any) -> None:
        p, k = self.p, self.k
        if in_place(p):
            if p["bands"] == 1:  # a second one finds them near
                self.pack.ask(self.part, pixel, kind)
            return
        column = bind(k, chunk * p["chunk"])
        columns = bind(k, self.T.min(p["chunk"], p["k"] - column))
        dest = column * self.pitch if p["whole"] else self.T.int32(0)
        if self.fixed is None:
            self.pack.write(self.part, pixel, kind, column, columns, dest)
        elif p["source"] == "planes" and not kind.tail:
            first = bind(k, (self.part * p["k"] + column) * p["pixels"] + pixel)
            self.fixed.round(kind, (k.arg("x"), first, p["pixels"]), columns, bind(k, dest), self.fixed.steps(chunk))
        else:
            self.pack.write(self.part, pixel, spmm_fixed.in_floats(kind, self.lanes), column, columns, self.T.int32(0))
            floats = (k.arg("floats"), self.T.int32(0), 2 * self.pitch)
            self.fixed.round(kind, floats, columns, bind(k, dest), self.fixed.steps(chunk))

    def _products(self, kind: TileKind, band: Any, image: Any, pixel: Any, chunk: Any, first: Any, end: Any) -> None:
        def run(number: Any, strip: Any, count: Any, at: Any) -> None:
            base = strip - self.strip_base
            first_value = at if self.plain else at - self.entry_base
            self.runs.write(Run(kind, image, pixel, chunk, number, strip, count, at, base, first_value))

        self._runs(band, chunk, first, end, run)

    def _finish(self, kind: TileKind, band: Any, pixel: Any, first: Any, end: Any) -> None:
        """Store the rows of ranges [first, end) that still lie in scratch."""
        p, k = self.p, self.k
        if p["dest"] == "tokens":
            bounds = k.arg("bounds")
            row0 = bind(k, k.load(bounds, band * p["ranges"] + first) * self.strip)
            row1 = bind(k, self.T.min(k.load(bounds, band * p["ranges"] + end) * self.strip, p["n"]))
            floats = kind if self.fixed is None else spmm_fixed.in_floats(kind, self.lanes)
            self.results.tokens(floats, pixel, row0, row1, self.strip_base)
