"""Choosing among kernels: by the table, by prediction, by measurement; nothing here depends on how fast a machine is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.codegen import choice, cost, tune
from sparsec.codegen.choice import Policy
from sparsec.codegen.lower import lower
from sparsec.codegen.machine import nominal
from sparsec.codegen.program import Decision, Option, Program, Step
from sparsec.errors import InputError, RecipeError, TargetError
from sparsec.frontend import load_model
from sparsec.passes import compress
from sparsec.recipe import load_recipe
from sparsec.reference import Reference, onnx_bytes
from sparsec.target import NAMED, host_target
from tests.models import DIGITS_MLP

SHAPES = {"N": 3}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Times of other runs must not decide here; kernels are the shared ones."""
    monkeypatch.setattr(tune, "load", lambda *_: None)
    monkeypatch.setattr(tune, "store", lambda *_: None)
    monkeypatch.setattr(choice, "this_machine", lambda: nominal(host_target()))
    return tmp_path


def mlp(scheme: str) -> ir.Model:
    """The digits network, its weights in `scheme`."""
    return compress(load_model(DIGITS_MLP, None, SHAPES, None), load_recipe(scheme)).model


def says(monkeypatch: pytest.MonkeyPatch, dense: float, coded: float) -> None:
    """Let measurements of dense and coded products come out like this."""

    def measured(steps: list[Step], *_: Any) -> float:
        kept = any(reads_codes(s) or s.spec.family in ("spmm", "spmv") for s in steps)
        return coded if kept else dense

    monkeypatch.setattr(choice, "measured_seconds", measured)


def coded_steps(program: Program) -> int:
    """Products that decode their weights while they run."""
    return sum(map(reads_codes, program.steps))


def reads_codes(step: Step) -> bool:
    """Whether a step decodes weights."""
    return step.spec.family == "coded_gemv" or step.spec.params.get("b", {}).get("kind") == "coded"


def test_the_table_decides_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "predict", lambda *_: pytest.fail("predicted"))
    program = lower(mlp("cb4-g32"), host_target(), "t")
    assert coded_steps(program) > 0
    assert program.decisions == {}


@pytest.mark.parametrize("tuned", [False, True])
def test_speed_decodes_where_dense_is_faster_and_size_never(monkeypatch: pytest.MonkeyPatch, tuned: bool) -> None:
    model = mlp("cb4-g32")
    monkeypatch.setattr(choice, "predict", lambda steps, *_: 1.0 if coded_steps(_of(steps)) else 0.5)
    says(monkeypatch, dense=0.5, coded=1.0)
    fast = lower(model, host_target(), "t", policy=Policy("speed", tuned))
    assert coded_steps(fast) == 0
    # plain weights have choices too: dense.py or gemm.py
    made = [d for d in fast.decisions.values() if any("cb4" in option.label for option in d.options)]
    assert made
    assert all(d.decoded and len(d.options) >= 2 for d in made)
    assert len(made) == coded_steps(lower(model, host_target(), "t"))
    small = lower(model, host_target(), "t", policy=Policy("size", tuned))
    assert coded_steps(small) == len(made)


def _of(steps: list[Step]) -> Program:
    program = Program("some", host_target())
    program.steps = list(steps)
    return program


def test_a_measurement_beats_a_prediction_and_small_predicted_gains_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mlp("cb4-g32")
    monkeypatch.setattr(choice, "predict", lambda steps, *_: 1.0 if coded_steps(_of(steps)) else 0.95)
    assert coded_steps(lower(model, host_target(), "t", policy=Policy("speed"))) > 0
    says(monkeypatch, dense=0.95, coded=1.0)
    assert coded_steps(lower(model, host_target(), "t", policy=Policy("speed", True))) == 0
    says(monkeypatch, dense=1.0, coded=0.99)
    program = lower(model, host_target(), "t", policy=Policy("speed", True))
    (decision, *_) = program.decisions.values()
    assert not decision.decoded
    assert decision.options[0].measured == 0.99
    assert "990 ms measured (1e+03 predicted)" in str(decision)


@pytest.mark.parametrize("scheme", ["cb4-g32", "s50-int8", "s16x1@50-cb4-g32"])
@pytest.mark.parametrize("dense", [True, False])
def test_whatever_is_chosen_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch, scheme: str, dense: bool) -> None:
    says(monkeypatch, dense=0.5 if dense else 2.0, coded=1.0)
    program = sparsec.compile(DIGITS_MLP, recipe=scheme, input_shapes=SHAPES, keep="speed", tune=True)
    wanted = Reference(onnx_bytes(mlp(scheme))).run(program.sample)
    for name, array in program.run(program.sample).items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-3 * float(np.abs(wanted[name]).max()))
    rows = [row for row in program.report.layers if row.choice and row.record.rule is not None]
    assert rows
    for row in rows:
        assert "ms measured" in row.choice
        assert (row.record.scheme == "fp32") == dense
        assert (row.record.bits_per_weight == 32) == dense
        assert ("decoded at compile time" in row.record.reason) == dense


def test_a_step_alone_is_measured_in_the_runtime() -> None:
    program = lower(mlp("uint8"), host_target(), "t")
    step = next(s for s in program.steps if s.spec.family == "gemm")
    single = tune.alone([step], host_target())
    assert [b.kind for b in single.buffers].count("output") == 1
    assert sum(len(infos) for infos in (single.inputs, single.outputs)) + sum(
        b.kind == "const" for b in single.buffers
    ) == len(single.buffers)
    assert 0 < tune.measured_seconds([step], host_target()) < 10


def test_times_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}
    monkeypatch.setattr(tune, "load", lambda _, key: kept.get(key))
    monkeypatch.setattr(tune, "store", lambda _, key, facts, arrays: kept.update({key: (facts, arrays)}))
    monkeypatch.setattr(tune, "_measure", lambda *_: 0.25)
    steps = [s for s in lower(mlp("uint8"), host_target(), "t").steps if s.spec.family == "gemm"]
    assert tune.measured_seconds(steps[:1], host_target()) == 0.25
    monkeypatch.setattr(tune, "_measure", lambda *_: 0.5)
    assert tune.measured_seconds(steps[:1], host_target()) == 0.25
    assert tune.measured_seconds(steps[:1], host_target(), threads=2) == 0.5
    assert len(kept) == 2


def test_tuning_for_another_machine_is_refused() -> None:
    other = NAMED["arm" if host_target().arch == "x86_64" else "x86-avx2"]
    with pytest.raises(TargetError, match="tuning measures kernels, and this machine"):
        lower(mlp("int8"), other, "t", policy=Policy(tune=True))
    lower(mlp("int8"), other, "t", policy=Policy("speed"))  # typical rates serve


def test_keep_comes_from_the_recipe_and_is_checked() -> None:
    assert load_recipe({"keep": "speed", "rules": [{"scheme": "int8"}]}).keep == "speed"
    with pytest.raises(RecipeError, match="keep"):
        load_recipe({"keep": "fast"})
    with pytest.raises(InputError, match=r"'size' .* and 'speed'"):
        sparsec.compile(DIGITS_MLP, keep="fast", input_shapes=SHAPES)
    found = compress(load_model(DIGITS_MLP, None, SHAPES, None), load_recipe({"keep": "speed"}))
    assert load_recipe(found.effective_recipe).keep == "speed"


@pytest.mark.parametrize("name", sorted(NAMED))
def test_predictions_grow_with_the_work(name: str) -> None:
    target = NAMED[name]
    machine = nominal(target)
    times = {
        scheme: cost.predict(lower(mlp(scheme), target, "t").steps, target, machine) for scheme in ("fp32", "uint3-g32")
    }
    assert all(0 < seconds < 1 for seconds in times.values())
    steps = lower(mlp("uint3-g32"), target, "t").steps
    coded = next(s for s in steps if s.spec.params.get("b", {}).get("kind") == "coded")
    assert cost.work(coded, target).decoded > 0
    assert cost.step_seconds(coded, target, machine, 4) <= cost.step_seconds(coded, target, machine, 1)


def test_words() -> None:
    decision = Decision((Option("gemm fp32", 0.0001), Option("gemm int8", 0.0003)), decoded=True)
    assert str(decision) == "gemm fp32 0.1 ms predicted; gemm int8 0.3 ms predicted"
