"""weights.bin: a checked header and the constants of a program. runtime/src/spc_blob.c reads it."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from sparsec.codegen.plan import ALIGNMENT, Plan

MAGIC = b"\x89SPC\r\n\x1a\n"
VERSION = 1
_BYTE_ORDER = 0x01020304
# magic, version, byte order, model id, total bytes, payload offset, payload bytes, payload checksum; then the header's own checksum
_HEADER = struct.Struct("<8sIIQQQQQ")
HEADER_BYTES = _HEADER.size + 8
_CHUNK = 1 << 16  # words a numpy pass: temporaries stay in the cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def checksum(data: np.ndarray[Any, Any]) -> int:
    """64-bit checksum of uint8 [n]: the sum over 8-byte little-endian words of splitmix64's finaliser of the word xor a
    multiple of its position, mixed with the length. Every change inside one word is found."""
    whole = data.size // 8 * 8
    words = data[:whole].view("<u8")
    starts = range(0, words.size, _CHUNK)
    with np.errstate(over="ignore"):
        if len(starts) < 2:
            total = sum((_part(words, start) for start in starts), np.uint64(0))
        else:
            with ThreadPoolExecutor(4) as executor:
                total = sum(executor.map(partial(_part, words), starts), np.uint64(0))
        if whole < data.size:
            last = np.frombuffer(data[whole:].tobytes().ljust(8, b"\0"), "<u8")
            total += _mix(last ^ np.array([words.size + 1], np.uint64) * _GOLDEN)[0]
        return int(_mix(np.array([total ^ np.uint64(data.size)]))[0])


def _part(words: np.ndarray[Any, Any], start: int) -> np.uint64:
    part = words[start : start + _CHUNK]
    with np.errstate(over="ignore"):
        position = np.arange(start + 1, start + 1 + part.size, dtype=np.uint64) * _GOLDEN
        position ^= part
        return np.uint64(_mix(position).sum(dtype=np.uint64))


def _mix(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def make_blob(plan: Plan, model_id: int) -> np.ndarray[Any, Any]:
    """The bytes of weights.bin, uint8, in memory aligned so that every constant is."""
    total = HEADER_BYTES + plan.weights_bytes
    raw = np.zeros(total + ALIGNMENT, np.uint8)
    shift = -raw.ctypes.data % ALIGNMENT
    blob = raw[shift : shift + total]
    payload = blob[HEADER_BYTES:]
    for offset, buffer in plan.stored:
        assert buffer.data is not None
        payload[offset : offset + buffer.nbytes] = np.ascontiguousarray(buffer.data).reshape(-1).view(np.uint8)
    head = _HEADER.pack(
        MAGIC, VERSION, _BYTE_ORDER, model_id, total, HEADER_BYTES, plan.weights_bytes, checksum(payload)
    )
    head += struct.pack("<Q", checksum(np.frombuffer(head, np.uint8)))
    blob[:HEADER_BYTES] = np.frombuffer(head, np.uint8)
    return blob
