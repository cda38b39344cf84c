"""Table lookup in registers and in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.isa.lookup import RegisterTable, gather, permute_width
from sparsec.codegen.isa.vecmath import typed
from sparsec.target import NAMED, Target, host_target
from tests.codegen.isa.harness import Snippet, run

CODES, TABLES = 512, 48
X86 = [NAMED["x86-avx2"], NAMED["x86-avx512"]]


def SNIPPETS(target: Target) -> dict[str, Snippet]:
    def registers(base: int) -> Snippet:
        def emit(k: Any, lanes: int, x: Sequence[Any]) -> Any:
            table = RegisterTable(k, x[1], base)
            return table(k.T.Cast(typed(k, "int32", lanes), x[0]))

        return Snippet(("uint8", "float32"), "float32", CODES, emit, whole=((1, TABLES),))

    def memory(k: Any, lanes: int, x: Sequence[Any]) -> Any:
        return gather(x[1], k.T.Cast(typed(k, "int32", lanes), x[0]))

    made = {"memory": Snippet(("uint8", "float32"), "float32", CODES, memory, whole=((1, TABLES),))}
    if permute_width(target):
        made |= {f"registers_{base}": registers(base) for base in (0, 16, 17)}
    return made


@pytest.fixture(params=X86, ids=lambda t: t.name)
def x86(request: pytest.FixtureRequest) -> Target:
    host = host_target()
    if host.arch != "x86_64" or not set(request.param.features) <= set(host.features):
        pytest.skip(f"this machine cannot run {request.param.name}")
    return request.param


@pytest.mark.parametrize("base", [0, 16, 17])
def test_sixteen_entries_in_registers(base: int, x86: Target) -> None:
    assert permute_width(x86) == 16
    rng = np.random.default_rng(base)
    table = rng.normal(size=TABLES).astype(np.float32)
    codes = np.concatenate([np.arange(16), rng.integers(0, 16, CODES - 16)]).astype(np.uint8)
    np.testing.assert_array_equal(run(__name__, f"registers_{base}", codes, table, target=x86), table[base + codes])


def test_lanes_look_up_in_memory() -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(size=TABLES).astype(np.float32)
    codes = rng.integers(0, TABLES, CODES).astype(np.uint8)
    np.testing.assert_array_equal(run(__name__, "memory", codes, table), table[codes])


def test_targets_without_a_permutation_say_so() -> None:
    assert permute_width(NAMED["arm"]) == 0
