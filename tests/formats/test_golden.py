"""Stored weights keep their meaning: arrays fixed once decode to values fixed once, whatever happens to the code."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from sparsec.formats import EncodedWeight, Scheme, decode

ROWS, COLS = 11, 24

# SHA-256 (first 16 digits) of the decoded float32 [11, 24] of the arrays that `arrays` draws.
GOLDEN = {
    "fp32": "20a142eca2b1d33b",
    "fp16": "20a142eca2b1d33b",
    "s50": "6347acf6d6d307a6",
    "int8": "7a2dc36de8dc5927",
    "int4-g8": "68e81d335a180419",
    "int2-t": "1390827d9dd53b3d",
    "uint8": "323c7da7fe3cc49d",
    "uint4-g4": "37968ff278132262",
    "uint2-t": "dbc2b1f13de5d17a",
    "ternary": "e397f2eaee96aebc",
    "ternary-g8": "f51471d18da32e9d",
    "cb1": "00658d41122193f8",
    "cb3": "5ef29bba485726ce",
    "cb4-g8": "2df9288e9f56c4ff",
    "cb5-c": "d5a00f29b4c89954",
    "cb8-t": "402ee6f6758dee9c",
    "cb4.r4": "612f656bb7f52825",
    "cb3.i6-c": "dca28ad0a0e41d29",
    "s50-int8": "d141425f99d00632",
    "s2:4-uint4-g4": "3775191a516748f2",
    "s50-fp16": "6347acf6d6d307a6",
    "s3x2@50-cb4-g4": "4620485f2673f37d",
    "s4x1@60-ternary-g2": "a04acf8bffabe40c",
    "s1x4@70-cb6.r4": "8fc8c6392deb9d28",
    "s3x2@50-uint8-t": "7c37844850db9437",
}


def plane_widths(bits: int) -> list[int]:
    return [8] * (bits // 8) + [w for w in (4, 2, 1) if bits & w]


def arrays(scheme: Scheme, bits: int) -> dict[str, np.ndarray]:
    """Arrays of a scheme from whole numbers alone; `bits` 0: floats."""
    rng = np.random.RandomState(1)  # its streams never change
    found: dict[str, np.ndarray] = {}
    (r, c), length, count = scheme.block, COLS, ROWS * COLS
    if "positions" in scheme.roles:
        keep = np.zeros((-(-ROWS // r), -(-COLS // c)), bool)
        keep[:, :: 4 // c] = True
        length, count = int(keep.sum(1).max()) * c, int(keep.sum()) * r * c
        found["positions"] = np.packbits(keep.reshape(-1), bitorder="little")
    if bits:
        for plane, width in enumerate(plane_widths(bits)):
            stream = np.packbits(rng.randint(0, 2, count * width).astype(np.uint8), bitorder="little")
            found[f"codes{plane}" if plane else "codes"] = stream
    else:
        found["codes"] = (rng.randint(-999, 999, count) / 256).astype(str(scheme.codec).replace("fp", "float"))
    books = {"r": -(-ROWS // 4), "i": COLS // 6}.get(str(scheme.codec).partition(".")[2][:1], 1)
    if "codebook" in scheme.roles:
        found["codebook"] = (rng.randint(-999, 999, (books, 1 << bits)) / 256).astype(np.float32)
    if "scales" in scheme.roles:
        kind = scheme.scales.kind
        shape = (1, 1) if kind == "tensor" else (ROWS, -(-length // scheme.scales.group) if kind == "group" else 1)
        scales = rng.randint(1, 999, shape) / 1024
        found["scales"] = scales.astype(np.float16 if kind == "group" else np.float32)
        if "zero_points" in scheme.roles:
            zeros = rng.randint(0, 1 << bits, shape).astype(np.uint8).reshape(-1, 1)
            width = 2 if bits <= 2 else 4 if bits <= 4 else 8
            lanes = np.unpackbits(zeros, axis=1, bitorder="little")[:, :width]
            found["zero_points"] = np.packbits(lanes.reshape(-1), bitorder="little")
    return {role: found[role] for role in scheme.roles}


def digest(text: str) -> str:
    scheme = Scheme.parse(text)
    weight = EncodedWeight.from_arrays(scheme, ROWS, COLS, arrays(scheme, scheme.codec.code_bits))
    return hashlib.sha256(decode(weight).astype("<f4").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("text", GOLDEN)
def test_decoded_values_stay(text: str) -> None:
    assert digest(text) == GOLDEN[text]
