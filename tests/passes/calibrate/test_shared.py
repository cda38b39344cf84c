"""Weights with several readers: one weight is solved for all of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.formats import decode, encode
from sparsec.passes import hessian
from sparsec.passes.calibrate.groups import why_not
from sparsec.passes.calibrate.inputs import layer_rows
from sparsec.passes.calibrate.layers import calibrate
from sparsec.passes.calibrate.shared import joint_moment, shared_statistics
from sparsec.passes.quantise import quantise
from sparsec.passes.select import Choice
from sparsec.passes.sparsify.magnitude import magnitude_masks
from sparsec.recipe import Calibrate
from sparsec.reference import Reference
from tests.passes.calibrate.networks import choices
from tests.passes.calibrate.test_segments import with_outputs


def network(seed: int = 0) -> ir.Model:
    """Tokens [1, 7] -> rows of a table [31, 10] -> a product that is used twice -> scores by the same table, transposed."""
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        net (int64[1, 7] tokens) => (float[1, 7, 31] y)
        {
            x = Gather (table, tokens)
            a = MatMul (x, w)
            b = Relu (a)
            c = MatMul (b, w)
            t = Transpose <perm = [1, 0]> (table)
            y = MatMul (c, t)
        }"""
    )
    scales = np.exp(rng.standard_normal(10))
    for name, array in (
        ("table", rng.standard_normal((31, 10)) * scales),
        ("w", rng.standard_normal((10, 10))),
    ):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    made = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))
    for number, node in enumerate(made.graph):
        node.name = f"n{number}"
    return made


def tokens(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"tokens": rng.integers(0, 31, (1, 7))} for _ in range(count)]


def outputs(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    reference = Reference(model)
    return np.stack([reference.run(feed)["y"] for feed in feeds])


def test_statistics_add_up_over_the_readers() -> None:
    model, feeds = network(), tokens(9, 1)
    weights = [choice.weight for choice in choices(model, "int8")]
    assert [weight.name for weight in weights] == ["table", "w"]
    found = shared_statistics(model, weights, feeds, [None] * 9, 1)
    inner = Reference(with_outputs(model, ["x", "b", "c"]))
    runs = [inner.run(feed) for feed in feeds]

    def moment(name: str) -> np.ndarray:
        rows = np.concatenate([run[name].reshape(-1, 10) for run in runs]).astype(np.float64)
        return rows.T @ rows / len(rows)

    def joined(weight: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
        powers = [np.trace(weight @ part @ weight.T) for part in parts]
        return sum(part * max(powers) / power for part, power in zip(parts, powers, strict=True))

    for statistics, weight, parts in zip(
        found, weights, ([np.eye(10), moment("c")], [moment("x"), moment("b")]), strict=True
    ):
        wanted = joined(weight.matrix().astype(np.float64), parts)
        np.testing.assert_allclose(statistics.second_moment, wanted, rtol=1e-4, atol=1e-4 * wanted.max())
        assert not statistics.centred
        assert statistics.cross is None


def test_a_reader_that_sees_zeros_does_not_count() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3)).astype(np.float32)
    weight, moment = rng.standard_normal((4, 3)).astype(np.float32), x.T @ x
    np.testing.assert_allclose(joint_moment(weight, [np.zeros((3, 3), np.float32), moment]), moment, rtol=1e-6)


@pytest.mark.parametrize("scheme", ["int3", "s50", "s2:4-cb3-c"])
@pytest.mark.parametrize("sequential", [True, False])
def test_calibrated_beats_data_free(scheme: str, sequential: bool) -> None:
    original, model, free = network(), network(), network()
    chosen = choices(model, scheme)
    assert [why_not(choice) for choice in chosen] == ["", ""]
    with ThreadPoolExecutor(2) as executor:
        found = calibrate(model, chosen, tokens(40, 1), executor, settings=Calibrate(sequential=sequential))
    assert all(solved is not None and solved.shift is None for solved in found)
    for choice, plain, solved in zip(chosen, choices(free, scheme), found, strict=True):
        assert solved is not None
        for target, array in ((choice, solved.decoded()), (plain, _rounded(plain))):
            matrix = array.T if target.weight.flipped else array
            target.weight.value.const_value = ir.tensor(np.ascontiguousarray(matrix).reshape(target.weight.shape))
    feeds = tokens(30, 2)
    wanted = outputs(original, feeds)
    ours, theirs = (np.square(outputs(m, feeds) - wanted).sum() for m in (model, free))
    assert ours < 0.9 * theirs


def _rounded(choice: Choice) -> np.ndarray:
    weight = choice.weight.matrix()
    mask = magnitude_masks([weight], [choice.scheme.structure])[0]
    return decode(encode(weight, choice.scheme, mask))


def test_one_moment_serves_both_readers_best() -> None:
    """Over both readers together the joint solution has less (relative) error than either reader's own."""
    model, feeds = network(3), tokens(60, 4)
    weight = choices(model, "int2")[1].weight
    inner = Reference(with_outputs(model, ["x", "b"]))
    runs = [inner.run(feed) for feed in feeds]
    moments = []
    for name in ("x", "b"):
        rows = np.concatenate([layer_rows(weight.uses[0], run[name], 10**6, 0)[0] for run in runs])
        moments.append((rows.T @ rows / len(rows)).astype(np.float32))
    w, scheme = weight.matrix(), choices(model, "int2")[1].scheme

    def cost(moment: np.ndarray) -> float:
        q = decode(quantise(w, moment, scheme))
        return sum(hessian.error(w, q, h) / hessian.error(w, np.zeros_like(w), h) for h in moments)

    assert cost(joint_moment(w, moments)) <= min(cost(moments[0]), cost(moments[1])) + 1e-9
