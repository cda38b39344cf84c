"""One compressed file of an index and of byte strings: what is prepared on one machine and run on another. Needs numpy alone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Place = list[Any]
"""[file in the archive, first byte, bytes] of a byte string, as JSON has it."""

_INDEX = "index.json"
_ALONE = 1 << 20
"""Bytes from which a string is a file of its own; shorter ones lie in one file, so that they are compressed together."""


class BlobWriter:
    """Collects byte strings, equal ones once; `save` writes them with an index that refers to them.

    numpy has no bfloat16: such arrays are kept as uint16, and `dtype` says what they are.
    """

    def __init__(self) -> None:
        self._files: dict[str, bytearray] = {}
        self._places: dict[bytes, Place] = {}

    def put(self, data: bytes, kind: str = "data") -> Place:
        """Keep a string; strings of one kind are compressed together."""
        key = sha256(data).digest()
        if key not in self._places:
            name = f"{kind}-{len(self._files)}" if len(data) >= _ALONE else kind
            file = self._files.setdefault(name, bytearray())
            self._places[key] = [name, len(file), len(data)]
            file += data
        return self._places[key]

    def put_array(self, array: Array) -> dict[str, Any]:
        """Keep an array: {"at", "dtype", "shape"}."""
        return {"at": self.put(array.tobytes()), "dtype": str(array.dtype), "shape": list(array.shape)}

    def save(self, path: Path, index: Mapping[str, Any]) -> int:
        """Write the file; returns its bytes."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as made:
            for name, data in {_INDEX: json.dumps(index).encode(), **self._files}.items():
                made.writestr(zipfile.ZipInfo(name), bytes(data), zipfile.ZIP_LZMA)
        return path.stat().st_size


class BlobReader:
    """A file that BlobWriter wrote; raises OSError or zipfile.BadZipFile where it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)
        self._kept: dict[str, bytes] = {}
        self.index: dict[str, Any] = json.loads(self._zip.read(_INDEX))

    def get(self, place: Place) -> bytes:
        """A string."""
        name, first, nbytes = place
        if name in self._kept:
            return self._kept[name][first : first + nbytes]
        data = self._zip.read(name)
        if nbytes == len(data):  # of its own: whoever asks keeps it
            return data
        self._kept[name] = data
        return data[first : first + nbytes]

    def array(self, kept: Mapping[str, Any]) -> Array:
        """An array, bfloat16 as uint16."""
        dtype = "uint16" if kept["dtype"] == "bfloat16" else kept["dtype"]
        return np.frombuffer(self.get(kept["at"]), dtype).reshape(kept["shape"])
