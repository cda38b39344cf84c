"""The scheme grammar: canonical text, round trips, and errors that show where and what is allowed."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsec.errors import SchemeError
from sparsec.formats import NO_SCALES, Affine, Block, Codebook, Dense, Float, Scales, Scheme, Unstructured

_percent = st.one_of(st.integers(1, 99).map(str), st.integers(10, 989).map(lambda tenths: f"{tenths / 10:g}"))
_structure = st.one_of(
    st.just(""),
    _percent.map(lambda p: f"s{p}"),
    st.integers(2, 32).flatmap(lambda m: st.integers(1, m - 1).map(lambda n: f"s{n}:{m}")),
    st.tuples(st.integers(1, 64), st.integers(2, 64), _percent).map(lambda t: f"s{t[0]}x{t[1]}@{t[2]}"),
)
_codec = st.one_of(
    st.sampled_from(["fp32", "fp16", "int8", "int4", "int2", "uint8", "uint4", "uint2", "ternary"]),
    st.tuples(st.integers(1, 8), st.sampled_from(["", ".r3", ".r16", ".i128"])).map(lambda t: f"cb{t[0]}{t[1]}"),
)
_scales = st.one_of(st.sampled_from(["", "t", "c"]), st.integers(1, 512).map(lambda g: f"g{g}"))


@given(_structure, _codec, _scales)
def test_any_legal_scheme_round_trips(structure: str, codec: str, scales: str) -> None:
    text = "-".join(part for part in (structure, codec, scales) if part)
    try:
        scheme = Scheme.parse(text)
    except SchemeError:
        # Only these two combinations are refused among well-formed parts.
        width = int(structure.split("x")[1].split("@")[0]) if "x" in structure else 1
        assert (codec.startswith("fp") and scales) or (scales.startswith("g") and int(scales[1:]) % width)
        return
    printed = str(scheme)
    assert Scheme.parse(printed) == scheme
    assert str(Scheme.parse(printed)) == printed
    assert hash(Scheme.parse(printed)) == hash(scheme)
    assert len(printed) <= len(text)


@given(st.text("s0123456789:x@-.intcbfpgru ", max_size=12))
def test_any_text_parses_or_raises_scheme_error(text: str) -> None:
    assume(text)
    try:
        scheme = Scheme.parse(text)
    except SchemeError as error:
        message = str(error)
    else:
        message = text
        assert Scheme.parse(str(scheme)) == scheme
    assert text in message


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("s50-fp32", "s50"),
        ("int8-c", "int8"),
        ("int8-t", "int8-t"),
        ("uint4-g32", "uint4-g32"),
        ("s97.50-cb4", "s97.5-cb4"),
        ("s16x1@50-cb4-g32", "s16x1@50-cb4-g32"),
        ("ternary-c", "ternary"),
        ("cb4.r16-c", "cb4.r16-c"),
        ("sf90.0-cb4", "sf90-cb4"),
        ("fp32", "fp32"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert str(Scheme.parse(text)) == canonical


def test_parts() -> None:
    scheme = Scheme.parse("s4x2@75-uint4-g64")
    assert scheme == Scheme(Block(4, 2, 75.0), Affine(4, True), Scales("group", 64))
    assert scheme.roles == ("codes", "positions", "scales", "zero_points")
    assert Scheme.parse("cb7.i128") == Scheme.of(Codebook(7, "inputs", 128))
    assert Scheme.parse("cb7.i128").roles == ("codes", "codes1", "codes2", "codebook")
    assert Scheme.parse("s90") == Scheme(Unstructured(90.0), Float(32), NO_SCALES)
    assert Scheme.parse("fp32").is_plain
    assert not Scheme.parse("fp16").is_plain
    assert isinstance(Scheme.parse("int8").structure, Dense)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("int9", ["'int9' at position 0", "2 to 8 are"]),
        ("cb9", ["1 to 8"]),
        ("cb4.r0", ["span of at least 1"]),
        ("ternry", ["did you mean 'ternary'?", "scheme    :="]),
        ("INT8", ["did you mean 'int8'?"]),
        ("s2:4-nt8", ["'nt8' at position 5", "did you mean 'int8'?"]),
        ("s4:4", ["1 <= N < M"]),
        ("s0", ["1 to 99"]),
        ("s99.5", ["1 to 99"]),
        ("s1x1@50", ["write s50"]),
        ("s4x0@50", ["1 to 256"]),
        ("s4x4@50-int8-g6", ["not a multiple of the block width 4", "try g8"]),
        ("fp16-c", ["scales 'c' do not go with codec 'fp16'", "allowed: none"]),
        ("int8-x", ["'x' at position 5 is not scales", "gG"]),
        ("int8-g0", ["1 to 65536"]),
        ("s50-int8-c-c", ["'c' at position 11", "more than a scheme holds"]),
        ("int8-", ["position 5"]),
        ("", ["found ''"]),
    ],
)
def test_errors_say_what_where_and_what_is_allowed(text: str, fragments: list[str]) -> None:
    with pytest.raises(SchemeError) as caught:
        Scheme.parse(text)
    for fragment in fragments:
        assert fragment in str(caught.value)
