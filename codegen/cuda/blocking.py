"""How products of many rows are cut into blocks (kernels/gemm.py, conv.py, matmul.py), and what a block keeps in shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from sparsec.codegen.cuda import fragments
from sparsec.codegen.cuda.capacity import CAPACITY, shared_limit

RESIDENT = 2
"""Blocks that share a multiprocessor."""
_STAGES = (3, 2)
LEAST_STEPS = 8
"""Steps of a part of the inputs."""


def blocking(m: int, weight: Mapping[str, Any], arch: str, groups: int = 1, batch: int = 1) -> dict[str, int]:
    """How a product is cut. columns: tiles of 8 rows of A of a warp; warps_n, warps_m: warps of a block along outputs and along rows
    of A; stages: steps that are in shared memory or on their way there; parts: of the inputs. No block has outputs of two groups; batch:
    products in one launch."""
    n, outputs = weight["n"], 16 * weight["tiles"]
    warps_m = 1 if m <= 64 else 2
    each, whole = fragments.panels(weight) // groups, groups > 1
    if "blocks" in weight:  # panels that store the same inputs (blocks.py)
        each, whole = weight["blocks"] // outputs, True
    warps_n = next(w for w in range(min(4 // warps_m, each), 0, -1) if not whole or each % w == 0)
    if "blocks" in weight:
        warps_m = min(4 // warps_n, ceil(m / 64))
    p = {"columns": min(8, ceil(m / 8)), "warps_m": warps_m, "warps_n": warps_n}
    while not (stages := _stages_of({**p, "weight": weight}, arch)) and p["warps_n"] * p["warps_m"] > 1:
        p["warps_n" if p["warps_n"] >= p["warps_m"] else "warps_m"] //= 2
    count = ceil(n / (outputs * p["warps_n"])) * ceil(m / (8 * p["columns"] * p["warps_m"]))
    filling = RESIDENT * CAPACITY[arch].multiprocessors
    parts = max(1, min(filling // (count * batch), fragments.steps(weight) // LEAST_STEPS, 8))
    return {**p, "stages": stages or _STAGES[-1], "parts": parts}


def _stages_of(p: Mapping[str, Any], arch: str) -> int:
    """As many stages as leave room for two blocks on a multiprocessor, else as many as fit; 0 if none do."""
    needed = {stages: shared_bytes({**p, "stages": stages}) for stages in _STAGES}
    fitting = [stages for stages in _STAGES if needed[stages] <= shared_limit(arch)]
    beside = [stages for stages in fitting if CAPACITY[arch].holds(RESIDENT, needed[stages])]
    return next(iter([*beside, *fitting]), 0)


def block_rows(p: Mapping[str, Any]) -> int:
    """Rows of A of a block."""
    return int(8 * p["columns"] * p["warps_m"])


def block_outputs(p: Mapping[str, Any]) -> int:
    """Outputs of a block."""
    return int(16 * p["weight"]["tiles"] * p["warps_n"])


def row_words(p: Mapping[str, Any]) -> int:
    """Words of a row of A in a stage."""
    return fragments.step_inputs(p["weight"]) // 2


def stage_words(p: Mapping[str, Any]) -> int:
    """Words of a stage: 64 inputs of the rows of A, then the codes of each panel."""
    return int(block_rows(p) * row_words(p) + p["warps_n"] * 32 * fragments.lane_words(p["weight"]))


def tables_words(w: Mapping[str, Any], warps_n: int) -> int:
    """Words of the tables: one for each panel where they differ."""
    words = fragments.table_words(w) * fragments.copies(w)
    return words * (warps_n if w.get("books", 1) > 1 else 1)


def shared_bytes(p: Mapping[str, Any]) -> int:
    """The stages and the table, afterwards the sums; then a word that says whether the block is the last one of a panel."""
    staged = p["stages"] * stage_words(p) + tables_words(p["weight"], p["warps_n"])
    sums = block_rows(p) * (block_outputs(p) + 1)
    return int(4 * (max(staged, sums) + (1 if p.get("shares") else 0)))


def row_blocks(p: Mapping[str, Any]) -> int:
    """Blocks along the rows of A."""
    return ceil(int(p["m"]) / block_rows(p))


def joined_bytes(p: Mapping[str, Any]) -> int:
    """Bytes of the sums of a block."""
    return 4 * block_rows(p) * block_outputs(p)
