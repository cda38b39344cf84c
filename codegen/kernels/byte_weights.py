"""Weights as bytes for int8 dot products: which encoded weights fit, their physical layout, and reading them in a kernel.

A tile is R rows: vectors of `lanes` rows, whose 32-bit lanes hold four consecutive inputs each (a quad). Inputs come in blocks
of `block` values that share a scale; a block is whole quads. Codes of b bits lie in planes (8, 4, 2, 1 bits); the quads of a
block are spread over the bits of each plane's bytes, so that one load feeds 8 / width quads:

    codes[plane][tile][block][byte of the plane][vector of rows][lane][4 inputs]

* dense: every input, tiles of `TILE_VECTORS` vectors (many rows of activations, VNNI: `WIDE_TILE_VECTORS`).
* strip: blocks of R rows x 1 input (R a multiple of the lanes): only stored inputs, in order; the kernel packs the
  activations by the strip's bitmap (`positions`) and then runs the dense loop. Each strip is padded to whole blocks. Where little
  is stored, `listed`, the numbers of the stored inputs take the bitmap's place (`places`, uint16 [blocks][block]): packing by a
  bitmap costs the same at every density. Padding reads the input number `zero_input(k)`.

For smmla (`paired`: two or more rows of activations on aarch64 with i8mm, blocks of whole eights) every two quads of a vector
hold rows 0 and 1, then rows 2 and 3, eight inputs each (dot.pair_quads).

* vector (dense only): a code of a vector codebook stands for several inputs. The codes of a block of a row, b bits an input, are a
  stream of bits; vectors of rows hold it word by word, where quads of b-bit codes would lie (vector_codes.py).

Codes that a table is looked up by lie in half bytes of the planes (nibbles.py); of 3 bits two planes hold more than their own bits.

Numbers are `code - offset` (int), `code - zero point` (uint) or `table[code]` with at most 16 entries rounded to
TABLE_MAX steps (sparsec/int8.py), each times its scale. In strips every number comes from a table of signed bytes and
`row_sums` holds the sum of each row: x86 then offsets the inputs instead of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import numpy as np

from sparsec.codegen.isa.dot import multiplies_pairs, packed_at_once, pair_quads, supported, table_offset
from sparsec.codegen.kernels import nibbles, vector_codes
from sparsec.codegen.program import FROM_DATA, Arg
from sparsec.formats.encoded import Unpacked
from sparsec.formats.meaning import AffineValue, Meaning, TableValue, VectorValue
from sparsec.formats.structure import Dense
from sparsec.int8 import rounded_table
from sparsec.target import Target

Array = np.ndarray[Any, Any]
# Vectors of rows a dense tile has: two accumulators hide the latency of the additions. With VNNI and 32 registers three of them and
# four rows of activations fit, with their sums in float32: less is loaded for a product.
TILE_VECTORS, WIDE_TILE_VECTORS = 2, 3
# Rows of activations from which on tiles are wide.
_WIDE_FROM = 8
# Share of stored inputs below which strips list them, by how many inputs a bitmap chooses from at once: of one row, and of four that
# are interleaved. (Measured on Zen 5.)
_LISTED, _LISTED_OF_FOUR = {8: 0.22, 64: 0.03}, {8: 0.28, 16: 0.19}
# Quads one unrolled step of a block covers: all bit fields of a plane of single bits.
_STEP = 8


@dataclass(frozen=True)
class Packed:
    """A weight in physical form: `params` for the kernel, `arrays` in the order of `arguments(params)`."""

    params: dict[str, Any]
    arrays: list[tuple[str, Array]]
    blocks: int
    """Blocks in all; of a sparse weight they are data, and no parameter."""


def zero_input(k: int) -> int:
    """The number of an input that is always zero, behind whole vectors of the k that there are."""
    return ceil(k / 16) * 16


def planes(bits: int) -> list[tuple[int, int]]:
    """(width, shift) of the planes of a code, low bits first."""
    result, shift = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            result.append((width, shift))
            shift += width
    return result


def refusal(weight: Unpacked, target: Target, x_group: int) -> str:
    """Why `pack` cannot lay this weight out ("" if it can)."""
    scheme = weight.scheme
    codec, meaning, scales = scheme.codec, scheme.codec.meaning, scheme.scales
    r, c = scheme.block
    if not isinstance(scheme.structure, Dense) and (c != 1 or r % target.lanes):
        return f"blocks of {r}x{c} are no strips of whole vectors of {target.lanes} rows"
    sparse = not isinstance(scheme.structure, Dense)
    if not supported(target):
        return f"target '{target.name}' has no products of bytes"
    if x_group and (sparse or (scales.kind == "group" and scales.group != x_group)):
        return f"groups of {x_group} inputs do not follow the blocks of the weight"
    if sparse and (weight.zero_points is not None or codec.code_bits > 4):
        return "strips hold codes of at most 4 bits without zero points"
    if isinstance(meaning, TableValue) and meaning.bits > 4:
        return f"tables of {1 << meaning.bits} entries do not fit a byte lookup"
    if isinstance(meaning, VectorValue):
        if sparse:
            return "strips hold no codes of vectors"
        if why := vector_codes.refusal(meaning):
            return why
        if x_group % meaning.dim:
            return f"groups of {x_group} inputs are not whole vectors of {meaning.dim}"
    if isinstance(meaning, TableValue | VectorValue):
        tile, scope = _tile_rows(weight, target), meaning.scope
        if scope.kind == "rows" and scope.span % tile:
            return f"a codebook for {scope.span} rows is less than a tile of {tile}"
        if scope.kind == "inputs" and (sparse or scope.span % max(scales.group, 4)):
            return "codebooks of input groups do not follow the blocks of the scales"
    elif not isinstance(meaning, AffineValue):
        return f"codec {codec} is not stored in bytes"
    if scales.kind == "group" and scales.group % 4:
        return f"groups of {scales.group} are not whole quads"
    if weight.cols > 60_000:
        return "sums of this many products overflow 32 bits"
    return ""


def _tile_rows(weight: Unpacked, target: Target, m: int = 1) -> int:
    """Rows of a tile for `m` rows of activations."""
    if not isinstance(weight.scheme.structure, Dense):
        return weight.scheme.block[0]
    usual = target.lanes * min(TILE_VECTORS, ceil(weight.rows / target.lanes))
    wide, meaning = target.lanes * WIDE_TILE_VECTORS, weight.scheme.codec.meaning
    if m < _WIDE_FROM or not target.vnni or target.vector_registers < 32 or isinstance(meaning, VectorValue):
        return usual
    if isinstance(meaning, TableValue) and meaning.scope.kind == "rows" and meaning.scope.span % wide:
        return usual
    return wide if ceil(weight.rows / wide) * wide <= ceil(weight.rows / usual) * usual else usual


def pack(weight: Unpacked, target: Target, x_group: int, label: str, m: int = 1) -> Packed:
    """Lay a weight out for `m` rows of activations; `x_group`: inputs that share an activation scale (0: all). `refusal` must
    be empty."""
    scheme = weight.scheme
    meaning, scales = scheme.codec.meaning, scheme.scales
    tile = _tile_rows(weight, target, m)
    tiles = ceil(weight.rows / tile)
    sparse = not isinstance(scheme.structure, Dense)
    bits = scheme.codec.code_bits
    block = scales.group if scales.kind == "group" else x_group
    if isinstance(meaning, TableValue | VectorValue) and meaning.scope.kind == "inputs":
        block = block or meaning.scope.span
    params: dict[str, Any] = {
        "kind": "table" if isinstance(meaning, TableValue) or sparse else "affine", "bits": bits, "rows": weight.rows, "k": weight.cols,
        "tile": tile, "tiles": tiles, "sparse": sparse, "scales": scales.kind, "zero_points": weight.zero_points is not None,
        "offset": _offset(meaning), "scope": "one",
    }  # fmt: skip
    if isinstance(meaning, VectorValue):
        form = vector_codes.Form.of(meaning)
        params |= {"kind": "vector", "bits": bits // meaning.dim}
        params |= {"unit_quads": form.unit_quads, "lookups": form.lookups, "code_bits": form.code_bits}

    def paired(size: int) -> bool:
        return multiplies_pairs(target) and m > 1 and size % 8 == 0

    if sparse:
        mask = weight.block_mask  # strips x inputs; the weights of a strip are a run of blocks
        counts = mask.sum(axis=1)
        # without group scales all stored inputs of a strip are one block of whole steps
        size = block or 4 * _STEP
        per_strip = np.maximum(1, -(-counts // size)) if block else -(-counts // size)
        first = np.concatenate([[0], np.cumsum(per_strip)]).astype(np.int32)
        stored = np.zeros((int(first[-1]) * size, tile), np.uint8)
        place = np.concatenate([np.arange(c) + f * size for c, f in zip(counts, first, strict=False)])
        stored[place.astype(np.int64)] = weight.codes[:, :, 0]
        physical = stored.reshape(-1, size, tile).transpose(0, 2, 1)  # block, row, input
        four = target.arch == "x86_64" and m > 1
        listed = bool(mask.mean() < (_LISTED_OF_FOUR if four else _LISTED)[packed_at_once(target, lanes=four)])
        params |= {"block": size, "one_block": not block, "paired": paired(size), "listed": listed}
        # a power of two: strips of about the same density share their kernel
        words = ceil(weight.cols / 8) * tiles / max(1, int(first[-1]))
        params["words_a_block"] = 0 if params["listed"] else 1 << max(0, round(log2(words)))
        if params["listed"]:
            places = np.full(len(stored), zero_input(weight.cols), np.uint16)
            places[place.astype(np.int64)] = np.nonzero(mask)[1]
            chosen: tuple[str, Array] = ("places", places)
        else:
            chosen = ("positions", _bitmap(mask))
        arrays = [chosen, ("starts", first)]
    else:
        size = block or ceil(weight.cols / (4 * _STEP)) * 4 * _STEP
        count = ceil(weight.cols / size)
        params |= {"block": size, "blocks": tiles * count, "one_block": not block, "paired": paired(size)}
        arrays = []
        if params["kind"] == "vector":
            streams = vector_codes.streams(weight, tiles * tile, size).reshape(tiles, tile, count, -1)
            arrays.append(("codes0", streams.transpose(0, 2, 3, 1).reshape(-1).view(np.uint8)))
        else:
            padded = np.zeros((tiles * tile, count * size), np.uint8)
            padded[: weight.rows, : weight.cols] = weight.codes[:, 0, 0].reshape(weight.rows, weight.cols)
            if bits == 8 and target.arch == "aarch64":
                # sdot reads signed bytes: 8-bit codes lose their offset of 128 here
                padded ^= 0x80
                params["offset"] -= 128
            physical = padded.reshape(tiles, tile, count, size).transpose(0, 2, 1, 3).reshape(-1, tile, size)
    if params["kind"] != "vector":
        tables = params["kind"] == "table"
        arrays += code_arrays(physical, bits, target.lanes, tables=tables, paired=params["paired"])
    arrays += _scale_arrays(weight, params, arrays)
    if params["kind"] != "affine":
        arrays += table_arrays(weight, params, target)
    if sparse and target.arch == "x86_64":
        sums = np.zeros(tiles * tile, np.float32)
        sums[: weight.rows] = _row_sums(weight)
        arrays.append(("row_sums", sums))
    blocks = params["blocks"] if params["kind"] == "vector" else len(physical)
    for (name, array), arg in zip(arrays, arguments(params, target, blocks), strict=True):
        assert (array.size, str(array.dtype)) == (arg.size, arg.dtype), (label, name, array.size, array.dtype, arg)
    return Packed(params, [(f"{label}.{name}", array) for name, array in arrays], blocks)


def _offset(meaning: Meaning) -> int:
    return (meaning.offset or 0) if isinstance(meaning, AffineValue) else 0


def _bitmap(mask: Array) -> Array:
    wide = np.zeros((len(mask), ceil(mask.shape[1] / 8) * 8), bool)
    wide[:, : mask.shape[1]] = mask
    return np.packbits(wide, axis=1, bitorder="little").reshape(-1)


def code_arrays(
    physical: Array, bits: int, lanes: int, *, tables: bool, paired: bool = False
) -> list[tuple[str, Array]]:
    """Planes of codes [blocks, R, block]: see the module's docstring. tables: they are looked up (nibbles.py)."""
    blocks, tile, size = physical.shape
    quads = physical.reshape(blocks, tile // lanes, lanes, size // 4, 4).transpose(0, 3, 1, 2, 4)
    if paired:
        quads = pair_quads(quads)
    if tables and bits == 3:
        return [(f"codes{i}", plane.reshape(-1)) for i, plane in enumerate(nibbles.three_bit_planes(quads))]
    arrays = []
    for plane, (width, shift) in enumerate(planes(bits)):
        part = (quads >> shift) & ((1 << width) - 1)
        per_byte = 8 // width
        steps = ceil(part.shape[1] / per_byte)
        padded = np.zeros((blocks, steps * per_byte, *part.shape[2:]), np.uint8)
        padded[:, : part.shape[1]] = part
        fields = padded.reshape(blocks, steps, per_byte, *part.shape[2:])
        shifts = (np.arange(per_byte) * width).astype(np.uint8).reshape(-1, 1, 1, 1)
        arrays.append((f"codes{plane}", np.bitwise_or.reduce(fields << shifts, axis=2).reshape(-1)))
    return arrays


def _scale_arrays(weight: Unpacked, p: dict[str, Any], made: list[tuple[str, Array]]) -> list[tuple[str, Array]]:
    kind, tile, tiles = p["scales"], p["tile"], p["tiles"]
    if kind == "none":
        return []
    assert weight.scales is not None

    def physical(values: Array, dtype: str) -> Array:
        if kind == "tensor":
            return values.reshape(-1).astype(dtype)
        rows = np.zeros((tiles * tile, values.shape[1]), dtype)
        rows[: weight.rows] = values
        by_tile = rows.reshape(tiles, tile, -1).transpose(0, 2, 1)  # tile, group, row
        if kind == "channel" or not p["sparse"]:
            return by_tile.reshape(-1)
        first = next(array for name, array in made if name == "starts")
        pieces = [by_tile[t, : first[t + 1] - first[t]] for t in range(tiles)]
        # a strip without stored values still has one block, of zeros, and may have no scale
        pieces = [
            np.concatenate([q, np.zeros((first[t + 1] - first[t] - len(q), tile), q.dtype)])
            for t, q in enumerate(pieces)
        ]
        return np.concatenate(pieces).reshape(-1)

    arrays = [("scales", physical(weight.scales, "float16" if kind == "group" else "float32"))]
    if weight.zero_points is not None:
        arrays.append(("zero_points", physical(weight.zero_points, "uint8")))
    return arrays


def signed_table(weight: Unpacked) -> tuple[Array, Array]:
    """(int8 [S, entries], float32 [S] scales): what the codes stand for."""
    if weight.codebook is not None:
        return rounded_table(weight.codebook)
    codec = weight.scheme.codec
    return (np.arange(1 << codec.code_bits) - _offset(codec.meaning)).astype(np.int8)[None], np.ones(1, np.float32)


def _row_sums(weight: Unpacked) -> Array:
    """float32 [N]: the sum of the numbers of each row, as the kernel reads them."""
    entries, scale = signed_table(weight)
    numbers = entries.astype(np.float64) * scale[:, None]
    mask = weight.block_mask
    strip, _ = np.nonzero(mask)
    r = weight.scheme.block[0]
    meaning = weight.scheme.codec.meaning
    table = np.zeros_like(strip)
    if isinstance(meaning, TableValue) and meaning.scope.kind == "rows" and len(numbers) > 1:
        table = strip * r // meaning.scope.span
    values = numbers[table[:, None], weight.codes[:, :, 0]]
    if weight.scales is not None:
        group = weight.scheme.scales.group
        rank = np.arange(len(strip)) - np.concatenate([[0], np.cumsum(mask.sum(1))])[strip]
        column = rank // group if weight.scheme.scales.kind == "group" else np.zeros_like(rank)
        padded = np.zeros((len(mask) * r, weight.scales.shape[1]))
        padded[: weight.rows] = weight.scales
        rows = strip[:, None] * r + np.arange(r)
        values = values * padded[rows, column[:, None]]
    sums = np.zeros((len(mask), r))
    np.add.at(sums, strip, values)
    return sums.reshape(-1)[: weight.rows]


def table_arrays(weight: Unpacked, p: dict[str, Any], target: Target) -> list[tuple[str, Array]]:
    meaning = weight.scheme.codec.meaning
    entries, scale = signed_table(weight)
    offset = 0 if p["sparse"] else table_offset(target)
    p |= {"offset": offset, "tables": len(entries), "span": 0}
    if len(entries) > 1:
        assert isinstance(meaning, TableValue | VectorValue)
        p["scope"] = meaning.scope.kind
        p["span"] = meaning.scope.span // (p["tile"] if meaning.scope.kind == "rows" else p["block"])
    if isinstance(meaning, VectorValue):
        words = vector_codes.tables(meaning, entries)
        words[:, : p["unit_quads"] << p["code_bits"]] += np.int8(offset)  # of one lookup: they are added up
        return [("table", words.reshape(-1).view(np.int32)), ("table_scale", scale)]
    wide = np.zeros((len(entries), 1 << p["bits"]), np.int16)
    wide[:, : entries.shape[1]] = entries
    repeated = np.tile((wide + offset).astype(np.uint8)[:, nibbles.meanings(p["bits"])], target.lanes // 4)
    return [("table", repeated.reshape(-1)), ("table_scale", scale)]


def table_bytes(p: Mapping[str, Any], target: Target) -> int:
    """Bytes of one table of scalars, in all its forms (nibbles.py)."""
    return nibbles.table_count(p["bits"]) * target.lanes * 4


def arguments(p: Mapping[str, Any], target: Target, blocks: int | None = None) -> list[Arg]:
    """The kernel's pointer arguments for a packed weight, in the order of `Packed.arrays`; `blocks` of a sparse one are data."""
    blocks = p.get("blocks", blocks)
    args: list[Arg] = []
    if p["sparse"]:
        if p["listed"]:
            args.append(Arg("places", "uint16", FROM_DATA if blocks is None else blocks * p["block"], "in"))
        else:
            args.append(Arg("positions", "uint8", p["tiles"] * ceil(p["k"] / 8), "in"))
        args.append(Arg("starts", "int32", p["tiles"] + 1, "in"))
    for plane, _ in enumerate(planes(p["bits"])):
        size = FROM_DATA if blocks is None else blocks * p["tile"] * plane_bytes(p, plane)
        args.append(Arg(f"codes{plane}", "uint8", size, "in"))
    if p["scales"] != "none":
        by_block = FROM_DATA if blocks is None else blocks * p["tile"]
        size = {"tensor": 1, "channel": p["tiles"] * p["tile"], "group": by_block}[p["scales"]]
        args.append(Arg("scales", "float16" if p["scales"] == "group" else "float32", size, "in"))
        if p["zero_points"]:
            args.append(Arg("zero_points", "uint8", size, "in"))
    if p["kind"] == "vector":
        args.append(Arg("table", "int32", p["tables"] * table_words(p), "in"))
    if p["kind"] == "table":
        args.append(Arg("table", "uint8", p["tables"] * table_bytes(p, target), "in"))
    if p["kind"] != "affine":
        args.append(Arg("table_scale", "float32", p["tables"], "in"))
    if p["sparse"] and target.arch == "x86_64":
        args.append(Arg("row_sums", "float32", p["tiles"] * p["tile"], "in"))
    return args


def table_words(p: Mapping[str, Any]) -> int:
    """Words of one table of vectors."""
    count: int = p["lookups"] * p["unit_quads"] << p["code_bits"]
    return count


def plane_bytes(p: Mapping[str, Any], plane: int) -> int:
    """Bytes a row of a block takes in a plane."""
    width, _ = planes(p["bits"])[plane]
    quads: int = p["block"] // 4
    return 4 * ceil(quads * width / 8)
