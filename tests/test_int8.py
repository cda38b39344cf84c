"""What `activations` means: numpy against the ONNX body, the bound of the error, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec import int8, ops
from sparsec.errors import ModelError
from sparsec.formats import Scheme, decode
from tests.test_ops import graph_input, random_weight, run


@pytest.mark.parametrize("activations", ["int8", "int8-g4", "int8-g32"])
@pytest.mark.parametrize("text", ["int4-g32", "uint8", "ternary", "s50-int4", "s2:4-int8"])
def test_body_rounds_like_numpy(text: str, activations: str) -> None:
    rng = np.random.default_rng()
    weight = random_weight(text, 7, 96, rng)
    x = rng.standard_normal((2, 3, 96)).astype(np.float32)
    x[0, 1] = 0
    value = graph_input("x", x)
    built = ops.matmul(value, ops.weight_inputs(weight, "w"), activations=activations)
    (found,) = run([built], {"x": value}, {"x": x}, optimise=False)
    group = int8.activation_group(activations, 96)
    wanted = int8.quantised(x, group).astype(np.float64) @ decode(weight).T.astype(np.float64)
    np.testing.assert_allclose(found, wanted, atol=2e-6 * np.abs(wanted).max())


def test_tables_are_rounded_in_the_body() -> None:
    rng = np.random.default_rng()
    weight = random_weight("cb4-g32", 9, 64, rng)
    assert weight.codebook is not None
    table, scale = int8.rounded_table(weight.codebook)
    assert np.abs(table).max() == int8.TABLE_MAX
    assert np.abs(table * scale[:, None] - weight.codebook).max() <= scale.max() / 2 * (1 + 1e-6)
    eye = np.eye(64, dtype=np.float32)
    value = graph_input("x", eye)
    built = ops.matmul(value, ops.weight_inputs(weight, "w"), activations="int8")
    (found,) = run([built], {"x": value}, {"x": eye}, optimise=False)
    error = np.abs(found.T - decode(weight)).max()
    assert 0 < error <= 0.51 * float(scale.max()) * float(np.asarray(weight.scales).max()) + 1e-6


@pytest.mark.parametrize("group", [0, 4, 32])
def test_error_is_half_a_step(group: int) -> None:
    x = np.random.default_rng().standard_normal((11, 128)).astype(np.float32)
    parts = x.reshape(11, -1, group or 128)
    step = np.repeat(np.abs(parts).max(-1) / 127, group or 128, axis=1)
    assert (np.abs(int8.quantised(x, group) - x) <= step * 0.5001).all()


def test_table_of_zeros() -> None:
    table, scale = int8.rounded_table(np.zeros((2, 16), np.float32))
    assert not table.any()
    assert not scale.any()


@pytest.mark.parametrize("text", ["int7", "int8-g0", "int8-g6", "int8-g40", "fp16"])
def test_unknown_forms_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="activations"):
        int8.activation_group(text, 64)


@pytest.mark.parametrize("text", ["cb5-g32", "fp16", "cb8"])
def test_schemes_without_bytes_are_refused(text: str) -> None:
    assert int8.refusal(Scheme.parse(text))
    weight = random_weight(text, 4, 32, np.random.default_rng(0))
    with pytest.raises(ModelError, match="int8 activations do not go with"):
        ops.matmul(graph_input("x", np.zeros((1, 32), np.float32)), ops.weight_inputs(weight, "w"), activations="int8")
