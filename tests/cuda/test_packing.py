"""Which physical form a weight gets, and what is noted of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.lower import lower
from sparsec.codegen.program import Program
from sparsec.passes import compress
from sparsec.recipe import load_recipe
from sparsec.target import resolve_target
from tests.cuda.programs import run_gpu_program
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

ROWS, COLS = 40, 256


def check(scheme: str | None, m: int, rng: np.random.Generator) -> Program:
    """A linear layer of m rows against onnxruntime."""
    inputs = {"x": rng.normal(size=(m, COLS)).astype(np.float32), "w": rng.normal(size=(COLS, ROWS)).astype(np.float32)}
    graph = compress(node_model("MatMul", inputs, ("w",)), load_recipe(scheme)).model
    program = lower(graph, resolve_target("cuda"), "test")
    (found,) = run_gpu_program(program, {"x": inputs["x"]}).values()
    (wanted,) = reference(graph, {"x": inputs["x"]})
    assert np.abs(found - wanted).max() <= 1.5e-3 * np.abs(wanted).max()
    return program


def form_of(program: Program) -> tuple[str, str]:
    """Family and form of the product."""
    weight: dict[str, Any] = program.steps[0].spec.params["weight"]
    return program.steps[0].spec.family, next(
        (f for f in ("strip", "pairs", "blocks", "scattered") if f in weight), weight["decode"]
    )


FORMS = [
    ("cb4-g32", "lookup", "lookup"), ("int8", "affine", "affine"), ("vq2d4", "lookup", "lookup"), (None, "float", "float"),
    ("s2:4-nf4-g64", "pairs", "pairs"), ("s16x1@50-cb4-g32", "strip", "scattered"), ("s2:4-nf4-g32", "scattered", "scattered"),
    ("s70", "scattered", "scattered"), ("s32x16@50-cb4-g32", "strip", "blocks"),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "few", "many"), FORMS)
def test_forms(scheme: str | None, few: str, many: str, rng: np.random.Generator) -> None:
    for m, form in ((3, few), (20, many)):
        program = check(scheme, m, rng)
        assert form_of(program) == ("cuda.gemv" if m == 3 else "cuda.gemm", form)
        assert not program.decisions


def test_what_no_form_takes_is_decoded_and_all_reasons_are_told(rng: np.random.Generator) -> None:
    assert not check("int4-g8", 3, rng).decisions
    (decision,) = check("int4-g8", 20, rng).decisions.values()
    told = "groups of 8 values are no multiple of 16; codes are found one by one for up to 16 rows"
    assert str(decision) == f"no GPU kernel takes int4-g8: {told}"
    assert (decision.decoded, decision.stored) == (True, "float16")


@pytest.mark.parametrize(("scheme", "share"), [(None, 0.5), ("fp16", 1.0), ("s2:4", 0.5 + 0.5 / 17), ("int8", None)])
def test_floats_are_noted_as_halves(scheme: str | None, share: float | None, rng: np.random.Generator) -> None:
    stored = check(scheme, 3, rng).stored
    if share is None:
        assert not stored
        return
    (kept,) = stored.values()
    assert kept.dtype == "float16"
    assert kept.nbytes == pytest.approx(share * kept.graph_nbytes)
