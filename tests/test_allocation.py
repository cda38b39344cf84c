"""A budget against what it is there to beat, one scheme for all weights, and its warnings, from end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import sparsec
from sparsec.reference import Reference
from tests.models import DIGITS

SCHEMES = ("int8", "int5", "int4", "cb2-c")
WIDTH = 96
GAINS = (1.0, 0.15, 0.02)

Array = NDArray[np.float32]


def normal(*shape: int, deviation: float = 1.0) -> Array:
    return np.random.default_rng().normal(0, deviation, shape).astype(np.float32)


def branches(weights: list[tuple[Array, Array]]) -> bytes:
    """y [1, N] = sum of relu(x V) W over pairs (V [N, N], W [N, N])."""
    nodes, constants = [], []
    for i, (v, w) in enumerate(weights):
        constants += [numpy_helper.from_array(v, f"v{i}"), numpy_helper.from_array(w, f"w{i}")]
        nodes += [
            helper.make_node("MatMul", ["x", f"v{i}"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [f"b{i}"]),
            helper.make_node("MatMul", [f"b{i}", f"w{i}"], [f"c{i}"]),
        ]
    nodes.append(helper.make_node("Sum", [f"c{i}" for i in range(len(weights))], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, len(weights[0][0])]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    return data


def error(data: bytes, model: bytes, inputs: Array) -> float:
    """Root of the relative squared error of y on these inputs."""
    ours, theirs = Reference(data), Reference(model)
    pairs = [(ours.run({"x": x})["y"], theirs.run({"x": x})["y"]) for x in inputs]
    return float((sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(b).sum() for _, b in pairs)) ** 0.5)


def test_a_budget_beats_every_uniform_scheme_of_its_size() -> None:
    """Branches that matter unequally: one scheme for all spends as much on what hardly reaches the output."""
    model = branches([(normal(WIDTH, WIDTH), normal(WIDTH, WIDTH, deviation=gain)) for gain in GAINS])
    given: dict[str, Any] = {"calibration": list(normal(96, 1, WIDTH)), "verify": False, "jobs": 1}
    unseen = normal(64, 1, WIDTH)
    ratios = []
    for scheme in SCHEMES:
        uniform = sparsec.compress(
            model, {"version": 1, "min_elements": 1, "rules": [{"scheme": scheme}]}, **given
        ).to_bytes()
        found = sparsec.compress(model, budget=f"{len(uniform)}B", candidates=SCHEMES, **given).to_bytes()
        assert len(found) <= len(uniform)
        ratios.append(error(found, model, unseen) / error(uniform, model, unseen))
    assert max(ratios[1:-1]) < 0.85
    assert max(ratios[0], ratios[-1]) <= 1.0 + 1e-6  # the largest and the smallest leave no choice


def test_a_budget_below_the_knee_is_told() -> None:
    def notes(budget: str) -> list[str]:
        front = sparsec.compress(
            DIGITS, budget=budget, candidates="int8,cb4,cb2-c", input_shapes={"N": 1}, verify=False
        ).report.front
        assert front is not None
        return front.notes

    (note,) = notes("15KB")
    assert "below the knee" in note
    assert notes("40KB") == []


def test_a_weight_that_is_made_sparser_than_its_pq_index_asks_for_is_told() -> None:
    """Normal values should keep 85 % (their PQ-index is .15), those of a weight with few large ones less than half."""
    few = normal(WIDTH, WIDTH)
    few[np.random.default_rng().random(few.shape) > 0.25] *= 1e-3
    model = branches([(few, normal(WIDTH, WIDTH))])

    def notes(budget: int) -> list[str]:
        front = sparsec.compress(model, budget=f"{budget}B", candidates="s50", verify=False).report.front
        assert front is not None
        return [note for note in front.notes if "PQ-index" in note]

    dense = len(model)
    (note,) = notes(round(0.7 * dense))
    assert note.startswith("w0: s50 keeps 50 % of its values; its PQ-index says that pruning should leave 8")
    assert notes(2 * dense) == []
    with_one = notes(round(0.9 * dense))
    assert with_one == []  # v0 goes first
