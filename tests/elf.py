"""The few facts of an ELF file that tests look at (64-bit little-endian only)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Elf:
    """`code_bytes`: bytes of executable sections; `needed`: libraries; `undefined` and `defined`: names of global symbols."""

    machine: int
    code_bytes: int
    needed: list[str]
    undefined: set[str]
    defined: set[str]


def read_elf(path: Path) -> Elf:
    """Read `path`; stripped files have only their dynamic symbols."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", f"{path} is no 64-bit little-endian ELF file"
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    # name, type, flags, address, offset, bytes, link, info, align, entry bytes
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]

    def text(strings: int, at: int) -> str:
        start = sections[strings][4] + at
        return data[start : data.index(b"\0", start)].decode()

    needed, undefined, defined = [], set(), set()
    for _, kind, _, _, offset, length, link, _, _, _ in sections:
        if kind == 6:  # SHT_DYNAMIC
            for at in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<QQ", data, at)
                if tag == 1:  # DT_NEEDED
                    needed.append(text(link, value))
        elif kind in (2, 11):  # SHT_SYMTAB, SHT_DYNSYM
            for at in range(offset + 24, offset + length, 24):
                name, info, _, section = struct.unpack_from("<IBBH", data, at)
                if info >> 4:  # not local
                    (defined if section else undefined).add(text(link, name))
    code = sum(s[5] for s in sections if s[2] & 4 and s[1] == 1)  # SHF_EXECINSTR, SHT_PROGBITS
    return Elf(machine, code, needed, undefined, defined)
