"""Weights of which two of every four inputs are stored, for mma.sp: half the codes, and the products of twice as many inputs at once.

A step is 64 stored inputs of 128. The instruction takes 32 inputs at a time, in their order; which of its stored columns a lane holds is
given, so the codes of a step are put in that order before fragments.py lays them out. Behind its codes a lane has, for each tile,
two words that say which two of four inputs are stored: of lanes q = 0 and 1 for the first and third 32 inputs, of 2 and 3 for the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.codegen.cuda.fragments import INPUTS, LANE_INPUTS, Packed, decoding, halves, lay_out, scale_arrays, table
from sparsec.codegen.cuda.strips import dense_codes
from sparsec.formats.encoded import Unpacked

Array = np.ndarray[Any, Any]

_FIRST_TWO = 0b0100  # inputs 0 and 1 of four


def refused(weight: Unpacked) -> str:
    """Why this layout does not take the weight; "" if it does."""
    structure, scales = weight.scheme.structure, weight.scheme.scales
    if weight.scheme.block != (1, 1) or weight.scheme.codec.dim != 1:
        return f"structure '{structure}' is not 2:4"
    mask = weight.block_mask
    if mask.shape[1] % 4 or (mask.reshape(len(mask), -1, 4).sum(2) != 2).any():
        return f"structure '{structure}' does not store two of every four inputs"
    if scales.kind == "group" and scales.group % INPUTS:
        return f"groups of {scales.group} stored values are no multiple of {INPUTS}"
    return ""


def pack(weight: Unpacked, tiles: int, storage: str, label: str = "weight") -> Packed:
    """Lay a weight out for panels of 16 * tiles rows; values in `storage`."""
    params = decoding(weight, storage) | {"n": weight.rows, "k": weight.cols, "tiles": tiles, "pairs": True}
    codes = dense_codes(weight)
    if params["decode"] == "float":
        codes = halves(codes, storage)
    panels, steps = -(-weight.rows // (16 * tiles)), -(-weight.cols // (2 * INPUTS))
    stored = np.zeros((panels * 16 * tiles, steps * INPUTS), codes.dtype)
    stored[: weight.rows, : weight.cols // 2] = codes[weight.block_mask].reshape(weight.rows, -1)
    stored = stored.reshape(len(stored), steps, INPUTS)[:, :, _order()].reshape(len(stored), -1)
    arrays = [
        ("codes", lay_out(stored, params, _stored_inputs(weight.block_mask, panels, steps, tiles))),
        *scale_arrays(weight, params, tiles),
    ]
    if params["decode"] == "lookup":
        arrays.append(("table", table(weight, params, storage)))
    return Packed(params, [(f"{label}.{name}", array) for name, array in arrays])


def _order() -> Array:
    """Which of the 64 stored inputs of a step is value j of lane q, [q * 16 + j]: columns 2 q, 2 q + 1, 2 q + 8, 2 q + 9 of each 16."""
    q, j = np.divmod(np.arange(INPUTS), LANE_INPUTS)
    return np.asarray(j // 4 * 16 + 8 * (j // 2 % 2) + 2 * q + j % 2)


def _stored_inputs(mask: Array, panels: int, steps: int, tiles: int) -> Array:
    """uint32 [panels, steps, 32, 2 * tiles]."""
    rows = panels * 16 * tiles
    fours = np.full((rows, steps * 2 * INPUTS // 4), _FIRST_TWO, np.uint32)
    which = np.nonzero(mask.reshape(-1, 4))[1].reshape(-1, 2)
    fours[: len(mask), : mask.shape[1] // 4] = (which[:, 0] | which[:, 1] << 2).reshape(len(mask), -1)
    fields = fours.reshape(rows, steps, 4, 2, 4) << (4 * np.arange(4, dtype=np.uint32))  # 32 inputs, half, four
    halves16 = np.bitwise_or.reduce(fields, axis=-1)  # row, step, 32 inputs, half: 16 bits
    parts = halves16.reshape(panels, tiles, 2, 8, steps, 4, 2)  # panel, tile, row half, g, step, 32 inputs, half
    words = parts[:, :, 0] | parts[:, :, 1] << 16  # panel, tile, g, step, 32 inputs, half
    # 32 inputs 2 w + q / 2, half q % 2 are word w of lane 4 g + q
    words = words.reshape(panels, tiles, 8, steps, 2, 2, 2).transpose(0, 3, 2, 5, 6, 1, 4)
    return np.ascontiguousarray(words).reshape(panels, steps, 32, 2 * tiles).astype(np.uint32)
