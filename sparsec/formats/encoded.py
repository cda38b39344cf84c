"""Encoded weights: the arrays an ONNX file carries, and the numpy reference that makes and reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparsec.errors import WeightError
from sparsec.formats.codec_base import Codec
from sparsec.formats.layout import (
    Layout,
    pack_bits,
    pack_planes,
    plane_widths,
    unpack_bits,
    unpack_planes,
    zero_point_bits,
)
from sparsec.formats.meaning import FloatValue, Side, TableValue, VectorValue
from sparsec.formats.row_stream import RowStream
from sparsec.formats.scheme import Scheme

__all__ = ["EncodedWeight", "Unpacked", "block_mask_of", "decode", "encode", "expand_block_mask", "unpack"]


@dataclass(frozen=True, eq=False)
class EncodedWeight:
    """A weight W[rows, cols] in a scheme.

    codes: one uint8 bit stream per plane of the code width, widest plane (lowest bits) first; float codecs: one fp32 or
    fp16 array of the values. positions: uint8 bitmap over blocks or None when dense. codebook: float32 [S, 2**bits],
    for vector codecs fp16 or int8 [S, stages, 2**bits, dim], or None. scales: fp16 [rows, groups], fp32 [rows, 1] or [1, 1], or
    None. zero_points: uint8 like scales, or None; stored as a bit stream of `zero_point_bits`, as are codes.
    """

    scheme: Scheme
    rows: int
    cols: int
    codes: tuple[np.ndarray, ...]
    positions: np.ndarray | None = None
    codebook: np.ndarray | None = None
    scales: np.ndarray | None = None
    zero_points: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """All stored arrays by role, in the order of `scheme.roles`."""
        named: dict[str, np.ndarray | None] = {
            (f"codes{plane}" if plane else "codes"): array for plane, array in enumerate(self.codes)
        }
        named |= {
            "positions": self.positions,
            "codebook": self.codebook,
            "scales": self.scales,
            "zero_points": None
            if self.zero_points is None
            else pack_planes(self.zero_points.reshape(-1), self._zero_bits)[0],
        }
        return {role: array for role, array in named.items() if array is not None}

    @classmethod
    def from_arrays(cls, scheme: Scheme, rows: int, cols: int, arrays: dict[str, np.ndarray]) -> EncodedWeight:
        """Inverse of `arrays`; raises WeightError when roles, dtypes or sizes do not fit the scheme."""
        if tuple(arrays) != scheme.roles:
            raise WeightError(f"scheme '{scheme}' needs arrays {list(scheme.roles)}, found {list(arrays)}")
        codes = tuple(array for role, array in arrays.items() if role.startswith("codes"))
        weight = cls(
            scheme,
            rows,
            cols,
            codes,
            arrays.get("positions"),
            arrays.get("codebook"),
            arrays.get("scales"),
        )
        weight._check()
        return weight if (stream := arrays.get("zero_points")) is None else weight._with_zero_points(stream)

    @property
    def _zero_bits(self) -> int:
        return zero_point_bits(self.scheme.codec.code_bits)

    def _with_zero_points(self, stream: np.ndarray) -> EncodedWeight:
        assert self.scales is not None
        _expect("zero_points", stream, "uint8", (-(-self.scales.size * self._zero_bits // 8),))
        zeros = unpack_planes((stream,), self._zero_bits, self.scales.size)
        return replace(self, zero_points=zeros.reshape(self.scales.shape))

    def _check(self) -> None:
        codec, scales = self.scheme.codec, self.scheme.scales
        r, c = self.scheme.block
        grid = (-(-self.rows // r), -(-self.cols // c))
        count = self.rows * -(-self.cols // codec.dim)
        if self.positions is not None:
            _expect("positions", self.positions, "uint8", (-(-grid[0] * grid[1] // 8),))
            count = int(unpack_bits(self.positions, grid).sum()) * r * c // codec.dim
        if codec.code_bits:
            for plane, width in zip(self.codes, plane_widths(codec.code_bits), strict=True):
                _expect("codes", plane, "uint8", (-(-count * width // 8),))
        elif isinstance(codec.meaning, FloatValue):
            _expect("codes", self.codes[0], f"float{codec.meaning.width}", (count,))
        if self.codebook is not None:
            _expect("codebook", self.codebook, *_codebook_form(codec, self.rows, self.cols))
        if self.scales is not None:
            shape: tuple[int, int]
            if scales.kind == "group":
                shape = (self.rows, -(-self.layout().length // scales.group))
            else:
                shape = (1, 1) if scales.kind == "tensor" else (self.rows, 1)
            _expect("scales", self.scales, "float16" if scales.kind == "group" else "float32", shape)

    def layout(self) -> Layout:
        """Where the stored values lie."""
        layout = Layout(self.rows, self.cols, self.scheme.block, None)
        if self.positions is None:
            return layout
        return Layout(self.rows, self.cols, self.scheme.block, unpack_bits(self.positions, layout.grid))

    def code_layout(self) -> Layout:
        """Where the codes lie: `layout`, with codes in place of the `dim` values each of them stands for."""
        values, dim = self.layout(), self.scheme.codec.dim
        if dim == 1:
            return values
        r, c = self.scheme.block
        return Layout(self.rows, -(-self.cols // dim), (r, max(c // dim, 1)), values.block_mask)

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored: codes, positions, codebooks, scales, zero points, padding."""
        return sum(array.nbytes for array in self.arrays().values())

    def bits_per_weight(self) -> float:
        """Stored bits per element of W, counting everything in `nbytes`."""
        return 8.0 * self.nbytes / (self.rows * self.cols)

    def zeros_fraction(self) -> float:
        """Share of the elements of W that are not stored."""
        valid = self.layout().block_mask
        if valid is None:
            return 0.0
        return 1.0 - float(expand_block_mask(valid, self.scheme.block, self.rows, self.cols).mean())


@dataclass(frozen=True, eq=False)
class Unpacked:
    """An encoded weight as plain arrays, for code generators.

    block_mask: bool [ceil(N/R), ceil(K/C)] (all true when dense). codes: [n, R, C] stored blocks in row-major block
    order, uint8 or the float values (float32 or float16). scales: float32 [N, G] or [1, 1] or None; zero_points: uint8
    like scales or None; codebook: the table of a table codec, learned or constant, float32 [S, 2**bits], or None. The
    group of a stored block of rank r in its strip is `r * C // scheme.scales.group`.

    Vector codecs have a code for every `dim` inputs: block_mask is [ceil(N/R), ceil(ceil(K/dim) / C)] with C counted in
    codes (1 when dense), codes are uint8, uint16 or uint32, the codebook is float32 [S, stages, 2**bits, dim].
    """

    scheme: Scheme
    rows: int
    cols: int
    block_mask: np.ndarray
    codes: np.ndarray
    scales: np.ndarray | None
    zero_points: np.ndarray | None
    codebook: np.ndarray | None


def _codebook_form(codec: Codec, rows: int, cols: int) -> tuple[str, tuple[int, ...]]:
    """dtype and shape of a stored codebook."""
    meaning, count = codec.meaning, codec.scope_count(rows, cols)
    if isinstance(meaning, VectorValue):
        return meaning.entry, (count, meaning.stages, 1 << meaning.bits, meaning.dim)
    return "float32", (count, 1 << codec.code_bits)


def _expect(role: str, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        found = f"{array.dtype}{list(array.shape)}"
        raise WeightError(f"{role}: found {found}, the scheme and sizes need {dtype}{list(shape)}")


def block_mask_of(mask: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Keep-mask over blocks, bool [ceil(N/R), ceil(K/C)], of an elementwise one.

    mask: bool [N, K]. Raises WeightError unless each block is kept or dropped as a whole.
    """
    (r, c), (rows, cols) = block, mask.shape
    if block == (1, 1):
        return mask
    coarse: np.ndarray = mask[::r, ::c]
    wrong = np.asarray(expand_block_mask(coarse, block, rows, cols) != mask)
    if wrong.any():
        n, k = (int(v) for v in np.argwhere(wrong)[0])
        raise WeightError(
            f"keep-mask is not aligned to blocks of {r}x{c}: element ({n}, {k}) differs from the first element of its "
            f"block ({n // r}, {k // c}); keep or drop whole blocks"
        )
    return coarse


def expand_block_mask(block_mask: np.ndarray, block: tuple[int, int], rows: int, cols: int) -> np.ndarray:
    """Elementwise bool [rows, cols] of a mask over blocks."""
    if block == (1, 1):
        return block_mask
    return np.repeat(np.repeat(block_mask, block[0], 0)[:rows], block[1], 1)[:, :cols]


def _nonzero_blocks(weight: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    (r, c), (rows, cols) = block, weight.shape
    kept: np.ndarray = weight != 0
    if block == (1, 1):
        return kept
    padded = np.zeros((-(-rows // r) * r, -(-cols // c) * c), bool)
    padded[:rows, :cols] = kept
    return np.asarray(padded.reshape(-(-rows // r), r, -(-cols // c), c).any((1, 3)))


def encode(
    weight: np.ndarray,
    scheme: Scheme,
    mask: np.ndarray | None = None,
    importance: np.ndarray | None = None,
    *,
    name: str = "",
) -> EncodedWeight:
    """Encode W[N, K] (floating, finite): nearest rounding, k-means codebooks, TWN ternary.

    mask: bool [N, K], True where a value is kept; whole blocks for block structures; only with a sparse structure,
    where None keeps the nonzero values (blocks with any; constant
    fan-in: some zeros too, so that all rows keep as many). importance: what a squared error counts, nonnegative and finite
    [K] (an input's second moment) or [N, K]; scales and codebooks minimise the error so weighted. name: the tensor's name, for
    messages. Raises WeightError for a weight, mask or importance that does not fit.
    """
    try:
        return _encode(np.asarray(weight), scheme, mask, importance)
    except WeightError as error:
        raise WeightError(f"weight '{name}' as {scheme}: {error}" if name else f"as {scheme}: {error}") from None


def _encode(
    weight: np.ndarray, scheme: Scheme, mask: np.ndarray | None, importance: np.ndarray | None
) -> EncodedWeight:
    if weight.ndim != 2 or 0 in weight.shape or weight.dtype.kind != "f":
        raise WeightError(f"needs a non-empty float matrix [outputs, inputs], found {weight.dtype}{list(weight.shape)}")
    with np.errstate(over="ignore"):
        weight = np.ascontiguousarray(weight, np.float32)
    finite = np.isfinite(weight)
    if not finite.all():
        n, k = (int(v) for v in np.argwhere(~finite)[0])
        raise WeightError(
            f"{int((~finite).sum())} of {weight.size} values are NaN or Inf in float32, "
            f"the first is {weight[n, k]} at ({n}, {k})"
        )
    rows, cols = weight.shape
    block_mask = None
    if scheme.is_dense:
        if mask is not None and not mask.all():
            raise WeightError("a dense scheme stores every position, but a keep-mask with zeros was given")
    else:
        if mask is None:
            block_mask = scheme.structure.stored(_nonzero_blocks(weight, scheme.block))
        else:
            if mask.shape != weight.shape or mask.dtype != np.bool_:
                found = f"{mask.dtype}{list(mask.shape)}"
                raise WeightError(f"keep-mask is {found}, needs bool{list(weight.shape)}")
            block_mask = block_mask_of(mask, scheme.block)
        scheme.structure.check_mask(block_mask, cols)
    layout = Layout(rows, cols, scheme.block, block_mask)
    valid = layout.stream_valid()
    counts = None if importance is None else layout.to_stream(_importance(importance, rows, cols))
    coded = scheme.codec.encode(
        RowStream(layout.to_stream(weight), valid, layout.stream_columns(), rows, cols, scheme.scales, counts)
    )
    own_rows = slice(None) if scheme.scales.kind == "tensor" else slice(rows)
    encoded = EncodedWeight(
        scheme,
        rows,
        cols,
        (),
        None if block_mask is None else pack_bits(block_mask),
        coded.codebook,
        None if coded.scales is None else np.ascontiguousarray(coded.scales[own_rows]),
        None if coded.zero_points is None else np.ascontiguousarray(coded.zero_points[own_rows]),
    )
    code_layout = encoded.code_layout()
    codes, dim = coded.codes, scheme.codec.dim
    if valid is not None:
        stored = valid if dim == 1 else np.asarray(valid.reshape(valid.shape[0], -1, dim).any(2))
        codes = np.where(stored, codes, codes.dtype.type(0))
    flat = code_layout.stream_to_blocks(codes).reshape(-1)
    bits = scheme.codec.code_bits
    return replace(encoded, codes=pack_planes(flat, bits) if bits else (flat,))


def _importance(importance: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """float32 [rows, cols] with mean 1; ones where nothing counts."""
    found = np.asarray(importance, np.float64)
    if found.shape not in ((cols,), (rows, cols)) or not np.isfinite(found).all() or (found < 0).any():
        raise WeightError(
            f"importance is {found.dtype}{list(found.shape)}, needs finite values of at least 0, [{cols}] or [{rows}, {cols}]"
        )
    mean = float(found.mean())
    found = found / mean if mean > 0 else np.ones_like(found)
    return np.ascontiguousarray(np.broadcast_to(found, (rows, cols)), np.float32)


def _stored_codes(encoded: EncodedWeight, layout: Layout) -> np.ndarray:
    """Codes [n, R, C] of the stored blocks; `layout` is the code layout."""
    count = layout.stored_blocks * layout.block[0] * layout.block[1]
    bits = encoded.scheme.codec.code_bits
    flat = unpack_planes(encoded.codes, bits, count) if bits else encoded.codes[0]
    return flat.reshape(-1, *layout.block)


def _spread(shared: np.ndarray | None, encoded: EncodedWeight, layout: Layout) -> np.ndarray | None:
    """Scales or zero points broadcastable to the row stream of codes."""
    if shared is None:
        return None
    if shared.dtype == np.float16:
        shared = shared.astype(np.float32)
    if encoded.scheme.scales.kind == "tensor":
        return shared
    extra = layout.stream_rows - encoded.rows
    if extra:
        shared = np.concatenate([shared, np.zeros((extra, shared.shape[1]), shared.dtype)])
    if encoded.scheme.scales.kind == "channel":
        return shared
    return shared.repeat(encoded.scheme.scales.group // encoded.scheme.codec.dim, 1)[:, : layout.length]


def decode(encoded: EncodedWeight) -> np.ndarray:
    """float32 [rows, cols]; the reference that ONNX function bodies and kernels are tested against."""
    layout, codec = encoded.code_layout(), encoded.scheme.codec
    stream = layout.blocks_to_stream(_stored_codes(encoded, layout))
    scope = None
    meaning = codec.meaning
    if isinstance(meaning, TableValue | VectorValue) and codec.scope_count(encoded.rows, encoded.cols) > 1:
        if meaning.scope.kind == "rows":
            last = codec.scope_count(encoded.rows, encoded.cols) - 1
            scope = np.minimum(np.arange(layout.stream_rows) // meaning.scope.span, last)[:, None]
        else:
            scope = layout.stream_columns() * meaning.dim // meaning.scope.span
    values = meaning.decode(
        stream,
        Side(
            _spread(encoded.scales, encoded, layout),
            _spread(encoded.zero_points, encoded, layout),
            encoded.codebook,
            scope,
        ),
    )
    if codec.dim == 1:
        return layout.from_stream(np.broadcast_to(values, stream.shape))
    elements = encoded.layout()
    flat = np.broadcast_to(values, (*stream.shape, codec.dim)).reshape(len(stream), -1)
    return np.ascontiguousarray(elements.from_stream(flat[:, : elements.length]))


def unpack(encoded: EncodedWeight) -> Unpacked:
    """Plain arrays for code generators."""
    layout, meaning = encoded.code_layout(), encoded.scheme.codec.meaning
    mask = layout.block_mask
    codebook = meaning.constant() if isinstance(meaning, TableValue) else None
    if encoded.codebook is not None:
        codebook = encoded.codebook.astype(np.float32)
    return Unpacked(
        encoded.scheme,
        encoded.rows,
        encoded.cols,
        np.ones(layout.grid, bool) if mask is None else mask,
        _stored_codes(encoded, layout),
        None if encoded.scales is None else encoded.scales.astype(np.float32),
        encoded.zero_points,
        codebook,
    )
