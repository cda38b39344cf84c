"""Encoded weights with other codes or other side arrays: what compensation and refits write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparsec.errors import WeightError
from sparsec.formats.encoded import EncodedWeight
from sparsec.formats.grid import Grid
from sparsec.formats.layout import code_dtype, pack_planes, unpack_planes, zero_point_bits

__all__ = ["codes_of", "recode", "with_codes", "with_side"]


def codes_of(encoded: EncodedWeight) -> np.ndarray:
    """Codes [N, ceil(K / dim)], unsigned integers (floats for float codecs), 0 where nothing is stored."""
    layout, bits = encoded.code_layout(), encoded.scheme.codec.code_bits
    count = layout.stored_blocks * layout.block[0] * layout.block[1]
    flat = unpack_planes(encoded.codes, bits, count) if bits else encoded.codes[0]
    return np.ascontiguousarray(layout.from_stream(layout.blocks_to_stream(flat.reshape(-1, *layout.block))))


def with_codes(encoded: EncodedWeight, codes: np.ndarray) -> EncodedWeight:
    """The weight with codes [N, ceil(K / dim)] at its positions, side arrays as they are; codes elsewhere are left out.

    Raises WeightError for another shape, or codes that the codec does not have.
    """
    layout, codec = encoded.code_layout(), encoded.scheme.codec
    shape = (encoded.rows, layout.cols)
    if codes.shape != shape:
        raise WeightError(f"codes are {list(codes.shape)}, {encoded.scheme} needs {list(shape)}")
    bits = codec.code_bits
    if bits and codes.size and (int(codes.min()) < 0 or int(codes.max()) > codec.top_code):
        raise WeightError(f"codes go from {codes.min()} to {codes.max()}; '{codec}' has 0 to {codec.top_code}")
    dtype = code_dtype(bits) if bits else encoded.codes[0].dtype
    stream = layout.to_stream(np.ascontiguousarray(codes, dtype))
    flat = layout.stream_to_blocks(stream).reshape(-1)
    return replace(encoded, codes=pack_planes(flat, bits) if bits else (flat,))


def recode(encoded: EncodedWeight, values: np.ndarray) -> EncodedWeight:
    """The weight with the codes nearest to values [N, K]; positions, scales, zero points and codebooks as they are.

    Values that the grid has come back exactly. Scalar codecs only: WeightError for vector codebooks, other shapes and values
    that are not finite.
    """
    grid = Grid.of(encoded)
    if values.shape != (encoded.rows, encoded.cols) or not np.isfinite(values).all():
        raise WeightError(f"needs finite values [{encoded.rows}, {encoded.cols}], found {list(values.shape)}")
    return with_codes(encoded, grid.codes(values))


def with_side(
    encoded: EncodedWeight,
    *,
    scales: np.ndarray | None = None,
    zero_points: np.ndarray | None = None,
    codebook: np.ndarray | None = None,
) -> EncodedWeight:
    """The weight with other side arrays, converted to the stored dtypes; codes stay.

    Raises WeightError for an array that the scheme does not have, another shape, or values that do not fit the dtype.
    """
    changed: dict[str, np.ndarray] = {}
    for role, array in (("scales", scales), ("zero_points", zero_points), ("codebook", codebook)):
        if array is None:
            continue
        old = getattr(encoded, role)
        if old is None:
            raise WeightError(f"{encoded.scheme} stores no {role}")
        if array.shape != old.shape:
            raise WeightError(f"{role} are {list(array.shape)}, {encoded.scheme} needs {list(old.shape)}")
        wide = np.asarray(array, np.float64)
        if old.dtype.kind != "f":
            wide = np.rint(wide)
            limit = np.iinfo(old.dtype)
            most = limit.max if role != "zero_points" else (1 << zero_point_bits(encoded.scheme.codec.code_bits)) - 1
            fits = bool((wide >= limit.min).all() and (wide <= most).all())
        else:
            fits = bool((np.abs(wide) <= float(np.finfo(old.dtype).max)).all())
        if not fits:
            raise WeightError(f"{role} up to {np.abs(wide).max():.4g} do not fit {old.dtype}; use channel scales (c)")
        changed[role] = np.ascontiguousarray(wide.astype(old.dtype))
    return replace(
        encoded,
        scales=changed.get("scales", encoded.scales),
        zero_points=changed.get("zero_points", encoded.zero_points),
        codebook=changed.get("codebook", encoded.codebook),
    )
