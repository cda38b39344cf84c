"""Table lookup in registers and in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.isa.lookup import RegisterTable, gather, padded_entries, permute_width
from sparsec.codegen.isa.vecmath import typed
from sparsec.target import NAMED, Target, host_target
from tests.codegen.isa.harness import Snippet, run

CODES, TABLES = 512, 288
X86 = [NAMED["x86-avx2"], NAMED["x86-avx512"]]


def cases(target: Target) -> list[tuple[int, int, int]]:
    """(base, entries, bit)"""
    most = permute_width(target)
    sizes = [size for size in (8, 16, 32, 64, 128, 256) if target.lanes <= size <= most]
    return [
        *((base, 16, 0) for base in (0, 16, 17)),
        *((5, size, bit) for size in sizes for bit in (0, 7, 33 - size.bit_length())),
    ]


def SNIPPETS(target: Target) -> dict[str, Snippet]:
    def registers(base: int, entries: int, bit: int = 0) -> Snippet:
        def emit(k: Any, lanes: int, x: Sequence[Any]) -> Any:
            return RegisterTable(k, x[1], base, entries)(x[0], bit)

        return Snippet(("int32", "float32"), "float32", CODES, emit, whole=((1, TABLES),))

    def memory(k: Any, lanes: int, x: Sequence[Any]) -> Any:
        return gather(x[1], k.T.Cast(typed(k, "int32", lanes), x[0]))

    made = {"memory": Snippet(("uint8", "float32"), "float32", CODES, memory, whole=((1, TABLES),))}
    if permute_width(target):
        made |= {
            f"registers_{base}_{entries}_{bit}": registers(base, entries, bit) for base, entries, bit in cases(target)
        }
    return made


@pytest.fixture(params=X86, ids=lambda t: t.name)
def x86(request: pytest.FixtureRequest) -> Target:
    host = host_target()
    if host.arch != "x86_64" or not set(request.param.features) <= set(host.features):
        pytest.skip(f"this machine cannot run {request.param.name}")
    return request.param


def test_entries_in_registers(x86: Target) -> None:
    """The code at a bit of a word; what is above and below it does not count."""
    rng = np.random.default_rng()
    table = rng.normal(size=TABLES).astype(np.float32)
    for base, entries, bit in cases(x86):
        codes = np.concatenate([np.arange(entries), rng.integers(0, entries, CODES - entries)])
        words = rng.integers(0, 1 << 32, CODES) & ~((entries - 1) << bit) | codes << bit
        found = run(
            __name__, f"registers_{base}_{entries}_{bit}", words.astype(np.uint32).view(np.int32), table, target=x86
        )
        np.testing.assert_array_equal(found, table[base + codes])


def test_buffers_are_powers_of_two() -> None:
    assert [padded_entries(size) for size in (1, 3, 16, 17, 32, 200)] == [16, 16, 16, 32, 32, 256]


def test_lanes_look_up_in_memory() -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(size=TABLES).astype(np.float32)
    codes = rng.integers(0, TABLES, CODES).astype(np.uint8)
    np.testing.assert_array_equal(run(__name__, "memory", codes, table), table[codes])


def test_targets_without_a_permutation_say_so() -> None:
    assert permute_width(NAMED["arm"]) == 0
