"""Rows in other orders: for codebooks of runs of rows, with learned codes better than one codebook with no more bits; for blocks of
several outputs, which then find what was planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import sparsec
from sparsec.errors import RecipeError
from sparsec.frontend import load_model
from sparsec.passes.equivalent.group_rows import group_rows
from sparsec.reference import Reference
from tests.passes.calibrate.networks import chain, choices, distance, image_network, samples
from tests.passes.equivalent.networks import block, heads, made, mobile
from tests.passes.sparsify.test_order_rows import planted
from tests.passes.test_attention import Attention


def kinds(seed: int = 0) -> ir.Model:
    """Neurons of four kinds, mixed: each has its own few values."""
    rng = np.random.default_rng(seed)
    values, kind = 2 * rng.standard_normal((4, 6)), rng.permutation(np.repeat(np.arange(4), 16))
    first = values[kind[:, None], rng.integers(0, 6, (64, 96))] + 0.1 * rng.standard_normal((64, 96))
    return chain(first / 10, rng.standard_normal((9, 64)) / 8)


@pytest.mark.parametrize("network", [kinds, mobile, block])
def test_the_model_stays_as_it_is(network: Callable[[], ir.Model]) -> None:
    model = network()
    found = choices(model, "cb2.r4", quantize={"reorder": True})
    assert group_rows(model, found) == any(choice.notes[0].startswith("rows reordered") for choice in found)
    assert all(choice.notes for choice in found)
    assert distance(model, network(), samples(network(), 3)) < 1e-9


def coded(scheme: str, calibration: Any, **quantize: Any) -> sparsec.CompressedModel:
    rules = [{"targets": "w0", "scheme": scheme, "quantize": quantize}, {"targets": "w1", "scheme": "fp32"}]
    recipe = {"version": 1, "rules": rules, "min_elements": 0}
    return sparsec.compress(kinds(), recipe, calibration=calibration, verify=False)


def bits(model: sparsec.CompressedModel) -> float:
    return next(row.record.bits_per_weight for row in model.report.layers if row.record.name == "w0")


@pytest.mark.parametrize("algorithm", ["nearest", "joint", "descent"])
def test_groups_beat_one_codebook_with_more_bits(algorithm: str) -> None:
    feeds = None if algorithm == "nearest" else samples(kinds(), 24)
    others = samples(kinds(), 6, seed=4)
    groups = coded("cb2.r16", feeds, algorithm=algorithm, reorder=True)
    errors = {}
    for scheme in ("cb2", "cb2-c", "cb2.r16"):
        model = coded(scheme, feeds, algorithm=algorithm)
        errors[scheme] = distance(model.model, kinds(), others)
        assert scheme != "cb2-c" or bits(groups) < bits(model)
    ours = distance(groups.model, kinds(), others)
    assert ours < 0.8 * min(errors.values())
    notes = {row.record.name: row.record.notes for row in groups.report.layers}
    assert "rows reordered: codebooks fit with" in notes["w0"]
    again = sparsec.compress(kinds(), groups.recipe, calibration=feeds, verify=False)
    assert again.to_bytes() == groups.to_bytes()


def test_what_cannot_be_reordered_says_so() -> None:
    model = mobile()
    found = {choice.weight.name: choice for choice in choices(model, "cb2.r4", quantize={"reorder": True})}
    group_rows(model, list(found.values()))
    assert found["w2"].notes == ["rows keep their order: rows of a depthwise convolution belong to its inputs"]
    assert found["w4"].notes == ["rows keep their order: 'y' is an output of the model"]


@pytest.mark.parametrize("scheme", ["int4", "cb4", "cb4.i16"])
def test_rows_without_codebooks_of_their_own(scheme: str) -> None:
    with pytest.raises(RecipeError, match=r"quantize\.reorder is for codebooks of runs of rows"):
        coded(scheme, None, reorder=True)


# --- blocks of several outputs ---


@pytest.mark.parametrize("network", [kinds, mobile, block, heads, image_network])
@pytest.mark.parametrize("scheme", ["s4x1@50", "s2x3@50-cb2.r4"])
def test_blocks_leave_the_model_as_it_is(network: Callable[[], ir.Model], scheme: str) -> None:
    model = network()
    found = choices(model, scheme, sparsify={"reorder": True})
    assert group_rows(model, found)
    assert all(len(choice.notes) == 1 and choice.notes[0].startswith("rows ") for choice in found)
    assert distance(model, network(), samples(network(), 3)) < 1e-9


def shuffled(rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """A matrix of blocks of 4 rows that live on half of the inputs each, its rows shuffled."""
    score, _ = planted(rows // 4, 4, cols, rng)
    return np.sqrt(score) * rng.choice([-1, 1], score.shape) / np.sqrt(cols)


def ordered(reorder: bool, scheme: str = "s4x1@50", **sparsify: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "rules": [{"scheme": scheme, "sparsify": {"reorder": reorder, **sparsify}}],
        "min_elements": 0,
    }


@pytest.mark.parametrize(("sparsify", "calibrated"), [({}, True), ({"algorithm": "wanda"}, True), ({}, False)])
def test_planted_blocks_are_found(sparsify: dict[str, Any], calibrated: bool) -> None:
    rng = np.random.default_rng()
    model = chain(shuffled(32, 24, rng), shuffled(16, 32, rng))
    feeds, others = samples(model, 12) if calibrated else None, samples(model, 4, seed=5)
    errors = {}
    for reorder in (True, False):
        found = sparsec.compress(model, ordered(reorder, **sparsify), calibration=feeds, verify=False)
        errors[reorder] = distance(found.model, model, others)
        places = [node for node in found.model.graph if node.op_type == "Gather"]
        assert (
            len(places) == reorder
        )  # the first layer's order is folded into the second, whose outputs the world reads
        if reorder:
            notes = {row.record.name: row.record.notes for row in found.report.layers}
            assert notes["w0"].startswith("rows reordered: 0.0 % of the outputs' power goes, ")
            assert notes["w1"].endswith("; a Gather puts the outputs back ('y' is an output of the model)")
            again = sparsec.compress(model, found.recipe, calibration=feeds, verify=False)
            assert again.to_bytes() == found.to_bytes()
    assert errors[True] < 1e-6
    assert errors[False] > 0.02


def test_shares_of_zeros_follow_the_order() -> None:
    rng = np.random.default_rng()
    model = chain(shuffled(64, 24, rng), 3 * shuffled(16, 64, rng) + 0.02)
    feeds, others = samples(model, 16), samples(model, 4, seed=5)
    errors = []
    for reorder in (True, False):
        found = sparsec.compress(model, ordered(reorder, scope="output"), calibration=feeds, verify=False)
        errors.append(distance(found.model, model, others))
        rows = [row.record for row in found.report.layers]
        zeros = sum(r.zeros * np.prod(r.shape) for r in rows) / sum(np.prod(r.shape) for r in rows)
        assert zeros == pytest.approx(0.5, abs=0.02)
    assert errors[0] < 0.5 * errors[1]


def test_any_number_of_workers_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", "off")
    model = block()
    feeds, recipe = samples(model, 8), ordered(True, "s4x1@50-int8", scope="output")
    found = [sparsec.compress(model, recipe, calibration=feeds, verify=False, jobs=jobs) for jobs in (1, 2)]
    assert found[0].to_bytes() == found[1].to_bytes()
    assert "rows reordered" in str(found[0].report)


def test_the_cache_knows_the_order() -> None:
    model = block()
    feeds = samples(model, 8)
    first = sparsec.compress(model, ordered(True), calibration=feeds, verify=False)
    plain = sparsec.compress(model, ordered(False), calibration=feeds, verify=False)
    again = sparsec.compress(model, ordered(True), calibration=feeds, verify=False)
    assert first.to_bytes() == again.to_bytes() != plain.to_bytes()


@pytest.mark.parametrize("network", [image_network, heads])
def test_kernels_run_what_a_gather_puts_back(network: Callable[[], ir.Model]) -> None:
    model, recipe = network(), ordered(True, "s4x1@50-int8")
    program = sparsec.compile(model, recipe=recipe)
    small = sparsec.compress(model, recipe)
    places = [node for node in small.model.graph if node.op_type == "Gather" and not node.domain]
    assert places
    feed = samples(model, 1)[0]
    (wanted,) = Reference(small.model).run(feed).values()
    np.testing.assert_allclose(program.run(feed)["y"], wanted, rtol=1e-3, atol=1e-4)
    again = sparsec.compile(small.to_bytes())  # the portable file's Gathers stay where they are
    np.testing.assert_allclose(again.run(feed)["y"], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("activations", ["fp32", "int8"])
def test_attention_with_projections_in_order(activations: str) -> None:
    model = load_model(Attention(32, 2, 1, "mask"), (torch.zeros(1, 6, 32), torch.zeros(1, 1, 6, 6)))
    recipe = ordered(True, "s4x1@50-int8")
    recipe["rules"][0]["activations"] = activations
    small = sparsec.compress(model, recipe)
    kinds_found = [node.op_type for node in small.model.graph]
    assert kinds_found.count("Attention") == 1
    assert (
        kinds_found.count("Gather") == kinds_found.count("MatMul") == 4
    )  # projections whose parts are put back stay apart
    program = sparsec.compile(model, recipe=recipe)
    feed = samples(model, 1)[0]
    (wanted,) = Reference(small.model).run(feed).values()
    (got,) = program.run(feed).values()
    np.testing.assert_allclose(got, wanted, rtol=0.02, atol=0.02)


def test_weights_without_an_order_of_their_own_say_so() -> None:
    tied = made(
        "net (float[1, 4, 8] x) => (float[1, 4, 8] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, w) }",
        {"w": (8, 8)},
    )
    (choice,) = choices(tied, "s4x1@50", sparsify={"reorder": True})
    assert not group_rows(tied, [choice])
    assert choice.notes == ["rows keep their order: the weight is looked up or read by several nodes"]
    model = mobile()
    found = {c.weight.name: c for c in choices(model, "s4x1@50", sparsify={"reorder": True})}
    group_rows(model, list(found.values()))
    assert found["w2"].notes == ["rows keep their order: rows of a depthwise convolution belong to its inputs"]
    assert found["w1"].notes[0].startswith("rows reordered: ")
    assert found["w4"].notes[0].endswith("('y' is an output of the model)")


def test_a_gather_must_pay() -> None:
    rng = np.random.default_rng()
    model = chain(np.where(np.arange(12) < 6, 1, 0.03) * rng.uniform(0.5, 1, (16, 12)))
    (choice,) = choices(model, "s4x1@25", sparsify={"reorder": True})
    assert not group_rows(model, [choice])
    assert "which does not pay for a Gather behind it ('y' is an output of the model)" in choice.notes[0]
    assert [node.op_type for node in model.graph] == ["MatMul"]


def test_orders_do_not_undo_each_other() -> None:
    rng = np.random.default_rng()
    model = chain(shuffled(32, 24, rng), shuffled(16, 32, rng))
    first, second = choices(model, "s4x1@50", sparsify={"reorder": True})
    (_, nm) = choices(model, "s2:4", sparsify={"permute": True})
    assert group_rows(model, [first, nm])
    assert "'w1' reads them in an order of its own (sparsify.permute)" in first.notes[0]
    assert [node.op_type for node in model.graph] == ["MatMul", "Relu", "Gather", "MatMul"]
    assert not second.notes


def test_what_is_known_of_inputs_moves_with_them() -> None:
    """Blocks of two inputs: the first layer's order decides which of them are together in the second."""
    rng = np.random.default_rng()
    model = chain(shuffled(32, 24, rng), rng.standard_normal((16, 32)))
    first, *_ = choices(model, "s4x1@50", sparsify={"reorder": True})
    *_, second = choices(model, "s4x2@50", sparsify={"reorder": True})
    before, power = second.weight.matrix(), rng.uniform(0, 9, 32) ** 2
    group_rows(model, [first, second], {"w1": power})
    after = second.weight.matrix()
    columns = [int(np.abs(np.abs(before).sum(0) - column).argmin()) for column in np.abs(after).sum(0)]
    assert sorted(columns) == list(range(32)) != columns
    score = np.square(after, dtype=np.float64) * power[columns]
    gone = np.sort(score.reshape(4, 4, 16, 2).sum((1, 3)), None)[:32].sum() / score.sum()
    assert second.notes[0].startswith(f"rows reordered: {100 * gone:.1f} % of the outputs' power goes, ")


@pytest.mark.parametrize("scheme", ["s50", "s2:4", "s1x16@50", "int8"])
def test_blocks_of_several_outputs_only(scheme: str) -> None:
    with pytest.raises(RecipeError, match=r"sparsify\.reorder orders rows for blocks of several outputs"):
        sparsec.compress(kinds(), ordered(True, scheme))
    both = {"scheme": "s4x1@50-cb2.r4", "sparsify": {"reorder": True}, "quantize": {"reorder": True}}
    with pytest.raises(RecipeError, match="rows have one order; keep that for the blocks"):
        sparsec.compress(kinds(), {"version": 1, "rules": [both]})
