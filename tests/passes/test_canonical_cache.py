"""A canonical graph that comes back from the cache is the one that was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.cache import root
from sparsec.frontend import load_model
from sparsec.passes import PassRecord
from sparsec.passes.canonical_cache import canonical
from sparsec.reference import Reference
from tests.models import DIGITS


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSEC_CHECK", raising=False)


def serialised(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def is_cached(records: list[PassRecord]) -> bool:
    assert len({record.cached for record in records}) == 1
    return records[0].cached


def small(dtype: type = np.float32, seed: int = 0) -> ir.Model:
    """A transposed weight (folding changes it), an untouched one, a scalar."""
    rng = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(rng.normal(size=(17, 31)).astype(dtype), "w"),
        numpy_helper.from_array(rng.normal(size=(17, 13)).astype(dtype), "v"),
        numpy_helper.from_array(np.array(0.5, dtype), "half"),
    ]
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"]),
        helper.make_node("MatMul", ["x", "wt"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["b"]),
        helper.make_node("Mul", ["half", "b"], ["y"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, [3, 31])],
        [helper.make_tensor_value_info("y", kind, [3, 13])],
        weights,
    )
    return load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_comes_back_as_it_was_made(dtype: type) -> None:
    model = small(dtype)
    before = serialised(model)
    made, first = canonical(model)
    again, second = canonical(small(dtype))
    assert (is_cached(first), is_cached(second)) == (False, True)
    assert serialised(made) == serialised(again)
    assert [(r.name, r.nodes_before, r.nodes_after) for r in first] == [
        (r.name, r.nodes_before, r.nodes_after) for r in second
    ]
    assert serialised(model) == before, "the argument was changed"


def test_of_a_real_model() -> None:
    made, _ = canonical(load_model(DIGITS, input_shapes={"N": 1}))
    again, records = canonical(load_model(DIGITS, input_shapes={"N": 1}))
    assert is_cached(records)
    assert serialised(made) == serialised(again)


def test_changes_of_weights_and_of_shapes_are_told_apart() -> None:
    canonical(small(seed=0))
    assert not is_cached(canonical(small(seed=1))[1])
    one = small(seed=0)
    one.graph.initializers["half"].const_value = ir.tensor(np.array(0.25, np.float32), name="half")
    made, records = canonical(one)
    assert not is_cached(records)
    feed = {"x": np.ones((3, 31), np.float32)}
    expected = Reference(canonical(small(seed=0))[0]).run(feed)["y"]
    np.testing.assert_allclose(Reference(made).run(feed)["y"], expected / 2, rtol=1e-6)
    canonical(load_model(DIGITS, input_shapes={"N": 1}))
    assert not is_cached(canonical(load_model(DIGITS, input_shapes={"N": 2}))[1])


def test_external_data_counts_whatever_its_size(tmp_path: Path) -> None:
    for n, seed in enumerate((0, 0, 1)):
        path = tmp_path / str(n) / "m.onnx"
        path.parent.mkdir()
        model = ir.to_proto(small(seed=seed))
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.float32(0.5 + seed), "half"))
        onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    _, one = canonical(load_model(tmp_path / "0" / "m.onnx"))
    (tmp_path / "0" / "m.data").unlink()
    second, two = canonical(load_model(tmp_path / "1" / "m.onnx"))
    _, other = canonical(load_model(tmp_path / "2" / "m.onnx"))
    assert (is_cached(one), is_cached(two), is_cached(other)) == (False, True, False)
    feed = {"x": np.ones((3, 31), np.float32)}
    expected = Reference(canonical(small())[0]).run(feed)["y"]
    np.testing.assert_array_equal(Reference(second).run(feed)["y"], expected)


def test_unchanged_weights_are_not_stored_again() -> None:
    canonical(small())
    (entry,) = (root() / "graphs").glob("*.arrays")
    kept = np.random.default_rng(0).normal(size=(17, 31)).astype(np.float32)
    unchanged = np.random.default_rng(0)
    unchanged.normal(size=(17, 31))
    stored = entry.read_bytes()
    assert kept.T.tobytes() in stored
    assert unchanged.normal(size=(17, 13)).astype(np.float32).tobytes() not in stored


def test_a_damaged_entry_is_made_again() -> None:
    made, _ = canonical(small())
    (entry,) = (root() / "graphs").glob("*.arrays")
    data = entry.read_bytes()
    entry.write_bytes(data[: len(data) // 2])
    again, records = canonical(small())
    assert not is_cached(records)
    assert serialised(made) == serialised(again)


def test_dumps_and_checks_run_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canonical(small())
    assert not is_cached(canonical(small(), debug_dump=tmp_path / "dump")[1])
    assert list((tmp_path / "dump").glob("*.onnx"))
    monkeypatch.setenv("SPARSEC_CHECK", "1")
    assert not is_cached(canonical(small())[1])


def test_weights_numpy_cannot_store_stay_in_the_graph() -> None:
    def model() -> ir.Model:
        table = helper.make_tensor("t", TensorProto.BFLOAT16, [40, 8], np.arange(320, dtype=np.float32))
        graph = helper.make_graph(
            [helper.make_node("Gather", ["t", "i"], ["y"])],
            "g",
            [helper.make_tensor_value_info("i", TensorProto.INT64, [3])],
            [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [3, 8])],
            [table],
        )
        return load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))

    made, _ = canonical(model())
    again, records = canonical(model())
    assert is_cached(records)
    assert serialised(made) == serialised(again)
