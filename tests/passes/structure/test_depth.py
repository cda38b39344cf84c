"""Branches are found as they are, and bypassed in the order in which the outputs miss them least."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes.check import check_model
from sparsec.passes.structure.depth import branches, bypass, greedy
from sparsec.reference import Reference
from tests.passes.structure.networks import Array, build, feeds, residual, transformer


def chain(seed: int) -> ir.Model:
    """Four residual MLPs of different strength."""
    text, shapes = [], {}
    x = "x"
    for i in range(4):
        shapes |= {f"u{i}": (6, 9), f"d{i}": (9, 6)}
        text.append(
            f"h{i} = MatMul ({x}, u{i})\nr{i} = Relu (h{i})\nm{i} = MatMul (r{i}, d{i})\ns{i} = Add ({x}, m{i})"
        )
        x = f"s{i}"
    text.append(f"y = MatMul ({x}, last)")
    body = "\n".join(text)
    model = build(f"(float[2, 6] x) => (float[2, 4] y)\n{{\n{body}\n}}", {**shapes, "last": (6, 4)}, seed)
    rng = np.random.default_rng(seed)
    for i, scale in enumerate(np.exp(rng.normal(size=4))):
        value = model.graph.initializers[f"d{i}"]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(scale), name=value.name)
    return model


def error(model: ir.Model, before: ir.Model, samples: list[dict[str, Array]]) -> float:
    lost = power = 0.0
    for sample in samples:
        found, wanted = Reference(model).run(sample), Reference(before).run(sample)
        lost += sum(float(np.square(found[name] - y).sum()) for name, y in wanted.items())
        power += sum(float(np.square(y).sum()) for y in wanted.values())
    return lost / power


@pytest.mark.parametrize("seed", range(4))
def test_the_best_branch_goes_first(seed: int) -> None:
    """Against all choices of one, and of two."""
    before, samples = chain(seed), feeds(chain(seed), 5, seed)
    found = branches(before)
    assert [one.weights[0] for one in found] == [f"u{i}" for i in range(4)]

    def without(*gone: int) -> float:
        model = before.clone()
        for i in gone:
            bypass(model, found[i])
        return error(model, before, samples)

    model = before.clone()
    taken = greedy(model, 2, samples, lambda _: True)
    singles = [without(i) for i in range(4)]
    assert taken[0][0] == found[int(np.argmin(singles))]
    assert taken[0][1] == pytest.approx(min(singles), rel=1e-4)
    assert taken[1][1] == pytest.approx(error(model, before, samples), rel=1e-4)
    first = found.index(taken[0][0])
    pairs = {pair: without(*pair) for pair in combinations(range(4), 2)}
    assert taken[1][1] == pytest.approx(min(e for pair, e in pairs.items() if first in pair), rel=1e-4)
    check_model(model, "greedy", static=True)


def test_branches_of_a_transformer() -> None:
    found = branches(transformer(post=True))
    assert [(one.kind, one.weights[0]) for one in found] == [
        ("attention", "qw0"), ("feedforward", "uw0"), ("attention", "qw1"), ("feedforward", "uw1"),
    ]  # fmt: skip
    assert found[0].nbytes == 4 * 4 * (12 * 12 + 12)
    model = transformer()
    taken = greedy(model, 9, feeds(model, 2), lambda one: one.kind == "attention")
    assert len(taken) == 2
    assert "Softmax" not in {node.op_type for node in model.graph}
    check_model(model, "greedy", static=True)


def test_a_shortcut_without_weights_stays() -> None:
    """The second block's shortcut drops pixels and pads channels; its convolutions go."""
    model = residual()
    found = branches(model)
    assert [one.weights[0] for one in found] == ["w1", "w3"]
    bypass(model, found[1])
    check_model(model, "bypass", static=True)
    assert not {"w3", "w4"} & {value.name for node in model.graph for value in node.inputs if value is not None}
    assert [node.op_type for node in model.graph][-4:] == ["Pad", "Tanh", "Reshape", "Gemm"]


def test_of_two_convolutions_the_larger_branch_goes() -> None:
    model = build(
        """(float[1, 3, 5, 5] x) => (float[1, 2, 5, 5] y)
        {
            a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0)
            s = Conv <kernel_shape = [1, 1]> (x, w1)
            b = Add (s, a)
            y = Conv <kernel_shape = [1, 1]> (b, w2)
        }""",
        {"w0": (4, 3, 3, 3), "w1": (4, 3, 1, 1), "w2": (2, 4, 1, 1)},
    )
    (one,) = branches(model)
    assert one.weights == ("w0",)
