"""Where stored values lie: bit planes, the position bitmap, and the row-stream view that makes all structures look
dense.

The row stream of a strip of R rows is its stored blocks in order of rank, side by side: value (row, rank * C + c).
Dense weights are their own row stream. Scales and codebooks are computed on it, so codecs never see a structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = [
    "Layout", "code_dtype", "pack_bits", "pack_planes", "plane_widths", "unpack_bits", "unpack_planes", "zero_point_bits",
]  # fmt: skip


def plane_widths(bits: int) -> tuple[int, ...]:
    """Widths of the planes a `bits`-bit code is split in, widest (= lowest bits) first: 3 -> (2, 1), 12 -> (8, 4)."""
    return (8,) * (bits // 8) + tuple(w for w in (4, 2, 1) if bits & w)


def zero_point_bits(bits: int) -> int:
    """Bits that the zero point of codes of 2 to 8 bits is stored in: the least of 2, 4 and 8 that hold any code."""
    return 2 if bits <= 2 else 4 if bits <= 4 else 8


def code_dtype(bits: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned integer that holds a code of `bits` bits."""
    return np.dtype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)


def _pack_plane(values: np.ndarray, width: int) -> np.ndarray:
    per_byte = 8 // width
    padded = np.zeros(-(-values.size // per_byte) * per_byte, np.uint8)
    padded[: values.size] = values
    lanes = padded.reshape(-1, per_byte)
    packed = lanes[:, 0].copy()
    for lane in range(1, per_byte):
        packed |= lanes[:, lane] << np.uint8(lane * width)
    return packed


def pack_planes(codes: np.ndarray, bits: int) -> tuple[np.ndarray, ...]:
    """Pack flat codes < 2**bits of dtype `code_dtype` into little-endian bit streams, one uint8 array per plane."""
    planes, shift, kind = [], 0, codes.dtype.type
    for width in plane_widths(bits):
        planes.append(_pack_plane(((codes >> kind(shift)) & kind((1 << width) - 1)).astype(np.uint8), width))
        shift += width
    return tuple(planes)


def unpack_planes(planes: tuple[np.ndarray, ...], bits: int, count: int) -> np.ndarray:
    """Inverse of `pack_planes`: codes of dtype `code_dtype` [count]."""
    codes, shift = np.zeros(count, code_dtype(bits)), 0
    kind = codes.dtype.type
    for plane, width in zip(planes, plane_widths(bits), strict=True):
        # One look-up a byte gives all its values: several times faster than shifting them out.
        lanes = (np.arange(8 // width) * width).astype(np.uint8)
        table = (np.arange(256, dtype=np.uint8)[:, None] >> lanes) & np.uint8((1 << width) - 1)
        values = table.view(f"u{8 // width}")[plane, 0].view(np.uint8)[:count]
        codes |= values.astype(kind, copy=False) << kind(shift)
        shift += width
    return codes


def pack_bits(mask: np.ndarray) -> np.ndarray:
    """The position bitmap of a boolean mask: uint8, row-major over all blocks, least significant bit first."""
    return np.packbits(mask.reshape(-1), bitorder="little")


def unpack_bits(bitmap: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `pack_bits`: bool of `shape`."""
    count = shape[0] * shape[1]
    return np.unpackbits(bitmap, count=count, bitorder="little").astype(bool).reshape(shape)


@dataclass(frozen=True, eq=False)
class Layout:
    """Maps between dense W[N, K], stored blocks [n, R, C] and the row stream [ceil(N/R)*R, L].

    block_mask: bool [ceil(N/R), ceil(K/C)], or None when dense.
    """

    rows: int
    cols: int
    block: tuple[int, int]
    block_mask: np.ndarray | None

    @property
    def grid(self) -> tuple[int, int]:
        """(ceil(N/R), ceil(K/C)): the number of blocks in each direction."""
        r, c = self.block
        return -(-self.rows // r), -(-self.cols // c)

    @cached_property
    def _where(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Strip, block column and rank in the strip of every stored block, in stored order."""
        assert self.block_mask is not None
        strip, column = np.nonzero(self.block_mask)
        counts = self.block_mask.sum(1)
        rank = np.arange(strip.size) - np.repeat(np.cumsum(counts) - counts, counts)
        return strip, column, rank

    @cached_property
    def stored_blocks(self) -> int:
        """Number of stored blocks."""
        return self.rows * self.cols if self.block_mask is None else int(self.block_mask.sum())

    @cached_property
    def length(self) -> int:
        """Columns L of the row stream: the fullest strip, at least one block so that shapes never vanish."""
        if self.block_mask is None:
            return self.cols
        return max(1, int(self.block_mask.sum(1).max())) * self.block[1]

    @property
    def stream_rows(self) -> int:
        """Rows of the row stream: N rounded up to a multiple of R."""
        return self.grid[0] * self.block[0]

    def _blocked(self, dense: np.ndarray) -> np.ndarray:
        (r, c), (nb, kb) = self.block, self.grid
        if dense.shape != (nb * r, kb * c):
            padded = np.zeros((nb * r, kb * c), dense.dtype)
            padded[: self.rows, : self.cols] = dense
            dense = padded
        return dense.reshape(nb, r, kb, c)

    def to_stream(self, dense: np.ndarray) -> np.ndarray:
        """Row stream of a dense [N, K] array; zero (False) where nothing is stored."""
        if self.block_mask is None:
            return dense
        strip, column, rank = self._where
        (r, c), (nb, _) = self.block, self.grid
        stream = np.zeros((nb, r, self.length // c, c), dense.dtype)
        stream[strip, :, rank, :] = self._blocked(dense)[strip, :, column, :]
        return stream.reshape(nb * r, -1)

    def from_stream(self, stream: np.ndarray) -> np.ndarray:
        """Dense [N, K] array of a row stream; zero where nothing is stored."""
        if self.block_mask is None:
            return stream
        strip, column, rank = self._where
        (r, c), (nb, kb) = self.block, self.grid
        dense = np.zeros((nb, r, kb, c), stream.dtype)
        dense[strip, :, column, :] = stream.reshape(nb, r, -1, c)[strip, :, rank, :]
        return dense.reshape(nb * r, kb * c)[: self.rows, : self.cols]

    def stream_to_blocks(self, stream: np.ndarray) -> np.ndarray:
        """Stored blocks [n, R, C] in stored order of a row stream."""
        if self.block_mask is None:
            return stream.reshape(-1, 1, 1)
        strip, _, rank = self._where
        return stream.reshape(self.grid[0], self.block[0], -1, self.block[1])[strip, :, rank, :]

    def blocks_to_stream(self, blocks: np.ndarray) -> np.ndarray:
        """Inverse of `stream_to_blocks`; zero in the tails of strips that are not full."""
        if self.block_mask is None:
            return blocks.reshape(self.rows, self.cols)
        strip, _, rank = self._where
        (r, c), (nb, _) = self.block, self.grid
        stream = np.zeros((nb, r, self.length // c, c), blocks.dtype)
        stream[strip, :, rank, :] = blocks
        return stream.reshape(nb * r, -1)

    def stream_columns(self) -> np.ndarray:
        """Input index k of every value of the row stream, int32, broadcastable to it (0 where nothing is stored)."""
        columns = np.arange(self.cols, dtype=np.int32)[None]
        if self.block_mask is None:
            return columns
        return self.to_stream(np.broadcast_to(columns, (self.rows, self.cols)))

    def stream_valid(self) -> np.ndarray | None:
        """bool of the row stream: True at stored positions inside W; None when that is all of it."""
        if self.block_mask is None:
            return None
        return self.to_stream(np.ones((self.rows, self.cols), bool))
