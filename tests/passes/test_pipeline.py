"""Canonicalisation and compression keep what the model computes; stages leave what they promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from sparsec.formats import decode
from sparsec.frontend import load_model
from sparsec.op_view import is_sparsec, view
from sparsec.passes import compress
from sparsec.passes.canonicalise import canonicalise
from tests.models import DIGITS

Array = np.ndarray[Any, Any]


def run(model: ir.Model, feed: dict[str, Array]) -> list[Array]:
    """Stock onnxruntime's outputs."""
    return list(ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feed))


class Mixed(torch.nn.Module):
    """Convolution, batch norm, residual, layer norm and the decomposed activations in one small network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(8)
        self.bn.running_mean = torch.randn(8)
        self.bn.running_var = torch.rand(8) + 0.5
        self.mix = torch.nn.Conv2d(8, 8, 1)
        self.norm = torch.nn.LayerNorm(8)
        self.up, self.down = torch.nn.Linear(8, 40), torch.nn.Linear(40, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn(self.conv(x)))
        y = torch.nn.functional.hardswish(self.mix(y) + y)
        z = self.norm(y.mean((2, 3)))
        return torch.nn.functional.silu(self.down(torch.nn.functional.gelu(self.up(z)))) + z


@pytest.fixture(scope="module")
def mixed() -> Mixed:
    return Mixed().eval()


FEED = {"x": np.random.default_rng(0).normal(size=(1, 3, 9, 7)).astype(np.float32)}


def test_canonicalise_keeps_the_result_and_folds_batch_norm(mixed: Mixed, tmp_path: Path) -> None:
    model = load_model(mixed, example_inputs=(torch.from_numpy(FEED["x"]),))
    records = canonicalise(model, debug_dump=tmp_path)
    with torch.no_grad():
        wanted = mixed(torch.from_numpy(FEED["x"])).numpy()
    np.testing.assert_allclose(run(model, FEED)[0], wanted, rtol=1e-4, atol=1e-5)
    assert "BatchNormalization" not in {node.op_type for node in model.graph}
    assert len(list(tmp_path.glob("*.onnx"))) == len(records)


@pytest.mark.parametrize("scheme", ["fp32", "int8", "s50", "s2:4-int8", "s4x1@50-cb4-g32"])
def test_compress_fuses_and_stays_portable(mixed: Mixed, scheme: str) -> None:
    model = load_model(mixed, example_inputs=(torch.from_numpy(FEED["x"]),))
    result = compress(model, {"version": 1, "rules": [{"targets": "*", "scheme": scheme}], "min_elements": 1})
    ops = [node.op_type for node in result.model.graph if not is_sparsec(node)]
    assert not {"Conv", "Gemm", "MatMul", "Relu", "HardSwish", "Gelu"} & set(ops)
    (found,) = run(result.model, FEED)
    assert np.isfinite(found).all()
    if scheme == "fp32":
        with torch.no_grad():
            np.testing.assert_allclose(found, mixed(torch.from_numpy(FEED["x"])).numpy(), rtol=1e-4, atol=1e-5)
    for layer in result.layers:
        assert layer.scheme == scheme or layer.reason, layer


def test_every_weight_is_recorded_with_its_error() -> None:
    result = compress(load_model(DIGITS, input_shapes={"N": 1}), "int8")
    coded = [layer for layer in result.layers if layer.scheme == "int8"]
    assert coded
    assert all(0 <= layer.nmse < 1e-3 for layer in coded)
    assert all(layer.reason for layer in result.layers if layer.scheme == "fp32")


def test_sparse_weights_hold_the_asked_share_of_zeros() -> None:
    result = compress(load_model(DIGITS, input_shapes={"N": 1}), "s50")
    shares = []
    for node in result.model.graph:
        if is_sparsec(node) and str(view(node).scheme) == "s50":
            weight = view(node).weight()
            assert not isinstance(weight, np.ndarray)
            shares.append(float((decode(weight) == 0).mean()))
    assert shares
    assert all(abs(share - 0.5) < 0.02 for share in shares)


def test_same_input_same_bytes() -> None:
    files = [ir.to_proto(compress(load_model(DIGITS, input_shapes={"N": 1}), "cb4-g32").model) for _ in range(2)]
    assert files[0].SerializeToString(deterministic=True) == files[1].SerializeToString(deterministic=True)
