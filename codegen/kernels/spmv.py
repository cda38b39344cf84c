"""Sparse weights times one or a few rows of activations: y[m, n] = act(sum_k W[n, k] x[m, k] + bias[n] + residual[m, n]).

Vectors run over rows of W (spmv_weights.py): every step loads a column and a code for each of C rows, brings the activations at
those columns into a vector, and multiplies them with the decoded codes. Activations are copied to scratch first, with a zero
behind the last that lanes without a weight read. They are loaded one by one: on the processors measured that is as fast as a
gather instruction, and every instruction set can do it. A unit is a piece of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.isa.lookup import RegisterTable, gather, permute_width
from sparsec.codegen.isa.memory import prefetch_stream
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import spmv_weights
from sparsec.codegen.kernels.spmm_values import has_zero_points, load_codes
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target


def _pitch(p: Mapping[str, Any]) -> int:
    """Floats between two rows of the copied activations, the zero included."""
    return int(-(-(p["k"] + 1) // 16) * 16)


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x, the weight's arrays, bias? (in the order of lanes), residual?; out: y; work: copied x, one vector of results."""
    lanes, out_size = p["groups"] * spmv_weights.group_rows(target), p["m"] * p["n"]
    args = [Arg("x", "float32", p["m"] * p["k"], "in"), *spmv_weights.arguments(p, target)]
    if p["bias"]:
        args.append(Arg("bias", "float32", lanes, "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", out_size, "in"))
    args.append(Arg("y", "float32", out_size, "out"))
    args.append(Arg("copied", "float32", p["m"] * _pitch(p), "work"))
    args.append(Arg("result", "float32", 2 * spmv_weights.group_rows(target), "work"))
    return Signature(tuple(args), units=p["pieces"])


def cost(p: Mapping[str, Any], steps: int, target: Target) -> int:
    """`Signature.cost` for a weight of so many steps."""
    macs = p["m"] * steps * spmv_weights.group_rows(target)
    return int(2 * macs + p["m"] * p["n"] * (4 + activation_cost(p["act"])))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    _Spmv(p, k).write()


class _Spmv:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.v, self.k, self.T = p, p["values"], k, k.T
        self.c = spmv_weights.group_rows(k.target)
        self.m: int = p["m"]
        self.grouped = self.v["scales"] == "group"
        self.table: RegisterTable | None = None
        self.zero: Any = None  # zero points of the lanes' rows

    def write(self) -> None:
        T, k, v = self.T, self.k, self.v
        with T.If(k.lo < k.hi), T.Then():
            self._copy()
            one_book = v["word"] == "table" and v["scope"] == "one"
            if one_book and v["book"] <= permute_width(k.target) and k.lanes == self.c:
                self.table = RegisterTable(k, k.arg("codebook"), T.int32(0), v["book"])
            bounds = k.arg("bounds")
            first, last = bind(k, k.load(bounds, k.lo)), bind(k, k.load(bounds, k.hi))
            with T.serial(first, last) as group:
                self._group(group)

    def _copy(self) -> None:
        """x with a zero behind every row."""
        T, k, depth = self.T, self.k, self.p["k"]
        x, copied, lanes = k.arg("x"), k.arg("copied"), k.lanes
        with T.serial(0, self.m) as row:
            source, to = bind(k, row * depth), bind(k, row * _pitch(self.p))
            if depth >= lanes:
                with T.serial(0, depth // lanes) as i:
                    k.store(copied, to + i * lanes, k.load(x, source + i * lanes, lanes), lanes)
            done = depth // lanes * lanes
            for at, width in pieces(depth - done, lanes):
                k.store(copied, to + done + at, k.load(x, source + done + at, width), width)
            k.store(copied, to + depth, T.float32(0))

    # --- a group of rows ---

    def _group(self, group: Any) -> None:
        T, k, c, m, v = self.T, self.k, self.c, self.m, self.v
        first = bind(k, k.load(k.arg("starts"), group))
        count = bind(k, k.load(k.arg("starts"), group + 1) - first)
        lane0 = bind(k, group * c)
        sums = k.local(m * c)
        for row in range(m):
            k.store(sums, row * c, k.f32(0.0, c), c)
        if has_zero_points(v) and not self.grouped:
            self.zero = self._zero_points(lane0)
        if not self.grouped:
            with T.serial(0, count) as s:
                self._step(bind(k, first + s), lane0, sums)
        else:
            size, stride = v["group"], bind(k, k.load(k.arg("scale_groups"), 0))
            part = k.local(m * c)
            with T.serial(0, T.truncdiv(count + (size - 1), size)) as g:
                at = bind(k, (group * stride + g) * c)
                if has_zero_points(v):
                    self.zero = self._zero_points(at)
                for row in range(m):
                    k.store(part, row * c, k.f32(0.0, c), c)
                start = bind(k, first + g * size)
                with T.serial(0, T.min(count - g * size, size)) as s:
                    self._step(bind(k, start + s), lane0, part)
                scale = bind(k, T.Cast(f"float32x{c}", k.load(k.arg("scales"), at, c)))
                for row in range(m):
                    total = k.load(sums, row * c, c) + k.load(part, row * c, c) * scale
                    k.store(sums, row * c, total, c)
        self._finish(lane0, sums)

    def _zero_points(self, at: Any) -> Any:
        k = self.k
        return bind(k, self.T.Cast(f"float32x{self.c}", k.load(k.arg("zero_points"), at, self.c)))

    def _step(self, step: Any, lane0: Any, sums: Any) -> None:
        """One stored weight of every lane."""
        T, k, c = self.T, self.k, self.c
        at = bind(k, step * c)
        prefetch_stream(k, k.arg("offsets"), at, 2)
        columns = [bind(k, T.Cast("int32", k.load(k.arg("offsets"), at + lane))) for lane in range(c)]
        weights = bind(k, self._values(at, lane0, columns))
        for row in range(self.m):
            picked = [k.load(k.arg("copied"), column + row * _pitch(self.p)) for column in columns]
            x = T.Shuffle(picked, [T.int32(lane) for lane in range(c)])
            k.store(sums, row * c, k.load(sums, row * c, c) + x * weights, c)

    def _values(self, at: Any, lane0: Any, columns: list[Any]) -> Any:
        """float32 vector: the weights of a step, but for their scales."""
        T, k, c, v = self.T, self.k, self.c, self.v
        if v["word"] == "float":
            value = k.load(k.arg("values"), at, c)
            prefetch_stream(k, k.arg("values"), at, v["width"] // 8)
            return value if v["width"] == 32 else T.Cast(f"float32x{c}", value)
        codes = bind(k, load_codes(k, v["bits"], at, c))
        if v["word"] == "affine":
            value = T.Cast(f"float32x{c}", codes - k.i32(v["offset"] or 0, c))
            return value if self.zero is None else value - self.zero
        if self.table is not None:
            return self.table(codes)
        if v["scope"] == "rows":
            codes = codes + k.load(k.arg("books"), lane0, c)
        elif v["scope"] == "inputs":
            # a lane that is done reads the last column's book
            books = [T.truncdiv(T.min(column, self.p["k"] - 1), v["span"]) * v["book"] for column in columns]
            codes = codes + T.Shuffle(books, [T.int32(lane) for lane in range(c)])
        return gather(k.arg("codebook"), bind(k, codes))

    def _finish(self, lane0: Any, sums: Any) -> None:
        """Scales of rows, bias, residual and activation; results go to their rows one by one."""
        T, k, p, c = self.T, self.k, self.p, self.c
        result, rows = k.arg("result"), k.arg("rows")
        scale = None
        if self.v["scales"] in ("channel", "tensor"):
            scale = bind(k, k.load(k.arg("scales"), lane0, c))
        bias = bind(k, k.load(k.arg("bias"), lane0, c)) if p["bias"] else None
        for row in range(self.m):
            value = k.load(sums, row * c, c)
            if scale is not None:
                value = value * scale
            if bias is not None:
                value = value + bias
            if p["residual"]:
                with T.serial(0, c) as lane:
                    # a lane without a row reads any residual
                    at = T.max(k.load(rows, lane0 + lane), 0)
                    k.store(result, lane + c, k.load(k.arg("residual"), at + row * p["n"]))
                value = value + k.load(result, c, c)
            k.store(result, 0, apply_activation(k, p["act"], p["act_params"], value, c), c)
            with T.serial(0, c) as lane:
                to = bind(k, k.load(rows, lane0 + lane))
                with T.If(to >= 0), T.Then():
                    k.store(k.arg("y"), to + row * p["n"], k.load(result, lane))
