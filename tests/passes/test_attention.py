"""Attention is recognised however it was written, and the fused node computes the same in stock onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from sparsec.frontend import load_model
from sparsec.passes import compress
from sparsec.target import host_target
from tests.kernels.programs import lower_and_run

Array = np.ndarray[Any, Any]


class Attention(torch.nn.Module):
    """Heads side by side after the projections; `groups` query heads share keys; the scale and mask come in several ways."""

    def __init__(self, width: int, heads: int, groups: int, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.groups, self.how = heads, groups, how
        self.q, self.o = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
        self.k, self.v = (torch.nn.Linear(width, width // groups) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, t, width = x.shape
        d = width // self.heads
        q, k, v = (layer(x).view(b, t, -1, d).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.groups > 1:
            q = q.reshape(b, self.heads // self.groups, self.groups * t, d)
        scores = q @ k.transpose(2, 3)
        if self.groups > 1:
            scores = scores.view(b, self.heads // self.groups, self.groups, t, t)
        scores = scores / d**0.5 if self.how == "div" else scores * d**-0.5
        if self.how == "causal":
            scores = scores + torch.full((t, t), float("-inf")).triu(1)
        elif self.how != "none":
            scores = scores + mask
        weights = scores.softmax(-1)
        if self.groups > 1:
            weights = weights.view(b, self.heads // self.groups, self.groups * t, t)
        return self.o((weights @ v).reshape(b, self.heads, t, d).transpose(1, 2).reshape(b, t, width))


def run(model: ir.Model, feed: dict[str, Array]) -> list[Array]:
    return list(ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feed))


def feed_of(model: ir.Model, **arrays: Array) -> dict[str, Array]:
    names = {value.name for value in model.graph.inputs}
    return {name: array for name, array in arrays.items() if name in names}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("how", "mask_shape"),
    [
        ("none", (1,)),
        ("causal", (1,)),
        ("mul", (1, 1, 1, 19)),
        ("div", (19, 19)),
        ("mul", (1, 1, 19, 19)),
        ("mul", (19,)),
    ],
)
def test_attention_becomes_one_node(how: str, mask_shape: tuple[int, ...], groups: int) -> None:
    if groups > 1 and len(mask_shape) == 4:
        mask_shape = mask_shape[-2:]
    rng = np.random.default_rng(len(how))
    x = rng.normal(size=(2, 19, 32)).astype(np.float32)
    mask = np.where(rng.random(mask_shape) < 0.3, -1e9, rng.normal(size=mask_shape)).astype(np.float32)
    module = Attention(32, 4, groups, how).eval()
    source = load_model(module, (torch.from_numpy(x), torch.from_numpy(mask)))
    fused = compress(source).model
    kinds = [node.op_type for node in fused.graph]
    assert kinds.count("Attention") == 1
    assert "Softmax" not in kinds
    assert "Transpose" not in kinds or groups > 1
    feed = feed_of(fused, x=x, mask=mask)
    (want,) = run(source, feed)
    (portable,) = run(fused, feed)
    assert np.abs(portable - want).max() <= 1e-5 * np.abs(want).max()
    (got,) = lower_and_run(fused, feed, host_target())
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_softmax_that_somebody_else_reads_stays() -> None:
    class Both(Attention):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
            q, k, v = (layer(x).view(1, 5, 4, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
            weights = (q @ k.transpose(2, 3)).softmax(-1)
            return weights @ v, weights

    x = torch.randn(1, 5, 32)
    fused = compress(load_model(Both(32, 4, 1, "none").eval(), (x, torch.zeros(1)))).model
    kinds = [node.op_type for node in fused.graph]
    assert "Softmax" in kinds
    assert "Attention" not in kinds


def test_a_compressed_file_is_fused_again() -> None:
    x = torch.randn(1, 6, 32)
    module = Attention(32, 4, 1, "mul").eval()
    once = compress(load_model(module, (x, torch.zeros(6, 6))), "int8").model
    again = compress(load_model(ir.to_proto(once))).model
    assert [node.op_type for node in again.graph].count("Attention") == 1
