"""The loops of int8 products on aarch64, as compiled: which instruction multiplies, what it costs, nothing on the stack."""

from __future__ import annotations

import pytest

from bench.assembly import byte_multiplies, uses_stack
from bench.instructions import multiplications, product_loop


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
