"""device.cuh taken apart: functions without assembly are simulated as they are, the others have a twin in helpers.h."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import sparsec.codegen

HEADER = "device.cuh"


@dataclass(frozen=True)
class DeviceFunction:
    """One function of device.cuh. text: all of it, a template line included; assembly: whether its body has some."""

    name: str
    text: str

    @property
    def assembly(self) -> bool:
        return re.search(r"\basm\b", self.text) is not None


_CONSTANT = re.compile(r"^#define (?!SPC_DEVICE)\w+ .*$", re.MULTILINE)
_HEAD = re.compile(r"^(?:template\s*<[^\n]*>\s*\n?)?SPC_DEVICE\s[^;{]*?(\w+)\s*\([^{;]*\)\s*\{", re.MULTILINE)


def device_functions(text: str) -> list[DeviceFunction]:
    """The functions that a text in the style of device.cuh defines."""
    found = []
    for head in _HEAD.finditer(text):
        depth, at = 1, head.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        found.append(DeviceFunction(head[1], text[head.start() : at]))
    return found


def device_text() -> str:
    """device.cuh."""
    from pathlib import Path

    return (Path(sparsec.codegen.__path__[0]) / "cuda" / HEADER).read_text()


@cache
def plain_functions() -> str:
    """C++ of all constants of device.cuh and of its functions without assembly."""
    return "\n".join(
        [
            "#define SPC_DEVICE static inline",
            *_CONSTANT.findall(device_text()),
            *(f.text for f in device_functions(device_text()) if not f.assembly),
            "",
        ]
    )
