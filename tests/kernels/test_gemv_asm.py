"""The loops of int8 products as compiled: nothing on the stack; on aarch64 which instruction multiplies and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.assembly import assemblies, byte_multiplies, innermost_loops, spills_vectors, uses_stack
from bench.instructions import kernel, multiplications, product_loop
from sparsec.target import NAMED

_PRODUCTS = ("vpmaddubsw", "vpdpbusd", "sdot", "smmla")
# A loop of so many products of bytes is one that multiplies inputs, not one that sums them.
_LEAST = 4
_SCHEMES = ("int4-g32", "uint4-g32", "cb4", "cb4-g32", "cb3-g32", "cb2-g32", "s16x1@50-cb4-g32")
_ROWS = (1, 2, 3, 4, 8, 128)
# Loops that store one to five vectors on the stack (sums over blocks, while a block is multiplied), by target and scheme: rows of
# activations. Fewer rows at once would decode weights again.
_GROUPED = {"cb4-g32": (8, 128), "cb3-g32": (3, 4, 8, 128), "cb2-g32": (8, 128)}
_SPILLS: dict[str, dict[str, tuple[int, ...]]] = {
    "x86-avx2": {
        "int4-g32": (4,), "cb4-g32": (4, 8, 128), "cb3-g32": _ROWS, "cb2-g32": (3, 4, 8, 128), "s16x1@50-cb4-g32": (4,),
    },
    "x86-avx512": _GROUPED,
    "x86-avx512vnni": {"cb3-g32": (4,)},
}  # fmt: skip


@pytest.mark.parametrize("target", ["x86-avx2", "x86-avx512", "x86-avx512vnni", "arm", "arm-i8mm"])
@pytest.mark.parametrize(
    ("schemes", "rows"),
    [(("cb4-g32",), (1, 2)), pytest.param(_SCHEMES, _ROWS, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_loops_stay_in_registers(schemes: tuple[str, ...], rows: tuple[int, ...], target: str, tmp_path: Path) -> None:
    asked = [(s, m) for s in schemes for m in rows if m not in _SPILLS.get(target, {}).get(s, ())]
    texts = assemblies([kernel(*one, NAMED[target]) for one in asked], NAMED[target], tmp_path)
    for one, text in zip(asked, texts, strict=True):
        bodies = innermost_loops(text, branches=True)
        loops = [body for body in bodies if sum(line.startswith(_PRODUCTS) for line in body) >= _LEAST]
        assert loops, one
        assert not [body for body in loops if spills_vectors(body)], one


@pytest.mark.parametrize(
    ("scheme", "m", "sdot", "smmla"),
    [
        ("cb4-g32", 4, 0.15, 0.116),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("int8", 4, 0.09, 0.052),
                ("int4-g32", 2, 0.20, 0.16),
                ("cb4", 8, 0.09, 0.06),
                ("cb4-g32", 8, 0.12, 0.09),
                ("cb2-g32", 4, 0.15, 0.12),
                ("ternary", 8, 0.09, 0.055),
            )
        ),
    ],
)
def test_instructions_a_multiplication(scheme: str, m: int, sdot: float, smmla: float) -> None:
    """At most so many, decoding and scaling counted; the words of the codes are looked up in the loop."""
    for name, instruction, most in (("arm", "sdot", sdot), ("arm-i8mm", "smmla", smmla)):
        body = product_loop(scheme, m, name)
        assert {line.split()[0] for line in body} & {"sdot", "smmla"} == {instruction}
        assert not uses_stack(body)
        assert len(body) / byte_multiplies(body) <= most
        if scheme.startswith("cb") and m <= 4:
            assert any(line.startswith("tbl") for line in body)


@pytest.mark.slow
def test_products_are_looked_up() -> None:
    """One row against a codebook of vectors: no multiplication, bytes of products from eight registers each."""
    body = product_loop("vq2d4", 1, "arm")
    names = [line.split()[0] for line in body]
    assert names.count("tbl") == names.count("tbx") >= 2
    assert "sdot" not in names
    assert not uses_stack(body)
    assert len(body) / multiplications(body) <= 0.36


@pytest.mark.slow
def test_one_row_has_no_partner() -> None:
    assert any(line.startswith("sdot") for line in product_loop("cb4-g32", 1, "arm-i8mm"))
