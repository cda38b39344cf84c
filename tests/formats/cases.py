"""For the format and operator tests: every kind of scheme, matching masks, a decoder written element by element."""

from __future__ import annotations

import re

import numpy as np

from sparsec.errors import SchemeError
from sparsec.formats import CODECS, NM, EncodedWeight, FanIn, Scheme, expand_block_mask
from sparsec.formats.meaning import TableValue, VectorValue

STRUCTURES = ("", "s50", "s97.5", "s2:4", "s1:3", "sf75", "s3x2@50", "s4x1@60", "s1x4@70")
TOKENS = (*(token for codec in CODECS for token in codec.tokens), "cb3.r2", "cb4.i5", "cb1.r1")
SCALES = ("", "t", "c", "g4", "g12")
# These meet every codec with all scales, the others in turn.
_THOROUGH = ("", "s3x2@50", "s1x4@70")
SIZES = ((1, 1), (1, 7), (13, 1), (5, 24), (11, 29))


def legal_schemes() -> list[Scheme]:
    """Legal combinations of the parts above: each structure with each codec, most with each kind of scales."""
    found = []
    for i, structure in enumerate(STRUCTURES):
        for j, codec in enumerate(TOKENS):
            for s, scales in enumerate(SCALES):
                if structure not in _THOROUGH and (i + j) % len(SCALES) != s:
                    continue
                try:
                    found.append(Scheme.parse("-".join(part for part in (structure, codec, scales) if part)))
                except SchemeError:
                    continue
    return sorted(set(found), key=str)


def random_mask(scheme: Scheme, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray | None:
    """A legal keep-mask with some empty and some full rows; None for dense."""
    if scheme.is_dense:
        return None
    structure = scheme.structure
    if isinstance(structure, NM):
        order = rng.random((rows, -(-cols // structure.m), structure.m)).argsort(2)
        return (order < structure.n).reshape(rows, -1)[:, :cols]
    if isinstance(structure, FanIn):
        return rng.random((rows, cols)).argsort(1) < rng.integers(0, cols + 1)
    r, c = scheme.block
    coarse = rng.random((-(-rows // r), -(-cols // c))) < 0.4
    coarse[rng.random(coarse.shape[0]) < 0.2] = False
    coarse[rng.random(coarse.shape[0]) < 0.1] = True
    return expand_block_mask(coarse, scheme.block, rows, cols).copy()


def slow_decode(encoded: EncodedWeight) -> np.ndarray:
    """W, element by element, straight from the definition in docs/formats.md; shares no code with the package."""
    scheme, rows, cols = encoded.scheme, encoded.rows, encoded.cols
    r, c = scheme.block
    codec = str(scheme.codec)
    bits = scheme.codec.code_bits
    meaning = scheme.codec.meaning
    dim = scheme.codec.dim
    if scheme.is_dense:
        c = dim
    blocks_across = -(-cols // c)
    result = np.zeros((rows, cols), np.float32)
    place = 0

    def code(element: int) -> int:
        value, shift = 0, 0
        for plane, width in enumerate((8,) * (bits // 8) + tuple(w for w in (4, 2, 1) if bits & w)):
            stream = int.from_bytes(encoded.codes[plane].tobytes(), "little")
            value |= ((stream >> (element * width)) & ((1 << width) - 1)) << shift
            shift += width
        return value

    def table(n: int, k: int) -> int:
        scope = re.search(r"\.([ri])(\d+)", str(scheme.codec))
        return 0 if scope is None else {"r": n, "i": k}[scope[1]] // int(scope[2])

    for strip in range(-(-rows // r)):
        rank = 0
        for column in range(blocks_across):
            block = strip * blocks_across + column
            if encoded.positions is not None and not (int(encoded.positions[block // 8]) >> (block % 8)) & 1:
                continue
            for i in range(r):
                for j in range(c):
                    n, k = strip * r + i, column * c + j
                    element = place * r * c + i * c + j
                    if n >= rows or k >= cols:
                        continue
                    kind = scheme.scales.kind
                    g = rank * c // scheme.scales.group if kind == "group" else 0
                    at = (0, 0) if kind == "tensor" else (n, g)
                    scale = np.float32(1) if encoded.scales is None else np.float32(encoded.scales[at])
                    if codec in ("fp32", "fp16"):
                        value = np.float32(encoded.codes[0][element])
                    elif isinstance(meaning, VectorValue):
                        assert encoded.codebook is not None
                        value = np.float32(0)
                        for stage in range(meaning.stages):
                            part = (code(element // dim) >> (stage * meaning.bits)) % (1 << meaning.bits)
                            value = value + np.float32(encoded.codebook[table(n, k), stage, part, element % dim])
                        value = value * scale
                    elif isinstance(meaning, TableValue) and meaning.levels is not None:
                        value = np.float32(meaning.levels[code(element)]) * scale
                    elif isinstance(meaning, TableValue):
                        assert encoded.codebook is not None
                        value = encoded.codebook[table(n, k), code(element)] * scale
                    elif codec.startswith("uint"):
                        assert encoded.zero_points is not None
                        value = np.float32(code(element) - int(encoded.zero_points[at])) * scale
                    elif codec.startswith("int"):
                        value = np.float32(code(element) - 2 ** (bits - 1)) * scale
                    else:
                        value = np.float32(code(element) - 1) * scale
                    result[n, k] = value
            rank += 1
            place += 1
    return result
