"""LSTM, GRU and RNN against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.nodes import node_check, node_refusal

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _inputs(op: str, sizes: tuple[int, int, int, int], directions: int, states: bool = True) -> dict[str, np.ndarray]:
    steps, batch, inputs, hidden = sizes
    rng = np.random.default_rng(hidden)

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 0.5).astype(np.float32)

    g = GATES[op]
    named = {
        "x": normal(steps, batch, inputs),
        "w": normal(directions, g * hidden, inputs),
        "r": normal(directions, g * hidden, hidden),
        "b": normal(directions, 2 * g * hidden),
    }
    if states:
        named |= {"_lengths": np.zeros(0), "h0": normal(directions, batch, hidden)}
        if op == "LSTM":
            named["c0"] = normal(directions, batch, hidden)
    return named


CONSTANT = ["w", "r", "b"]
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 5e-6}


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("sizes", [(5, 2, 7, 3), (1, 1, 16, 64), (3, 3, 5, 37)])
def test_cells(op: str, direction: str, sizes: tuple[int, int, int, int]) -> None:
    inputs = _inputs(op, sizes, 2 if direction == "bidirectional" else 1)
    outputs = 3 if op == "LSTM" else 2
    node_check(op, inputs, CONSTANT, outputs=outputs, hidden_size=sizes[3], direction=direction, **CLOSE)


@pytest.mark.parametrize("hidden", [3, 20])
def test_gru_linear_before_reset(hidden: int) -> None:
    inputs = _inputs("GRU", (4, 2, 5, hidden), 1)
    node_check("GRU", inputs, CONSTANT, outputs=2, hidden_size=hidden, linear_before_reset=1, **CLOSE)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_weights_computed_at_run_time_and_no_states(op: str) -> None:
    inputs = _inputs(op, (3, 2, 4, 6), 2, states=False)
    node_check(op, inputs, outputs=1, hidden_size=6, direction="bidirectional", **CLOSE)
    del inputs["b"]
    node_check(op, inputs, ["w", "r"], outputs=["", "last"], hidden_size=6, direction="bidirectional", **CLOSE)


def test_relu_rnn() -> None:
    inputs = _inputs("RNN", (4, 1, 3, 9), 1)
    node_check("RNN", inputs, CONSTANT, outputs=2, hidden_size=9, activations=["Relu"], **CLOSE)


def test_refusals_say_why() -> None:
    lstm = _inputs("LSTM", (2, 1, 3, 4), 1)
    assert "clipped" in node_refusal("LSTM", lstm, CONSTANT, hidden_size=4, clip=3.0)
    assert "activations" in node_refusal("LSTM", lstm, CONSTANT, hidden_size=4, activations=["Tanh"] * 3)
    lstm["p"] = np.ones((1, 12), np.float32)
    assert "peepholes" in node_refusal("LSTM", lstm, [*CONSTANT, "p"], hidden_size=4)
    short = {**_inputs("GRU", (3, 2, 3, 4), 1, states=False), "l": np.array([3, 1], np.int32)}
    assert "lengths" in node_refusal("GRU", short, [*CONSTANT, "l"], hidden_size=4)
