"""Comparison with onnxruntime: the measure, the bounds, sample inputs that fit a graph."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.errors import InputError, ModelError, VerificationError
from sparsec.reference import Reference, onnx_bytes
from sparsec.samples import check_inputs, load_inputs, random_inputs, table_rows
from sparsec.verify import compare, verify_run


def test_relative_error_is_the_largest_difference_over_the_largest_value() -> None:
    b = np.array([[1.0, -8.0], [0.5, 2.0]], np.float32)
    a = b.copy()
    a[1, 0] += 0.25
    (row,) = compare({"y": a}, {"y": b})
    assert row.absolute == pytest.approx(0.25)
    assert row.relative == pytest.approx(0.25 / 8)
    assert row.within(0.04)
    assert not row.within(0.03)


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"y": np.zeros((2, 1), np.float32)},
        {"y": np.zeros(2, np.float64)},
        {"y": np.array([0, np.nan], np.float32)},
        {"y": np.array([0, np.inf], np.float32)},
    ],
    ids=["missing", "shape", "dtype", "nan", "inf"],
)
def test_what_cannot_be_compared_is_an_infinite_error(found: dict[str, np.ndarray]) -> None:
    (row,) = compare(found, {"y": np.zeros(2, np.float32)})
    assert math.isinf(row.relative)
    assert not row.within(None)


def test_equal_special_values_do_not_count() -> None:
    b = np.array([np.inf, -np.inf, np.nan, 4.0], np.float32)
    a = np.array([np.inf, -np.inf, np.nan, 5.0], np.float32)
    (row,) = compare({"y": a}, {"y": b})
    assert row.relative == pytest.approx(0.25)
    (row,) = compare({"y": -b}, {"y": b})
    assert math.isinf(row.relative)


def test_zero_reference_and_empty_outputs() -> None:
    (zero, empty) = compare(
        {"z": np.array([3.0]), "e": np.zeros((0, 4))}, {"z": np.array([0.0]), "e": np.zeros((0, 4))}
    )
    assert zero.relative == 3.0
    assert empty.relative == 0.0


def test_check_raises_with_a_table_of_all_outputs() -> None:
    good, bad = np.ones(3, np.float32), np.full(3, 1.5, np.float32)
    result = verify_run(
        lambda feed: {"logits": bad, "state": good},
        lambda feed: {"logits": good, "state": good},
        {},
        bound=1e-4,
        subject="the program",
        against="the original",
        inputs="none",
    )
    assert not result.passed
    with pytest.raises(VerificationError) as caught:
        result.check()
    lines = str(caught.value).splitlines()
    assert any("logits" in line and "0.5" in line and "FAILED" in line for line in lines)
    assert any("state" in line and "FAILED" not in line for line in lines)


def test_without_a_bound_any_finite_error_passes() -> None:
    result = verify_run(
        lambda feed: {"y": np.array([9.0])},
        lambda feed: {"y": np.array([1.0])},
        {},
        bound=None,
        subject="a",
        against="b",
        inputs="none",
        original=lambda feed: {"y": np.array([3.0])},
    )
    assert result.check() is result
    assert result.error == 8.0
    assert result.error_to_original == 2.0


def _embedding_model(offset: int = 0) -> onnx.ModelProto:
    """ids -> (cast) -> + offset -> table of 11 rows; mask, flag and image go to the output too."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["ids64"], to=TensorProto.INT64),
        helper.make_node("Add", ["ids64", "offset"], ["shifted"]),
        helper.make_node("Gather", ["table", "shifted"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["maskf"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["maskf", "axis"], ["maskc"]),
        helper.make_node("Mul", ["rows", "maskc"], ["masked"]),
        helper.make_node("Add", ["masked", "x"], ["y"]),
        helper.make_node("Identity", ["image"], ["image_out"]),
        helper.make_node("Not", ["flag"], ["not_flag"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [
            info("ids", TensorProto.INT32, [2, 64]),
            info("mask", TensorProto.INT64, [2, 64]),
            info("x", TensorProto.FLOAT, [2, 64, 3]),
            info("image", TensorProto.UINT8, [40]),
            info("flag", TensorProto.BOOL, [3]),
        ],
        [
            info("y", TensorProto.FLOAT, [2, 64, 3]),
            info("image_out", TensorProto.UINT8, [40]),
            info("not_flag", TensorProto.BOOL, [3]),
        ],
        [
            numpy_helper.from_array(np.random.default_rng(1).standard_normal((11, 3)).astype(np.float32), "table"),
            numpy_helper.from_array(np.array(offset, np.int64), "offset"),
            numpy_helper.from_array(np.array([2], np.int64), "axis"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("offset", [0, 4])
def test_random_inputs_fit_the_graph(offset: int) -> None:
    model = ir.from_proto(_embedding_model(offset))
    feed = random_inputs(model, seed=3)
    assert {k: (v.dtype.name, v.shape) for k, v in feed.items()} == {
        "ids": ("int32", (2, 64)),
        "mask": ("int64", (2, 64)),
        "x": ("float32", (2, 64, 3)),
        "image": ("uint8", (40,)),
        "flag": ("bool", (3,)),
    }
    assert set(np.unique(feed["ids"])) == set(range(11 - offset))
    assert (feed["mask"] == 1).all()
    assert feed["flag"].all()
    assert feed["image"].max() > 200
    assert table_rows(model.graph.inputs[1]) is None
    again = random_inputs(model, seed=3)
    assert all(np.array_equal(feed[name], again[name]) for name in feed)
    assert not np.array_equal(feed["x"], random_inputs(model, seed=4)["x"])
    Reference(model).run(feed)  # the indices are in range, or onnxruntime refuses


def test_npz_inputs(tmp_path: Path) -> None:
    model = ir.from_proto(_embedding_model())
    feed = random_inputs(model)
    np.savez(tmp_path / "x.npz", **feed)
    loaded = load_inputs(tmp_path / "x.npz", model)
    assert all(np.array_equal(loaded[name], feed[name]) for name in feed)
    with pytest.raises(InputError, match="no such file"):
        load_inputs(tmp_path / "y.npz", model)
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"not an \.npz"):
        load_inputs(tmp_path / "bad.npz", model)


def test_inputs_that_do_not_fit_are_all_listed() -> None:
    model = ir.from_proto(_embedding_model())
    feed = random_inputs(model)
    feed["x"] = feed["x"].astype(np.float64)
    feed["extra"] = feed.pop("flag")
    with pytest.raises(InputError) as caught:
        check_inputs(feed, model, "here")
    message = str(caught.value)
    assert "'flag' is missing" in message
    assert "'extra' is no input" in message
    assert "'x' is float64[2, 64, 3], the model takes float32[2, 64, 3]" in message


def test_reference_adds_fixed_inputs_and_ignores_foreign_ones() -> None:
    model = ir.from_proto(_embedding_model())
    feed = random_inputs(model)
    plain = Reference(onnx_bytes(model)).run(feed)
    x = feed.pop("x")
    fixed = Reference(model, fixed={"x": x, "not an input": 1}).run(feed)
    assert np.array_equal(plain["y"], fixed["y"])
    with pytest.raises(InputError):
        Reference(model).run(feed)


def test_reference_refuses_what_onnxruntime_refuses() -> None:
    model = _embedding_model()
    model.graph.node[0].op_type = "NoSuchOp"
    with pytest.raises(ModelError, match="NoSuchOp"):
        Reference(model.SerializeToString())


def test_onnx_bytes_reads_mapped_data_and_leaves_the_model_alone(tmp_path: Path) -> None:
    proto = _embedding_model()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=64)
    model = ir.load(tmp_path / "m.onnx")
    data = onnx_bytes(model)
    assert data == onnx_bytes(model)
    assert isinstance(model.graph.initializers["table"].const_value, ir.ExternalTensor)
    feed = random_inputs(model)
    assert np.array_equal(Reference(data).run(feed)["y"], Reference(tmp_path / "m.onnx").run(feed)["y"])
