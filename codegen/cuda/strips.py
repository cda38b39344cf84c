"""Weights of blocks of 16 and more outputs, for gemv.py: what is stored of a strip of outputs lies side by side, as if it were dense.

All rows of a panel store the same inputs, so their codes are laid out as fragments.py does with the inputs that are stored, in order,
and the kernel picks those of A. It finds them by the strip's bitmap and by how many positions are stored before every 256 of it
(6 % on top). `starts` says in which step of 64 stored inputs a panel begins: each warp of a block then takes as many as the others,
however unevenly a weight was pruned. Balancing work by what is stored follows the task-centric kernels of C. Zeng et al.,
"GQSA: Group Quantization and Sparsity for Accelerating Large Language Model Inference" (2024).
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from sparsec.codegen.cuda.fragments import INPUTS, Packed, decoding, halves, lay_out, octets_of, scale_arrays, table
from sparsec.formats.encoded import Unpacked

Array = np.ndarray[Any, Any]

_MOST_POSITIONS = 65535  # the list has 16 bits for each


def tiles_of(weight: Unpacked) -> int:
    """Tiles of 16 rows in a panel, which lies in one strip; 0 where blocks have too few rows."""
    rows = weight.scheme.block[0]
    return gcd(rows // 16, 4) if rows % 16 == 0 else 0


def refused(weight: Unpacked) -> str:
    """Why this layout does not take the weight; "" if it does."""
    rows = weight.scheme.block[0]
    if weight.scheme.is_dense or rows % 16:
        return f"blocks of {rows} outputs are no multiple of 16"
    if -(-weight.cols // weight.scheme.codec.dim) >= _MOST_POSITIONS:
        return f"{weight.cols} inputs are more than a list of positions holds"
    return ""


def dense_codes(weight: Unpacked) -> Array:
    """Codes [N rounded up to blocks, units], 0 where nothing is stored."""
    dim = weight.scheme.codec.dim
    (r, c), (nb, kb) = weight.scheme.block, weight.block_mask.shape
    c = max(c // dim, 1)
    codes = np.zeros((nb, kb, r, c), weight.codes.dtype)
    codes[weight.block_mask] = weight.codes
    return np.ascontiguousarray(codes.transpose(0, 2, 1, 3)).reshape(nb * r, kb * c)


def stored_codes(weight: Unpacked, params: dict[str, Any], storage: str) -> tuple[Array, Array]:
    """uint32 words of what each panel stores, laid out as if it were dense, and int32 [panels + 1]: with which step each begins."""
    dim, rows, panel = weight.scheme.codec.dim, weight.scheme.block[0], 16 * params["tiles"]
    codes, mask = dense_codes(weight), _mask(weight)
    if params["decode"] == "float":
        codes = halves(codes, storage)
    words, starts = [], [0]
    for first in range(0, weight.rows, panel):
        stored = codes[first : first + panel, : mask.shape[1]][:, mask[first // rows]]
        words.append(lay_out(stored, params))
        starts.append(starts[-1] + -(-stored.shape[1] * dim // INPUTS))
    spare = np.zeros(4 if not starts[-1] else 0, np.uint32)  # there is no constant of no bytes
    return np.concatenate([*words, spare]), np.array(starts, np.int32)


def _mask(weight: Unpacked) -> Array:
    """bool [strips, units]: which codes of its inputs a strip stores."""
    dim = weight.scheme.codec.dim
    each = max(weight.scheme.block[1] // dim, 1)
    return np.asarray(np.repeat(weight.block_mask, each, axis=1)[:, : -(-weight.cols // dim)])


def pack(weight: Unpacked, storage: str, label: str = "weight") -> Packed:
    """Lay a weight out in strips; values in `storage`."""
    rows, tiles, units = weight.scheme.block[0], tiles_of(weight), -(-weight.cols // weight.scheme.codec.dim)
    params = decoding(weight, storage) | {"n": weight.rows, "k": weight.cols, "tiles": tiles, "strip": rows}
    codes, starts = stored_codes(weight, params, storage)
    octets = octets_of(params)
    bits = np.zeros((len(weight.block_mask), octets * 256), bool)
    bits[:, :units] = _mask(weight)
    before = np.zeros((len(bits), octets + 1), np.int64)
    before[:, 1:] = np.cumsum(bits.reshape(len(bits), octets, 256).sum(2), axis=1)
    arrays = [
        ("codes", codes),
        ("starts", starts),
        ("positions", np.packbits(bits, axis=1, bitorder="little").reshape(-1).view(np.uint32)),
        ("ranks", before.astype(np.uint16).reshape(-1)),
        *scale_arrays(weight, params, tiles),
    ]
    if params["decode"] == "lookup":
        arrays.append(("table", table(weight, params, storage)))
    return Packed(params, [(f"{label}.{name}", array) for name, array in arrays], np.diff(starts))
