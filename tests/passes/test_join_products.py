"""Products of one input are joined losslessly, attention reads the parts where they lie, and nothing is joined in vain."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from sparsec.codegen.lower import lower
from sparsec.formats import EncodedWeight, Scheme, decode, encode, join_rows
from sparsec.frontend import load_model
from sparsec.passes import compress
from sparsec.readers import readers_of
from sparsec.report import layer_rows
from sparsec.target import NAMED, host_target
from tests.kernels.programs import lower_and_run
from tests.passes.test_attention import Attention, feed_of, run

Array = np.ndarray[Any, Any]
SCHEMES = [
    "fp16", "int8", "int4-g32", "uint4-g32", "int3", "cb4-g32", "cb3-c", "cb4.r32-g32", "nf4-g32", "ternary", "s50", "s70-int8",
    "s60-cb4-g32", "s2:4-int4-g32", "s16x1@50-cb4-g32", "s4x4@70-fp16",
]  # fmt: skip


def encoded(text: str, rows: tuple[int, ...], cols: int) -> list[EncodedWeight]:
    """Weights of different spread and, where that is unstructured, of different density."""
    rng = np.random.default_rng([*rows, cols])
    scheme, weights = Scheme.parse(text), []
    for i, n in enumerate(rows):
        matrix = rng.normal(size=(n, cols)).astype(np.float32) * np.float32(i + 1)
        mask = None
        if not scheme.is_dense:
            r, c = scheme.block
            keep = rng.random((-(-n // r), -(-cols // c))) < 0.3 + 0.2 * i
            if ":" in text:
                keep[:] = np.arange(keep.shape[1]) % 4 < 2
            mask = np.repeat(np.repeat(keep, r, 0)[:n], c, 1)[:, :cols]
        weights.append(encode(matrix, scheme, mask))
    return weights


@pytest.mark.parametrize("text", SCHEMES)
def test_joined_weights_keep_every_value(text: str) -> None:
    parts = encoded(text, (64, 96, 32), 96)
    joined = join_rows(parts)
    assert joined is not None
    EncodedWeight.from_arrays(joined.scheme, joined.rows, joined.cols, joined.arrays())
    np.testing.assert_array_equal(decode(joined), np.concatenate([decode(part) for part in parts]))
    assert Scheme.parse(str(joined.scheme)) == joined.scheme


def test_codes_that_do_not_fill_bytes() -> None:
    parts = encoded("int3", (5, 3, 1), 7)
    joined = join_rows(parts)
    assert joined is not None
    np.testing.assert_array_equal(decode(joined), np.concatenate([decode(part) for part in parts]))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("int8-t", (32, 32)),  # two scales for whole tensors
        ("cb4", (48, 48)),  # codebooks would change within a vector of rows
        ("cb4.i32", (32, 32)),  # codebooks by inputs
        ("s16x1@50-int8", (40, 32)),  # a block would hold rows of both
        ("vq2d4", (32, 32)),
    ],
)
def test_what_has_no_common_form_stays_apart(text: str, rows: tuple[int, int]) -> None:
    assert join_rows(encoded(text, rows, 64)) is None


def test_equal_tables_need_no_scopes() -> None:
    (part,) = encoded("cb4", (16,), 32)
    joined = join_rows([part, part])
    assert joined is not None
    assert joined.scheme == part.scheme


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    "target",
    [host_target(), *(pytest.param(NAMED[n], marks=pytest.mark.slow) for n in ("x86-avx2", "arm"))],
    ids=lambda t: t.name,
)
@pytest.mark.parametrize(
    ("recipe", "heads", "tokens"),
    [
        ("int8 x int8", 3, 7),
        ("cb4-g32 x int8", 2, 19),
        ("s16x1@50-cb4-g32 x int8", 1, 33),
        ("s50-int4-g32 x int8", 2, 5),
    ],
)
def test_attention_reads_the_parts_in_place(recipe: Any, heads: int, tokens: int, target: Any) -> None:
    width = 32 * heads
    x = np.random.default_rng(tokens).normal(size=(2, tokens, width)).astype(np.float32)
    source = load_model(Attention(width, heads, 1, "none").eval(), (torch.from_numpy(x), torch.zeros(1)))
    fused = compress(source, recipe).model
    assert kinds(fused).count("MatMul") == 2
    assert kinds(fused).count("Split") == 1
    feed = feed_of(fused, x=x, mask=np.zeros(1, np.float32))
    (portable,) = run(fused, feed)
    program = lower(fused, target, "model")
    assert "copy" not in {step.spec.family for step in program.steps}
    (got,) = lower_and_run(fused, feed, target)
    assert np.abs(got - portable).max() <= 2e-5 * np.abs(portable).max()


@pytest.mark.parametrize("recipe", ["cb4-g32 x int8", "int8 x int8", "s50-int4-g32 x int8", "s16x1@50-cb4-g32 x int8"])
def test_portable_file_is_the_same(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined and apart, onnxruntime computes the same from the same codes."""
    x = np.random.default_rng(3).normal(size=(1, 9, 64)).astype(np.float32)
    source = load_model(Attention(64, 2, 1, "mul").eval(), (torch.from_numpy(x), torch.zeros(9, 9)))
    feed = {"x": x, "mask": np.zeros((9, 9), np.float32)}
    (joined,) = run(compress(source, recipe).model, feed)
    monkeypatch.setattr("sparsec.passes.join_products._apart", lambda value: False)
    apart = compress(source, recipe).model
    assert kinds(apart).count("MatMul") == 4
    (wanted,) = run(apart, feed)
    np.testing.assert_allclose(joined, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("recipe", [None, "s50", "cb4-g32", "int8-t x int8"])
def test_nothing_is_joined_in_vain(recipe: str | None) -> None:
    """Float32 activations, and scales that have no common form."""
    x = torch.randn(1, 9, 64)
    model = compress(load_model(Attention(64, 2, 1, "none").eval(), (x, torch.zeros(1))), recipe).model
    assert kinds(model).count("MatMul") == 4


def test_products_with_a_branch_stay_apart() -> None:
    """Each adds its own; attention still reads the results as heads, and the file computes what the weights say."""
    x = np.random.default_rng(6).normal(size=(1, 9, 64)).astype(np.float32)
    source = load_model(Attention(64, 2, 1, "none").eval(), (torch.from_numpy(x), torch.zeros(1)))
    rule = {"scheme": "int8", "low_rank": {"rank": 4}, "activations": "int8"}
    model = compress(source, {"version": 1, "rules": [rule]}).model
    assert kinds(model).count("MatMul") == 12
    assert kinds(model).count("Attention") == 1
    assert not {"Add", "Split"} & set(kinds(model))
    feed = feed_of(model, x=x, mask=np.zeros(1, np.float32))
    (found,), (wanted,) = run(model, feed), run(compress(source).model, feed)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


class Projections(torch.nn.Module):
    """Two of the three projections of an attention, one of them also read by an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> Any:
        k = self.k(x)
        q, keys, v = (value.view(1, 9, 2, 32).transpose(1, 2) for value in (self.q(x), k, x))
        return ((q @ keys.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).reshape(1, 9, 64) + k


def test_parts_that_others_read_stay_apart() -> None:
    x = torch.randn(1, 9, 64)
    model = compress(load_model(Projections().eval(), (x,)), "int8 x int8").model
    assert "Attention" in kinds(model)
    assert "Split" not in kinds(model)


def test_report_names_the_kernels_of_joined_weights() -> None:
    x = torch.randn(1, 9, 64)
    source = load_model(Attention(64, 2, 1, "none").eval(), (x, torch.zeros(1)))
    compressed = compress(source, "cb4-g32 x int8")
    rows = layer_rows(compressed.layers, lower(compressed.model, host_target(), "model"), readers_of(compressed.model))
    assert [row.kernel for row in rows] == ["gemv"] * 4
