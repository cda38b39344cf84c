"""The weight-format vocabulary: a scheme is structure x codec x scales, written as one short token.

    scheme := [structure "-"] codec ["-" scales]       e.g. int8  cb4-g32  s90  s2:4-int8  s16x1@50-cb4-g32

A codec left out after a structure is fp32. `str(scheme)` is canonical and parses back to the same scheme.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from sparsec.errors import SchemeError
from sparsec.formats.codec_base import Codec
from sparsec.formats.codecs import CODECS
from sparsec.formats.codecs.floats import Float
from sparsec.formats.layout import plane_widths
from sparsec.formats.scales import Scales
from sparsec.formats.structure import DENSE, STRUCTURES, Structure

__all__ = ["GRAMMAR", "Scheme"]

GRAMMAR = "\n".join(
    [
        '  scheme    := [structure "-"] codec ["-" scales]',
        *(f"  structure := {s.form}" for s in STRUCTURES),
        *(f"  codec     := {c.forms}" for c in CODECS),
        f"  scales    := {Scales.forms}",
        "  examples: fp32, int8, int4-g32, cb4-g32, ternary, s90, s2:4-int8, s16x1@50-cb4-g32",
    ]
)


@dataclass(frozen=True)
class Scheme:
    """A legal combination of structure, codec and scales; raises SchemeError otherwise."""

    structure: Structure
    codec: Codec
    scales: Scales

    def __post_init__(self) -> None:
        if self.scales.kind not in self.codec.legal_scales:
            names = {"none": "none", "tensor": "t", "channel": "c", "group": "gG"}
            allowed = ", ".join(names[kind] for kind in self.codec.legal_scales)
            raise SchemeError(
                f"scales '{self.scales or 'none'}' do not go with codec '{self.codec}'; allowed: {allowed}"
            )
        width, dim = self.structure.block[1], self.codec.dim
        if not self.structure.is_dense and width % dim:
            raise SchemeError(
                f"'{self.codec}' codes {dim} neighbouring inputs together, which '{self.structure}' stores one by one or in "
                f"blocks of {width}; use dense, or blocks whose width is a multiple of {dim} such as s1x{dim}@50"
            )
        if self.scales.kind == "group" and self.scales.group % dim:
            raise SchemeError(f"group size {self.scales.group} is not a multiple of the {dim} inputs of a code")
        if self.scales.kind == "group" and self.scales.group % width:
            size = self.scales.group
            raise SchemeError(
                f"group size {size} is not a multiple of the block width {width} of '{self.structure}'; "
                f"try g{max(1, round(size / width)) * width}"
            )

    @classmethod
    def of(cls, codec: Codec, structure: Structure = DENSE, scales: Scales | None = None) -> Scheme:
        """Combine, with the codec's default scales when none are given."""
        return cls(structure, codec, codec.default_scales if scales is None else scales)

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Parse a scheme such as `s2:4-int4-g32`; raises SchemeError that shows where and what is allowed."""
        if not isinstance(text, str) or not text:
            raise SchemeError(f"a scheme is a text such as 'int8', found {text!r}. Allowed:\n{GRAMMAR}")
        return cls._parsed(text)

    @classmethod
    @cache
    def _parsed(cls, text: str) -> Scheme:
        tokens: list[tuple[str, int]] = []
        position = 0
        for token in text.split("-"):
            tokens.append((token, position))
            position += len(token) + 1
        structure: Structure = DENSE
        codec: Codec = Float(32)
        scales: Scales | None = None
        left = list(tokens)
        found_structure = _match(STRUCTURES, text, left[0])
        if found_structure is not None:
            structure = found_structure
            left.pop(0)
        found_codec = _match(CODECS, text, left[0]) if left else None
        if found_codec is not None:
            codec = found_codec
            left.pop(0)
        elif left and (found_structure is None or _match((Scales,), text, left[0]) is None):
            raise _unknown(text, left[0], "a codec" if found_structure is not None else "a structure or codec")
        if left:
            scales = _match((Scales,), text, left[0])
            if scales is None:
                raise _unknown(text, left[0], "scales")
            left.pop(0)
        if left:
            raise _error(text, left[0], "is more than a scheme holds (structure, codec, scales)")
        try:
            return cls.of(codec, structure, scales)
        except SchemeError as error:
            raise SchemeError(f"scheme '{text}': {error}") from None

    def __str__(self) -> str:
        parts = []
        if not self.structure.is_dense:
            parts.append(str(self.structure))
        default = self.scales == self.codec.default_scales
        if self.codec != Float(32) or not parts or not default:
            parts.append(str(self.codec))
        if not default:
            parts.append(str(self.scales))
        return "-".join(parts)

    @property
    def is_dense(self) -> bool:
        """True when every position is stored."""
        return self.structure.is_dense

    @property
    def is_plain(self) -> bool:
        """True for `fp32`: the weight is a plain float32 array."""
        return self.is_dense and self.codec == Float(32)

    @property
    def block(self) -> tuple[int, int]:
        """(R, C) of a stored block; (1, 1) unless the structure is blocks."""
        return self.structure.block

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Names of the arrays that make up a weight, in the order in which ONNX nodes take them."""
        planes = len(plane_widths(self.codec.code_bits)) if self.codec.code_bits else 1
        roles = [f"codes{plane}" if plane else "codes" for plane in range(planes)]
        if not self.is_dense:
            roles.append("positions")
        if self.codec.has_codebook:
            roles.append("codebook")
        if self.scales.kind != "none":
            roles.append("scales")
        if self.codec.has_zero_points:
            roles.append("zero_points")
        return tuple(roles)


def _match(kinds: tuple[Any, ...], text: str, token: tuple[str, int]) -> Any:
    """The first kind whose pattern matches the whole token, built; None if no pattern does."""
    for kind in kinds:
        match = kind.pattern.fullmatch(token[0])
        if match is not None:
            try:
                return kind.from_match(match)
            except SchemeError as error:
                raise _error(text, token, f"is not allowed: {error}") from None
    return None


def _error(text: str, token: tuple[str, int], message: str) -> SchemeError:
    pointer = f"  {text}\n  {' ' * token[1]}{'^' * max(1, len(token[0]))}"
    return SchemeError(
        f"scheme '{text}': '{token[0]}' at position {token[1]} {message}\n{pointer}\nAllowed:\n{GRAMMAR}"
    )


def _unknown(text: str, token: tuple[str, int], expected: str) -> SchemeError:
    known = (
        [name for codec in CODECS for name in codec.tokens]
        if expected != "scales"
        else ["t", "c", "g32", "g64", "g128"]
    )
    if "codec" in expected:
        known += [structure.example for structure in STRUCTURES[1:]]
    close = difflib.get_close_matches(token[0].lower(), known, 1, 0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return _error(text, token, f"is not {expected}{hint}")
