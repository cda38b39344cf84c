"""How spmm.py stores what it has summed: as `planes` (y[image][N][pixel]) from registers, or as `tokens` (y[pixel][N]) through a
transposition; scales of rows and tokens, bias, residual and activation on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sparsec.codegen.isa.epilogue import apply_activation
from sparsec.codegen.isa.memory import prefetch
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind, hold
from sparsec.codegen.kernels.frames import Frame
from sparsec.codegen.kernels.spmm_bytes import Rounding
from sparsec.codegen.kernels.spmm_fixed import is_fixed
from sparsec.codegen.kernels.spmm_pack import transpose
from sparsec.codegen.kernels.spmm_plan import TileKind

# Results that do not stay in a level-2 cache are brought there before they are stored: 0.7 to 0.9 of the time.
_FAR_FLOATS = 1 << 18


class Results:
    """Writes the stores of one kernel (`k`: KernelBuilder). rounding: of activations, None for float32; sums_pitch: elements of a row
    of `sums`."""

    def __init__(self, p: Mapping[str, Any], k: Any, rounding: Rounding | None, sums_pitch: int) -> None:
        self.p, self.k, self.T, self.lanes = p, k, k.T, k.lanes
        self.rounding, self.sums_pitch = rounding, sums_pitch
        self.strip: int = p["strip"]
        self.scaled = p["values"]["scales"] in ("channel", "tensor")
        # sums of floats begin with the bias (spmm_run.py), where nothing is done to them before it is added
        floats = rounding is None and not is_fixed(p["values"]) and not self.scaled
        self.begun = bool(p["bias"]) and p["dest"] == "planes" and floats

        self.frame = Frame.of(p)
        self.plane = self.frame.plane if self.frame else p["pixels"]

    def place(self, pixel: Any) -> Any:
        """Where in its plane a tile that begins at this pixel is stored."""
        if self.frame is None:
            return pixel
        f = self.frame
        row = bind(self.k, self.T.truncdiv(pixel, f.width))
        return row * f.pitch + (pixel - row * f.width) + f.origin

    def step(self, v: int) -> int:
        """How far behind the first vector of a tile the one numbered `v` is stored."""
        if self.frame is None:
            return int(v * self.lanes)
        rows, rest = divmod(v, int(self.frame.width // self.lanes))
        return int(rows * self.frame.pitch + rest * self.lanes)

    def planes(self, kind: TileKind, image: Any, pixel: Any, strip: Any, value: Callable[[int, int], Any]) -> None:
        """y[image][row][pixel] for the tile's pixels and the rows of a strip; value(s, v): vector v of the sums of its row s."""
        T, p, k, height = self.T, self.p, self.k, self.strip
        for s in range(height):
            row = bind(k, strip * height + s)
            if s and p["n"] % height:  # the last strip may reach past the last row
                with T.If(row < p["n"]), T.Then():
                    self._row(kind, image, pixel, row, partial(value, s))
            else:
                self._row(kind, image, pixel, row, partial(value, s))

    def _row(self, kind: TileKind, image: Any, pixel: Any, row: Any, sums: Callable[[int], Any]) -> None:
        p, k, lanes = self.p, self.k, self.lanes
        to = hold(k, (image * p["n"] + row) * self.plane + self.place(pixel) - k.first("y"))
        scale = bind(k, k.splat(k.load(k.arg("row_scales"), row), lanes)) if self.scaled else None
        bias = bind(k, k.splat(k.load(k.arg("bias"), row), lanes)) if p["bias"] and not self.begun else None
        if self.frame is None and kind.count > 1 and p["images"] * p["n"] * p["pixels"] >= _FAR_FLOATS:
            # the next tile's part of the row: runs as short as a tile are not foreseen by the hardware
            for at in range(0, kind.vectors * lanes, 16):
                prefetch(k, k.arg("y"), to + (kind.vectors * lanes + at))
        for v in range(kind.vectors):
            value = sums(v)
            if scale is not None:
                value = value * scale
            if bias is not None:
                value = value + bias
            count = kind.tail if kind.tail and v == kind.vectors - 1 else lanes
            whole = k.local(lanes) if count < lanes else None
            if whole is not None:  # parts of an accumulator would keep it out of registers
                k.store(whole, 0, value, lanes)
            vector = self.step(v)
            for at, width in pieces(count, lanes):
                part = value if whole is None else k.load(whole, at, width)
                if p["residual"]:
                    part = part + k.load(k.arg("residual"), to + vector + at, width)
                part = apply_activation(k, p["act"], p["act_params"], part, width)
                k.store(k.arg("y"), to + vector + at, part, width)

    def tokens(self, kind: TileKind, pixel: Any, row0: Any, row1: Any, strip_base: Any) -> None:
        """y[pixel][row] for the tile's pixels and rows [row0, row1), transposed from the sums, four pixels at a time. strip_base: the
        strip whose sums come first."""
        T, k, lanes = self.T, self.k, self.lanes
        whole = bind(k, T.truncdiv(row1 - row0, lanes))
        rest = (self.p["n"] - 1) % lanes + 1
        last = (kind.vectors - 1) * lanes + (kind.tail or lanes)

        def four(quad: Any, tokens: int) -> None:
            with T.serial(0, whole) as block:
                self._token_block(pixel, quad, tokens, bind(k, row0 + block * lanes), lanes, strip_base)
            if rest < lanes:  # only the last range ends inside a block
                at = bind(k, row0 + whole * lanes)
                with T.If(at < row1), T.Then():
                    self._token_block(pixel, quad, tokens, at, rest, strip_base)

        with T.serial(0, last // 4) as quad:
            four(bind(k, quad * 4), 4)
        if last % 4:
            four(T.int32(last // 4 * 4), last % 4)

    def _token_block(self, pixel: Any, quad: Any, tokens: int, row: Any, rows: int, strip_base: Any) -> None:
        """Pixels [quad, quad + tokens) of the tile, outputs [row, row + rows)."""
        T, p, k, lanes = self.T, self.p, self.k, self.lanes
        y, sums = k.arg("y"), k.arg("sums")
        cuts = pieces(rows, lanes)
        grouped = self.rounding is not None and self.rounding.groups

        def constants(name: str, wanted: bool) -> list[Any]:
            return [bind(k, k.load(k.arg(name), row + at, width)) for at, width in cuts] if wanted else []

        scale, bias = constants("row_scales", self.scaled), constants("bias", p["bias"])
        base = bind(k, (row - strip_base * self.strip) * self.sums_pitch + quad)
        columns = transpose(k, lambda r: k.load(sums, base + r * self.sums_pitch, 4))
        for c in range(tokens):
            to = bind(k, (pixel + quad + c) * p["n"] + row)
            whole = None
            if rows < lanes:
                whole = k.local(lanes, "float32" if self.rounding is None else self.rounding.sums)
                k.store(whole, 0, columns[c], lanes)
            factor = None if self.rounding is None else bind(k, k.load(k.arg("xscale"), quad + c))
            for index, (at, width) in enumerate(cuts):
                part = columns[c] if whole is None else k.load(whole, at, width)
                if factor is not None:
                    if not grouped:
                        part = T.Cast("float32" if width == 1 else f"float32x{width}", part)
                    part = part * k.splat(factor, width)
                if scale:
                    part = part * scale[index]
                if bias:
                    part = part + bias[index]
                if p["residual"]:
                    part = part + k.load(k.arg("residual"), to + at, width)
                k.store(y, to + at, apply_activation(k, p["act"], p["act_params"], part, width), width)
