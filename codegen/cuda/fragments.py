"""Compressed weights for the tensor cores: the physical layout (decode.py emits the reading of it).

A warp multiplies panels of 16 * RT rows of W by 64 inputs at a time. The first operand of mma.m16n8k16 gives lane 4 g + q the rows g
and g + 8 of a tile; which inputs its columns stand for is free as long as the second operand agrees, so that lane holds 16
consecutive inputs, q * 16 onwards, in four steps of 4. What a lane needs of a panel and 64 inputs is one run of words,
codes of row g of tile 0, then g + 8 of tile 0, then tile 1 ...; runs lie so that a warp reads 16 bytes a lane at once.
No byte is read twice and none that stands for nothing, but for what rounds sizes up to whole panels and 64 inputs.

Codes become values in one of three ways, `decode` in the parameters:

* float: they are the values, in the storage type.
* affine: fields of 1, 2, 4 or 8 bits, exact arithmetic on pairs; field j of a word belongs with the one 16 bits higher.
* lookup: an index of up to 12 bits finds 1 to 8 neighbouring values in a table in shared memory: several narrow codes at once, single
  wide ones, vectors. The stages of a vector codebook are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.codegen.program import FROM_DATA, Arg
from sparsec.formats.encoded import Unpacked
from sparsec.formats.meaning import AffineValue, FloatValue, TableValue, VectorValue

Array = np.ndarray[Any, Any]

INPUTS = 64
"""Inputs of a step of a warp."""
LANE_INPUTS = 16
"""Of these, the inputs of one lane in one row."""
TABLE_BYTES = 32 * 1024
"""Shared memory for a table together with its copies: lanes with a copy each never wait for one another."""
_LARGEST_TABLE = 64 * 1024
_TOGETHER = {1: 4, 2: 4, 3: 2, 4: 2}  # bits of a code: how many neighbouring codes are looked up at once
_HALF_MAX = 65504.0


@dataclass(frozen=True)
class Packed:
    """A weight in physical form: `params` for the kernel, `arrays` in the order of `arguments(params)`; stored: whole numbers [panels], the
    steps that each panel stores, None where it is all of them."""

    params: dict[str, Any]
    arrays: list[tuple[str, Array]]
    stored: Array | None = None


def row_tiles(weight: Unpacked | Array, wanted: int) -> int:
    """Tiles of 16 rows in a panel: `wanted`, or more so that lanes read 16 bytes at once."""
    if isinstance(weight, np.ndarray):
        return wanted
    bits, dim = weight.scheme.codec.code_bits or 16, weight.scheme.codec.dim
    tiles = wanted
    while tiles < 4 and (2 * LANE_INPUTS * tiles * bits) % (dim * 128):
        tiles *= 2
    return tiles


def refused(weight: Unpacked | Array, panel: int, storage: str, any_group: bool = False) -> str:
    """Why kernels cannot decode this weight in panels of so many rows; "" if they can. any_group: groups may begin anywhere."""
    if reason := beyond_halves(weight, storage):
        return reason
    if isinstance(weight, np.ndarray):
        return ""
    scales = weight.scheme.scales
    if scales.kind == "group" and scales.group % LANE_INPUTS and not any_group:
        return f"groups of {scales.group} values are no multiple of {LANE_INPUTS}"
    return refused_book(weight, panel)


def beyond_halves(weight: Unpacked | Array, storage: str) -> str:
    """Which value the storage type does not hold; "" if there is none."""
    values = weight if isinstance(weight, np.ndarray) else weight.codebook
    if isinstance(weight, Unpacked) and isinstance(weight.scheme.codec.meaning, FloatValue):
        values = weight.codes
    if values is not None and storage == "float16" and np.abs(values).max(initial=0) > _HALF_MAX:
        return f"a value of {np.abs(values).max():.3g} is beyond {storage}"
    return ""


def refused_book(weight: Unpacked, panel: int) -> str:
    """Why a panel of so many rows cannot have its table in shared memory; "" if it can."""
    codec, meaning = weight.scheme.codec, weight.scheme.codec.meaning
    several = weight.codebook is not None and len(weight.codebook) > 1
    if several and isinstance(meaning, TableValue | VectorValue):
        whole = meaning.scope.kind == "rows" and meaning.scope.span % panel == 0
        if not whole:
            return f"codebooks of '{codec}' change within {panel} rows"
    if isinstance(meaning, VectorValue) and _table_bytes(weight) > _LARGEST_TABLE:
        return (
            f"the codebook of '{codec}' takes {_table_bytes(weight)} bytes of shared memory; {_LARGEST_TABLE} are there"
        )
    return ""


def _table_bytes(weight: Unpacked) -> int:
    assert weight.codebook is not None
    return int(weight.codebook[0].size) * 2


def half_type(storage: str) -> np.dtype[Any]:
    """The storage type in numpy."""
    import ml_dtypes

    return np.dtype(np.float16 if storage == "float16" else ml_dtypes.bfloat16)


def halves(values: Array, storage: str) -> Array:
    """uint16 bits of values in a storage type, rounded to nearest."""
    return values.astype(half_type(storage)).view(np.uint16)


def pack(weight: Unpacked | Array, tiles: int, storage: str, label: str = "weight") -> Packed:
    """Lay out W[N, K], float32 or encoded and dense, for panels of 16 * tiles rows; values in `storage`."""
    if isinstance(weight, np.ndarray):
        params: dict[str, Any] = {"decode": "float", "bits": 16, "dim": 1, "scales": "none", "group": 0, "zeros": False}
        rows, cols = weight.shape
        codes: Array = halves(weight, storage)
        book: list[tuple[str, Array]] = []
        shared: list[tuple[str, Array]] = []
    else:
        rows, cols = weight.rows, weight.cols
        params = decoding(weight, storage)
        codes = weight.codes.reshape(rows, -1)
        if params["decode"] == "float":
            codes = halves(codes, storage)
        book = [("table", table(weight, params, storage))] if params["decode"] == "lookup" else []
        shared = scale_arrays(weight, params, tiles)
    params |= {"n": rows, "k": cols, "tiles": tiles}
    arrays = [("codes", lay_out(codes, params)), *shared, *book]
    for (name, array), arg in zip(arrays, arguments(params), strict=True):
        assert (name, array.size, str(array.dtype)) == (arg.name, arg.size, arg.dtype), (label, name, array.size, arg)
    return Packed(params, [(f"{label}.{name}", array) for name, array in arrays])


def decoding(weight: Unpacked, storage: str, single: bool = False) -> dict[str, Any]:
    """The parameters that say how codes become values; single: codes are looked up one by one."""
    codec, scales, meaning = weight.scheme.codec, weight.scheme.scales, weight.scheme.codec.meaning
    bits = codec.code_bits
    params: dict[str, Any] = {
        "bits": bits, "dim": codec.dim, "scales": scales.kind, "group": scales.group, "zeros": weight.zero_points is not None,
    }  # fmt: skip
    if isinstance(meaning, FloatValue):
        return params | {"decode": "float", "bits": 16}
    if scales.kind == "group":
        assert weight.scales is not None
        params["groups"] = int(weight.scales.shape[1])
    if (
        not single
        and isinstance(meaning, AffineValue)
        and bits in ((1, 2, 4, 8) if storage == "float16" else (1, 2, 4))
    ):
        return params | {"decode": "affine", "offset": meaning.offset or 0}
    books = 1 if weight.codebook is None else len(weight.codebook)
    lookup: dict[str, Any] = {"decode": "lookup", "books": books, "stages": 1, "index_bits": bits, "values": 1}
    if books > 1:
        assert isinstance(meaning, TableValue | VectorValue)
        lookup["span"] = meaning.scope.span
    if isinstance(meaning, VectorValue):
        lookup |= {"stages": meaning.stages, "index_bits": meaning.bits, "values": meaning.dim}
    elif bits in _TOGETHER and not single:
        lookup |= {"index_bits": _TOGETHER[bits] * bits, "values": _TOGETHER[bits]}
    return params | lookup


def table(weight: Unpacked, p: Mapping[str, Any], storage: str) -> Array:
    """uint32 [books, stages, entries, words of an entry]: what the kernel copies to shared memory. Single values have a word each."""
    meaning = weight.scheme.codec.meaning
    if isinstance(meaning, AffineValue):
        book = (np.arange(1 << p["bits"], dtype=np.float32) - np.float32(meaning.offset or 0))[None]
    else:
        assert weight.codebook is not None
        book = weight.codebook
    if isinstance(meaning, VectorValue):
        return halves(book, storage).reshape(-1).view(np.uint32)
    values = np.zeros((len(book), 1 << p["bits"]), np.float32)
    values[:, : book.shape[1]] = book
    if p["values"] == 1:
        return halves(values, storage).astype(np.uint32).reshape(-1)
    index, mask = np.arange(1 << p["index_bits"]), (1 << p["bits"]) - 1
    parts = [values[:, (index >> (i * p["bits"])) & mask] for i in range(p["values"])]
    return np.ascontiguousarray(halves(np.stack(parts, axis=-1), storage)).reshape(-1).view(np.uint32)


def lay_out(codes: Array, p: Mapping[str, Any], extra: Array | None = None) -> Array:
    """uint32 words of codes [N, ceil(K / dim)] in the order kernels read them; what is no weight has code 0.

    extra: words [panels, steps, 32, n] that lanes read after their codes."""
    rows, each = 16 * p["tiles"], LANE_INPUTS // p["dim"]
    panels, steps = -(-codes.shape[0] // rows), -(-codes.shape[1] // (4 * each))
    padded = np.zeros((panels * rows, steps * 4 * each), codes.dtype)
    padded[: codes.shape[0], : codes.shape[1]] = codes
    made = []
    if not steps:
        return np.zeros(0, np.uint32)
    for panel in padded.reshape(panels, p["tiles"], 2, 8, steps, 4, each):
        # tile, half, g, step, q, code -> step, g, q, tile, half, code
        made.append(_words(panel.transpose(3, 2, 4, 0, 1, 5).reshape(steps, 32, -1), p))
    words = np.stack(made)  # panel, step, lane, word
    if extra is not None:
        words = np.concatenate([words, extra], axis=-1)
    return by_vectors(words, p)


def by_vectors(words: Array, p: Mapping[str, Any]) -> Array:
    """Words [panels, steps, 32, n] of lanes, so that a warp reads as much as it can at once; flat."""
    split = words.reshape(*words.shape[:3], words.shape[3] // vector_words(p), vector_words(p))
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2, 4)).reshape(-1)


def _words(codes: Array, p: Mapping[str, Any]) -> Array:
    """uint32 [steps, 32, words] of the codes [steps, 32, n] of lanes."""
    bits = p["bits"]
    if p["decode"] == "affine":
        # word by word: code 2 j in field j, code 2 j + 1 16 bits above it
        per = 32 // bits
        order = np.arange(per).reshape(2, -1).T.reshape(-1) * bits  # bit of each code of a word
        short = -codes.shape[-1] % per
        codes = np.pad(codes, ((0, 0), (0, 0), (0, short)))
        fields = codes.reshape(*codes.shape[:2], -1, per).astype(np.uint32) << order.astype(np.uint32)
        return np.asarray(np.bitwise_or.reduce(fields, axis=-1))
    if bits in (8, 16, 32):
        kind = {8: np.uint8, 16: np.uint16, 32: np.uint32}[bits]
        raw = np.ascontiguousarray(codes.astype(kind)).view(np.uint8)
    else:
        ones = (codes[..., None] >> np.arange(bits, dtype=codes.dtype)) & codes.dtype.type(1)
        raw = np.packbits(ones.astype(np.uint8).reshape(*codes.shape[:2], -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(np.pad(raw, ((0, 0), (0, 0), (0, -raw.shape[-1] % 4)))).view(np.uint32)


def scale_arrays(weight: Unpacked, p: dict[str, Any], tiles: int) -> list[tuple[str, Array]]:
    if weight.scales is None:
        return []
    kind = weight.scheme.scales.kind
    arrays = [("scales", weight.scales)]
    if weight.zero_points is not None:
        arrays.append(("zeros", weight.zero_points))
    laid = []
    for name, array in arrays:
        if kind == "tensor" and name == "scales":
            laid.append((name, array.reshape(-1).astype(np.float32)))
            continue
        rows = np.broadcast_to(array, (weight.rows, 1)) if kind == "tensor" else array
        dtype = np.uint8 if name == "zeros" else np.float16 if kind == "group" else np.float32
        laid.append((name, by_lane(rows, tiles).astype(dtype)))
    return laid


def by_lane(values: Array, tiles: int) -> Array:
    """[N, G] -> flat [panel, G, 8, 2 * tiles]: what lanes of the same g need of a panel and group, side by side."""
    rows, groups = 16 * tiles, values.shape[1]
    panels = -(-len(values) // rows)
    padded = np.zeros((panels * rows, groups), values.dtype)
    padded[: len(values)] = values
    return np.ascontiguousarray(padded.reshape(panels, 2 * tiles, 8, groups).transpose(0, 3, 2, 1)).reshape(-1)


def place_of_row(p: Mapping[str, Any], row: Any) -> Any:
    """Where the scale of an output lies, for scales of rows (`by_lane` with one group)."""
    rows = 16 * p["tiles"]
    return (row // rows * 8 + row % 8) * (2 * p["tiles"]) + row % rows // 8


def panels(p: Mapping[str, Any]) -> int:
    """Panels of the weight."""
    return int(-(-p["n"] // (16 * p["tiles"])))


def step_inputs(p: Mapping[str, Any]) -> int:
    """Inputs of A in a step: 64 that are stored, of twice as many where two of four are stored (pairs.py)."""
    return 2 * INPUTS if p.get("pairs") else INPUTS


def steps(p: Mapping[str, Any]) -> int:
    """Steps of 64 stored inputs."""
    return int(-(-p["k"] // step_inputs(p)))


def octets_of(p: Mapping[str, Any]) -> int:
    """Runs of 256 positions that a strip's bitmap is made of."""
    units = -(-p["k"] // p["dim"])
    return int(-(-units // 256))


def groups(p: Mapping[str, Any]) -> int:
    """Groups of scales in a row."""
    return int(p["groups"]) if p["scales"] == "group" else 1


def code_words(p: Mapping[str, Any]) -> int:
    """Words of codes that a lane reads of a panel in a step; of scattered.py, of what is stored."""
    if p.get("scattered"):
        return int(p["tiles"])
    return int(-(-2 * LANE_INPUTS * p["tiles"] * p["bits"] // (32 * p["dim"])))


def lane_words(p: Mapping[str, Any]) -> int:
    """All words of that: behind the codes those that say which inputs are stored, for pairs.py."""
    return code_words(p) + (2 * int(p["tiles"]) if p.get("pairs") else 0)


def vector_words(p: Mapping[str, Any]) -> int:
    """Words a lane reads at once: 4, 2 or 1."""
    words = lane_words(p)
    return 4 if words % 4 == 0 else 2 if words % 2 == 0 else 1


def table_words(p: Mapping[str, Any]) -> int:
    """Words of one book in memory, 0 where nothing is looked up."""
    if p["decode"] != "lookup":
        return 0
    return int(p["stages"] << p["index_bits"]) * entry_words(p)


def entry_words(p: Mapping[str, Any]) -> int:
    """Words of a table entry."""
    return max(1, int(p.get("values", 1)) // 2)


def copies(p: Mapping[str, Any]) -> int:
    """How often a table lies in shared memory, where it does (scattered.py)."""
    if "far" in p:
        return 0
    count = 32 // entry_words(p)
    while count > 1 and table_words(p) * 4 * count > TABLE_BYTES:
        count //= 2
    return count


def arguments(p: Mapping[str, Any]) -> list[Arg]:
    """The kernel's pointer arguments for a packed weight, in the order of `Packed.arrays`."""
    if "strip" in p:  # strips.py
        strips, octets = -(-p["n"] // p["strip"]), octets_of(p)
        args = [
            Arg("codes", "uint32", FROM_DATA, "in"),
            Arg("starts", "int32", panels(p) + 1, "in"),
            Arg("positions", "uint32", strips * octets * 8, "in"),
            Arg("ranks", "uint16", strips * (octets + 1), "in"),
        ]
    elif "blocks" in p:  # blocks.py
        args = [
            Arg("codes", "uint32", FROM_DATA, "in"),
            Arg("starts", "int32", panels(p) + 1, "in"),
            Arg("chunks", "uint16", FROM_DATA, "in"),
        ]
    elif p.get("scattered"):  # scattered.py
        args = [
            Arg("codes", "uint32", FROM_DATA, "in"),
            Arg("firsts", "int32", panels(p) + 1, "in"),
            Arg("inputs", "int32", FROM_DATA, "in"),
            Arg("stored", "uint8", FROM_DATA, "in"),
            Arg("starts", "int32", FROM_DATA, "in"),
        ]
        if p["scales"] == "group":
            args.append(Arg("ranks", "uint16", FROM_DATA, "in"))
    else:
        args = [Arg("codes", "uint32", panels(p) * steps(p) * 32 * lane_words(p), "in")]
    if p["scales"] != "none":
        size = panels(p) * 16 * p["tiles"] * groups(p)
        kind = "float16" if p["scales"] == "group" else "float32"
        args.append(Arg("scales", kind, 1 if p["scales"] == "tensor" else size, "in"))
        if p["zeros"]:
            args.append(Arg("zeros", "uint8", size, "in"))
    if p["decode"] == "lookup":
        args.append(Arg("table", "uint32", p["books"] * table_words(p), "in"))
    return args
