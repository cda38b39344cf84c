"""Every kind of model arrives as the same graph; what cannot be read is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from sparsec.errors import ModelError, ShapeError, SparsecError
from sparsec.frontend import load_model
from tests.models import DIGITS

X = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)


def run(model: ir.Model, feed: dict[str, Any]) -> Any:
    """Stock onnxruntime's first output."""
    return ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feed)[0]


def test_onnx_as_path_bytes_proto_and_ir() -> None:
    path = Path(DIGITS)
    wanted = ort.InferenceSession(str(path)).run(None, {"x": X})[0]
    for source in (path, str(path), path.read_bytes(), onnx.load(path), ir.load(path)):
        model = load_model(source, input_shapes={"x": [1, 1, 8, 8]})
        np.testing.assert_allclose(run(model, {"x": X}), wanted, rtol=1e-5, atol=1e-6)


def test_external_data(tmp_path: Path) -> None:
    proto = onnx.load(DIGITS)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    wanted = ort.InferenceSession(str(DIGITS)).run(None, {"x": X})[0]
    model = load_model(tmp_path / "m.onnx", input_shapes={"N": 1})
    np.testing.assert_allclose(run(ir.external_data.load_to_model(model), {"x": X}), wanted, rtol=1e-5, atol=1e-6)


def test_torch_in_every_form() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3)).eval()
    x = torch.randn(2, 5)
    wanted = module(x).detach().numpy()
    traced, exported = torch.fx.symbolic_trace(module), torch.export.export(module, (x,))
    for source, example in ((module, (x,)), (traced, (x,)), (exported, None)):
        model = load_model(source, example_inputs=example)
        name = model.graph.inputs[0].name
        np.testing.assert_allclose(run(model, {name: x.numpy()}), wanted, rtol=1e-5, atol=1e-6)


def test_values_bound_to_inputs_become_constants() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[3] a, float s) => (float[3] y) { y = Mul(a, s) }'
    )
    model = load_model(proto, input_values={"s": 2.5})
    assert [v.name for v in model.graph.inputs if v.const_value is None] == ["a"]


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx"):
        load_model(tmp_path / "nowhere.onnx")
    with pytest.raises(ShapeError, match="N"):
        load_model(DIGITS)
    with pytest.raises(SparsecError, match="example"):
        load_model(torch.nn.Linear(2, 2))


def test_the_callers_proto_stays_as_it_was() -> None:
    weight = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", [2, 4]), ("y", [2, 3])))
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    before = proto.SerializeToString()
    model = load_model(proto)
    model.graph.initializers["w"].name = "renamed"
    assert proto.SerializeToString() == before
