"""Factored weights in whole networks: what the graph computes is what the weights say, everything is fused, and programs agree."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec import ops
from sparsec.files import dumps
from sparsec.formats import EncodedWeight, decode
from sparsec.passes import compress
from sparsec.passes.factor.form import block_diagonal
from sparsec.reference import Reference
from tests.passes.calibrate.networks import image_network, samples, text_network

Array = np.ndarray[Any, Any]
BRANCH = {"scheme": "int2", "low_rank": {"rank": 3}}
RULES: dict[str, dict[str, Any]] = {
    "branch": BRANCH,
    "branch of floats": {"scheme": "cb2-g4", "low_rank": {"rank": "25%", "scheme": "fp16", "rounds": 2}},
    "sparse": {"scheme": "s2:4-int4", "low_rank": {"rank": 2, "algorithm": "oats"}},
    "outliers": {"scheme": "vq2d4", "outliers": {"share": "12%"}},
    "low rank": {"scheme": "int8", "factor": {"algorithm": "low_rank", "rank": "40%"}},
    "monarch": {"scheme": "int8", "factor": {"algorithm": "monarch", "blocks": 3, "rank": 2}},
    "armor": {"scheme": "s2:4-int4", "factor": {"algorithm": "armor", "block": 3, "scheme": "fp16"}},
    "monarch and a branch": {
        "scheme": "int8", "factor": {"algorithm": "monarch", "blocks": 3}, "low_rank": {"rank": 2, "algorithm": "lorc"},
    },
    "floats": {"scheme": "fp32", "factor": {"algorithm": "svd", "rank": 4}},
}  # fmt: skip


def recipe(rule: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "rules": [rule], "min_elements": 0}


def windows(seed: int = 0) -> ir.Model:
    """x [1, 6, 9, 7] -> a 3x2 convolution with strides, pads, dilations and a bias, then a residual one of one pixel."""
    import onnx

    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        net (float[1, 6, 9, 7] x) => (float[1, 9, 4, 7] y)
        {
            a = Conv <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 2, 1], dilations = [2, 1]> (x, w1, b1)
            c = Conv (a, w2)
            y = Add (c, a)
        }"""
    )
    for name, shape in (("w1", (9, 6, 3, 2)), ("b1", (9,)), ("w2", (9, 9, 1, 1))):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    result = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    for number, node in enumerate(result.graph):
        node.name = f"n{number}"
    return result


NETWORKS = [image_network, text_network, windows]


def made(network: Any, rule: dict[str, Any], feeds: Any = None) -> sparsec.CompressedModel:
    return sparsec.compress(network(), recipe(rule), calibration=feeds, verify=False)


def stored(model: ir.Model) -> dict[str, Array]:
    """Decoded weights by name."""
    found = {}
    for node in model.graph:
        if ops.is_sparsec(node):
            weight = ops.read_weight(node)
            name = (ops.view(node).weight_inputs.values[0].name or "").removesuffix(".codes")
            found[name] = decode(weight) if isinstance(weight, EncodedWeight) else weight
    return found


def total(parts: dict[str, Array]) -> Array:
    """W of its factors by their labels, three blocks a side."""
    result = parts.get("", np.zeros(()))
    if ".a" in parts:
        a, b = (block_diagonal(parts[label], len(parts[label]) // 3) for label in (".a", ".b"))
        result = a @ result @ b
    if ".l" in parts:
        right = block_diagonal(parts[".r"], 3)
        rank = len(right) // 9
        swapped = right.reshape(3, 3, rank, -1).transpose(1, 0, 2, 3).reshape(9 * rank, -1)
        result = block_diagonal(parts[".l"], 3) @ swapped
    return np.asarray(result + parts.get(".outliers", 0) + (parts[".u"] @ parts[".v"] if ".u" in parts else 0))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", list(RULES))
def test_outputs_are_those_of_the_decoded_sums(network: Any, rule: str) -> None:
    original, feeds = network(), samples(network(), 3)
    result = made(network, RULES[rule])
    kinds = {node.op_type for node in result.model.graph}
    blocks = "factor" in RULES[rule] and RULES[rule]["factor"]["algorithm"] in ("monarch", "armor")
    assert blocks or kinds <= {"MatMul", "Conv", "Reshape"}  # nothing is added by itself
    weights, dense = stored(result.model), original.clone()
    for row in result.report.layers:
        record = row.record
        parts = {n.removeprefix(record.name): weights[n].astype(np.float64) for n in record.factors or [record.name]}
        array = total(parts)
        array = array.T if record.op == "MatMul" else array
        value = dense.graph.initializers[record.name]
        value.const_value = ir.tensor(np.ascontiguousarray(array.reshape(record.shape), np.float32), name=record.name)
    for feed in feeds:
        np.testing.assert_allclose(
            Reference(result.model).run(feed)["y"], Reference(dense).run(feed)["y"], rtol=2e-3, atol=2e-3
        )


@pytest.mark.parametrize("network", [image_network, text_network])
def test_branches_pay_and_calibrated_ones_more(network: Any) -> None:
    """Over draws of samples, which differ by a factor of two; they are enough for the 252 inputs of the image network's last layer."""
    lost: dict[str, float] = dict.fromkeys(("plain", "branch", "plain, calibrated", "branch, calibrated"), 0.0)
    for draw in range(1, 7):
        feeds, others = samples(network(), 128, seed=draw), samples(network(), 8, seed=draw + 8)
        wanted = [Reference(network()).run(feed)["y"] for feed in others]
        for name in lost:
            rule = BRANCH if name.startswith("branch") else {"scheme": "int2"}
            run = Reference(made(network, rule, feeds if "calibrated" in name else None).model).run
            lost[name] += sum(float(np.square(run(x)["y"] - y).sum()) for x, y in zip(others, wanted, strict=True))
    assert lost["branch"] < 0.8 * lost["plain"]
    assert lost["branch, calibrated"] < 0.8 * lost["plain, calibrated"]
    assert lost["branch, calibrated"] < 0.8 * lost["branch"]


@pytest.mark.parametrize("rule", list(RULES))
def test_bytes_in_the_report_are_those_of_the_file(rule: str) -> None:
    result = made(text_network, RULES[rule])
    arrays = {
        value.name: value.const_value.nbytes
        for node in result.model.graph
        if ops.is_sparsec(node)
        for value in ops.view(node).weight_inputs.values
        if value.const_value is not None
    }
    records = [row.record for row in result.report.layers]
    assert sum(record.nbytes for record in records) == sum(arrays.values())
    for record in records:
        assert record.bits_per_weight == pytest.approx(8 * record.nbytes / np.prod(record.shape))
    assert json.loads(dumps(result.report.to_json()))["layers"][0]["scheme"] == records[0].scheme


@pytest.mark.parametrize("rule", ["branch", "sparse", "low rank"])
def test_the_effective_recipe_gives_the_same_file_with_any_number_of_workers(rule: str) -> None:
    feeds = samples(text_network(), 6)
    first = made(text_network, RULES[rule], feeds)
    again = sparsec.compress(text_network(), first.recipe, calibration=feeds, verify=False, jobs=3)
    assert first.to_bytes() == again.to_bytes()
    assert "rank:" in first.recipe


@pytest.mark.parametrize(
    ("network", "rule"),
    [
        (image_network, BRANCH),
        (text_network, {**BRANCH, "activations": "int8"}),
        (image_network, {**RULES["low rank"], "activations": "int8"}),
        (text_network, RULES["armor"]),
        (text_network, {**BRANCH, "activations": "int8-static"}),
        (windows, RULES["monarch"]),
    ],
)
def test_programs_agree_with_onnxruntime(network: Any, rule: dict[str, Any]) -> None:
    """`compile` verifies: every product, its branch added within the kernel."""
    feeds = samples(network(), 4)
    compiled = sparsec.compile(network(), "cpu", recipe(rule), calibration=feeds)
    wanted = Reference(made(network, rule, feeds).model).run(feeds[0])["y"]
    bound = 0.05 if "activations" in rule else 1e-4
    np.testing.assert_allclose(compiled.run(feeds[0])["y"], wanted, rtol=bound, atol=bound * np.abs(wanted).max())
    rounded = rule.get("activations") == "int8-static"  # by a step of its own
    assert "factor" in rule or rounded or "elementwise" not in compiled.report.steps
    kernels = [row.kernel for row in compiled.report.layers]
    assert all(kernels)


def test_a_weight_of_several_nodes_and_a_gemm_that_adds_a_matrix() -> None:
    import onnx

    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        net (float[5, 6] x, float[5, 6] c) => (float[5, 6] y, float[5, 6] z)
        {
            a = MatMul (x, w)
            b = Gemm (a, w, c)
            r = Relu (b)
            y = Add (r, x)
            z = MatMul (y, w)
        }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal((6, 6)).astype(np.float32), "w"))
    source = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    for number, node in enumerate(source.graph):
        node.name = f"n{number}"
    feed = {name: rng.standard_normal((5, 6)).astype(np.float32) for name in ("x", "c")}
    result = sparsec.compress(
        source, recipe({"scheme": "int8", "low_rank": {"rank": 2, "scheme": "fp16"}}), calibration=[feed], verify=False
    )
    (row,) = result.report.layers
    assert row.record.scheme == "int8 + rank 2 fp16"
    found, wanted = Reference(result.model).run(feed), Reference(source).run(feed)
    for name in ("y", "z"):
        np.testing.assert_allclose(found[name], wanted[name], atol=0.02 * np.abs(wanted[name]).max())
    codes = [n for n in result.model.graph.initializers if n.startswith("w")]
    assert len(codes) == len(set(codes)) == 4  # each factor is stored once


def test_two_additions_behind_a_branch_are_both_fused() -> None:
    """act(W x + b + branch + residual): the branch's product takes the residual."""
    import onnx

    rng = np.random.default_rng(1)
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        net (float[5, 6] x) => (float[5, 6] y)
        {
            a = MatMul (x, w)
            b = Add (a, bias)
            c = Add (x, b)
            y = Relu (c)
        }"""
    )
    for name, shape in (("w", (6, 6)), ("bias", (6,))):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    source = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    result = compress(source, recipe({"scheme": "int8", "low_rank": {"rank": 2}}))
    assert [node.op_type for node in result.model.graph] == ["MatMul"] * 3
    views = [ops.view(node) for node in result.model.graph]
    assert [bool(view.residual) for view in views] == [False, True, True]
    assert (views[2].activation, bool(views[2].bias)) == ("relu", True)
    feed = {"x": rng.standard_normal((5, 6)).astype(np.float32)}
    np.testing.assert_allclose(Reference(result.model).run(feed)["y"], Reference(source).run(feed)["y"], atol=0.1)
