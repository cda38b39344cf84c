"""Weights of blocks of 32 and more outputs times a multiple of 8 inputs, for gemm.py: block-sparse products that skip what is not stored.

What a panel stores lies side by side, as strips.py has it, and every step multiplies 64 inputs that are stored, wherever they lie:
`chunks` says which 8 neighbouring inputs each eighth of a step has, so rows of A come to shared memory 16 bytes at once.
Panels of a block of the grid lie in the same blocks of the weight, so they read the same inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.codegen.cuda.fragments import INPUTS, Packed, decoding, scale_arrays, table
from sparsec.codegen.cuda.strips import stored_codes
from sparsec.formats.encoded import Unpacked

Array = np.ndarray[Any, Any]

CHUNK = 8
"""Inputs that are copied at once."""
EACH = INPUTS // CHUNK
"""Chunks of a step."""
_FEWEST_ROWS = 32  # fewer outputs would take more time for copying inputs than tiles put together take (scattered.py)
_MOST_CHUNKS = 65535


def refused(weight: Unpacked) -> str:
    """Why this layout does not take the weight; "" if it does."""
    rows, width = weight.scheme.block
    if weight.scheme.is_dense or rows % _FEWEST_ROWS or width % CHUNK:
        return f"blocks of {rows} x {width} are no multiples of {_FEWEST_ROWS} outputs and {CHUNK} inputs"
    if weight.cols > CHUNK * _MOST_CHUNKS:
        return f"{weight.cols} inputs; weights of structure '{weight.scheme.structure}' may have {CHUNK * _MOST_CHUNKS}"
    return ""


def tiles_of(weight: Unpacked) -> int:
    """Tiles of 16 rows in a panel: four where two panels lie in a block, so that no warp has all the outputs of a block of the grid."""
    return 4 if weight.scheme.block[0] % 128 == 0 else 2


def parameters(weight: Unpacked, storage: str) -> dict[str, Any]:
    """The parameters of the weight that `pack` lays out. blocks: outputs that store the same inputs."""
    shape = {"n": weight.rows, "k": weight.cols, "tiles": tiles_of(weight), "blocks": weight.scheme.block[0]}
    return decoding(weight, storage) | shape


def pack(weight: Unpacked, storage: str, label: str = "weight") -> Packed:
    """Lay a weight out in panels of blocks; values in `storage`."""
    rows, width = weight.scheme.block
    params = parameters(weight, storage)
    codes, starts = stored_codes(weight, params, storage)
    last = -(-weight.cols // CHUNK)
    stored = np.repeat(weight.block_mask, width // CHUNK, axis=1)[:, :last]
    chunks = np.full((max(1, int(starts[-1])) * EACH,), last, np.uint16)  # what is behind the last input is zero
    for panel, first in enumerate(starts[:-1]):
        found = np.flatnonzero(stored[panel * 16 * params["tiles"] // rows])
        chunks[first * EACH : first * EACH + len(found)] = found
    arrays = [("codes", codes), ("starts", starts), ("chunks", chunks), *scale_arrays(weight, params, params["tiles"])]
    if params["decode"] == "lookup":
        arrays.append(("table", table(weight, params, storage)))
    return Packed(params, [(f"{label}.{name}", array) for name, array in arrays], np.diff(starts))
