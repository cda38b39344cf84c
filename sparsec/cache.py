"""The cache on disk: compiled kernels, linked files, encoded weights, outputs of reference models.

Every entry is named by a hash of all that it depends on, written beside its place and renamed, and never changed: any
number of processes may share a folder, and deleting it costs time only. Each kind of entry has a folder of its own;
all share one limit on size, kept by dropping what was used least recently.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from sparsec.errors import OutputError

Array = np.ndarray[Any, Any]

__all__ = ["digest", "entry", "load", "root", "source_digest", "store", "trim", "use_scratch", "used", "writing"]

DEFAULT_LIMIT = "4G"
_IN_USE_S = 3600.0
"""Entries used this recently stay whatever the limit is: a compile that runs now may be about to link them."""
_ABANDONED_S = 86400.0

_SUFFIX = "arrays"
"""How the name of a file of facts and arrays ends."""

_written: set[Path] = set()
_off = False


def root() -> Path:
    """The cache folder: $SPARSEC_CACHE, else $XDG_CACHE_HOME/sparsec, else ~/.cache/sparsec.

    SPARSEC_CACHE=off, or `use_scratch()`, gives a fresh folder that this process removes when it ends.
    """
    explicit = os.environ.get("SPARSEC_CACHE")
    if _off or explicit == "off":
        return Path(_scratch().name)
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sparsec"


def use_scratch() -> None:
    """From now on this process neither reads nor leaves anything in the cache (`--no-cache`)."""
    global _off
    _off = True


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sparsec-cache-")


def entry(kind: str, name: str) -> Path:
    """Path of an entry, there or not; its folder is made."""
    folder = root() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the cache folder {folder}: {error.strerror}; set SPARSEC_CACHE to a folder that can be "
            "written, or to 'off'"
        ) from error
    return folder / name


def used(path: Path) -> bool:
    """Whether an entry is there; if so it counts as used now."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    if age > _IN_USE_S / 4:
        with suppress(OSError):  # a cache that others own and this user only reads
            os.utime(path)
    return True


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A scratch path beside an entry, renamed to it when the block ends well."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        yield made
        made.replace(path)
    if not _written:
        atexit.register(_trim_written)
    _written.add(path.parent.parent)


def digest(*parts: str | bytes | Array) -> str:
    """Hash of texts, bytes and arrays (their dtype, shape and elements), 32 hexadecimal digits.

    XXH3 with 128 bits: as fast as memory is read, no protection against those who want a collision.
    """
    made = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, str):
            data: Any = part.encode()
        elif isinstance(part, bytes):
            data = part
        else:
            made.update(f"{part.dtype.str}{part.shape}".encode())
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        made.update(len(data).to_bytes(8, "little"))  # so that parts cannot run into one another
        made.update(data)
    return made.hexdigest()


def source_digest(*files: Path) -> str:
    """Hash of source files, for keys of what they make."""
    return digest(*(part for path in sorted(files) for part in (path.name, path.read_bytes())))


def store(kind: str, key: str, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write an entry of JSON-able facts and named arrays: a line of JSON, then the arrays' elements.

    Not .npy, whose header is parsed as Python: CPython 3.11 fails when two threads do that at once.
    """
    held = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    table = [(name, array.dtype.str, array.shape) for name, array in held.items()]
    head = json.dumps({"facts": dict(facts), "arrays": table}, sort_keys=True).encode()
    with writing(entry(kind, f"{key}.{_SUFFIX}")) as made, open(made, "wb") as file:
        file.write(head + b"\n")
        for array in held.values():
            array.tofile(file)


def load(kind: str, key: str) -> tuple[dict[str, Any], dict[str, Array]] | None:
    """Facts and arrays of an entry, or None where there is none (or no whole one)."""
    path = entry(kind, f"{key}.{_SUFFIX}")
    if not used(path):
        return None
    try:
        with open(path, "rb") as file:
            head = json.loads(file.readline())
            arrays = {
                name: np.fromfile(file, dtype, math.prod(shape)).reshape(shape) for name, dtype, shape in head["arrays"]
            }
        return head["facts"], arrays
    except (OSError, ValueError, KeyError, TypeError):
        return None


def limit_bytes() -> int:
    """The limit on the size of the cache: $SPARSEC_CACHE_SIZE as 500M or 4G, 4G if it is not set."""
    text = os.environ.get("SPARSEC_CACHE_SIZE") or DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    if match is None:
        raise OutputError(f"SPARSEC_CACHE_SIZE='{text}' is no size; write a number with K, M, G or T, as in 500M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


def trim(folder: Path | None = None, limit: int | None = None, in_use_s: float = _IN_USE_S) -> int:
    """Drop entries, least recently used first, until the cache is within its limit; returns the bytes dropped.

    Files of one kind with the same stem are one entry. Entries used in the last `in_use_s` seconds stay.
    """
    folder, limit = folder or root(), limit_bytes() if limit is None else limit
    groups: dict[tuple[str, str], list[tuple[Path, os.stat_result]]] = {}
    for path in folder.glob("*/*.*"):
        with suppress(OSError):  # another process dropped it
            stat = path.stat()
            groups.setdefault((path.parent.name, path.stem), []).append((path, stat))
    for path in folder.glob("*/tmp*"):  # of writers that were killed
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)
    total = sum(stat.st_size for files in groups.values() for _, stat in files)
    now, dropped = time.time(), 0
    for files in sorted(groups.values(), key=lambda files: max(stat.st_mtime for _, stat in files)):
        if total - dropped <= limit:
            break
        if now - max(stat.st_mtime for _, stat in files) < in_use_s:
            break
        for path, stat in files:
            path.unlink(missing_ok=True)
            dropped += stat.st_size
    return dropped


def _trim_written() -> None:
    for folder in _written:
        with suppress(OSError, OutputError):
            trim(folder)
