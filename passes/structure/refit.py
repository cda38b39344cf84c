"""What stays makes up for what went: each linear layer is fitted to the outputs it had, on the inputs it reads now (fit.py), one after
the other; biases keep the means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sparsec.passes.calibrate.biases import own_bias
from sparsec.passes.calibrate.inputs import layer_rows
from sparsec.passes.structure.fit import Sums, best_fit
from sparsec.passes.structure.moments import linear_use, row_limit, visit
from sparsec.passes.weights import Use

__all__ = ["refit"]

Array = np.ndarray[Any, Any]


def refit(
    model: ir.Model,
    before: ir.Model,
    wanted: Mapping[str, Array],
    samples: Sequence[Mapping[str, Array]],
    *,
    weights: bool,
    damping: float,
    mask: str,
    threads: int,
) -> dict[str, str]:
    """Fit the linear layers of `model`, in place and in order of execution, to the outputs they have in `before`.

    Args:
        before: the model nothing was removed from; gets biases where it has none.
        wanted: by node, T: the outputs should be T^T times those in `before`; the same where a node is missing.
        weights: False changes biases only.
        mask: the input that is 0 where another is padding.

    Returns:
        Layers that were left alone, by the name of the weight, with the reason.
    """
    pairs, left = _pairs(model, before)
    biases = [(own_bias(model, now, _rows(now)), own_bias(before, then, _rows(then))) for now, then in pairs]
    now_at = visit(model, samples, [now.node for now, _ in pairs], threads)
    then_at = visit(before, samples, [then.node for _, then in pairs], threads)
    # More threads than cores make BLAS many times slower, and results depend on how many there are.
    with threadpool_limits(1, user_api="blas"):
        for (now, then), (bias, bias_then), (_, value), (_, value_then) in zip(
            pairs, biases, now_at, then_at, strict=True
        ):
            target = wanted.get(now.node.name or "")
            layer = _Layer(now, then, target, model, before, (bias, bias_then))
            for number, sample in enumerate(samples):
                limit = row_limit(layer.inputs, len(samples))
                x, d = (
                    np.stack(layer_rows(use, at(_read(use), number), limit, number, sample.get(mask)))
                    for use, at in ((now, value), (then, value_then))
                )
                layer.add(number, x, d)
            layer.solve(weights, damping)
    return left


def _pairs(model: ir.Model, before: ir.Model) -> tuple[list[tuple[Use, Use]], dict[str, str]]:
    """Layers of both models, by node name and in order, that read something else than before; weights that several nodes read are
    left."""
    then = {node.name: node for node in before.graph}
    changed: set[ir.Value] = set()
    found, left = [], {}
    for node in model.graph:
        old = then.get(node.name)
        if old is None or any(value in changed for value in node.inputs) or not _same(node, old):
            changed.update(node.outputs)
        x = node.inputs[0] if node.inputs else None
        if old is None or x is None or not (x in changed or old.inputs[0] is None or x.name != old.inputs[0].name):
            continue
        use, use_then = linear_use(node), linear_use(old)
        if use is None or use_then is None:
            continue
        if len(_weight(use).uses()) > 1:
            left[_weight(use).name or ""] = f"not fitted again: read by {len(_weight(use).uses())} nodes"
        else:
            found.append((use, use_then))
    return found, left


def _same(node: ir.Node, then: ir.Node) -> bool:
    """Whether a node reads the same names and the same constants."""
    if node.op_type != then.op_type or len(node.inputs) != len(then.inputs):
        return False
    for value, old in zip(node.inputs, then.inputs, strict=True):
        if value is None or old is None:
            if value is not old:
                return False
        elif value.const_value is not None and old.const_value is not None:
            if not np.array_equal(value.const_value.numpy(), old.const_value.numpy()):
                return False
        elif value.name != old.name:
            return False
    return True


class _Layer:
    """One layer now and then; sums over samples of what it reads now, [G, T, K], and what it gave then, from d [G', T, K']."""

    def __init__(
        self, now: Use, then: Use, target: Array | None, model: ir.Model, before: ir.Model, biases: tuple[str, str]
    ) -> None:
        self._now, self._model, self._bias, self._target = now, model, biases[0], target
        self._weight, self._then = _by_groups(now), _by_groups(then)
        self._offset = _array(before, biases[1]).reshape(-1)
        self.inputs = self._weight.shape[2]
        zero = [Sums.of(np.zeros((0, self.inputs)), np.zeros((0, rows.shape[0]))) for rows in self._weight]
        self._halves: tuple[list[Sums], list[Sums]] = (list(zero), list(zero))

    def add(self, sample: int, x: Array, d: Array) -> None:
        outputs = np.matmul(d, self._then.swapaxes(1, 2))
        y = outputs.swapaxes(0, 1).reshape(outputs.shape[1], -1) + self._offset
        if self._target is not None:
            y = y @ self._target
        half = self._halves[sample % 2]
        for group, (rows, wanted) in enumerate(zip(x, np.split(y, len(x), axis=1), strict=True)):
            half[group] += Sums.of(rows, wanted)

    def solve(self, weights: bool, damping: float) -> None:
        fits, biases = [], []
        for weight, one, other in zip(self._weight, *self._halves, strict=True):
            x, y, _, _ = (one + other).centred()
            fit = best_fit(weight, (one, other), damping) if weights else weight.astype(np.float64)
            fits.append(fit)
            biases.append(y - fit @ x)
        if weights:
            _write(_weight(self._now), np.concatenate(fits), self._now.flipped)
        bias = self._model.graph.initializers[self._bias]
        assert bias.const_value is not None
        made = np.concatenate(biases).reshape(bias.const_value.numpy().shape)
        bias.const_value = ir.tensor(made.astype(np.float32), name=bias.name)


def _by_groups(use: Use) -> NDArray[np.float32]:
    """The weight of a layer, [groups, N / groups, K]."""
    matrix = _matrix(use)
    groups = use.node.attributes.get_int("group", 1) if use.node.op_type == "Conv" else 1
    return matrix.reshape(groups, -1, matrix.shape[1])


def _weight(use: Use) -> ir.Value:
    value = use.node.inputs[1]
    assert value is not None
    return value


def _read(use: Use) -> str:
    value = use.node.inputs[0]
    assert value is not None
    return value.name or ""


def _array(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def _matrix(use: Use) -> NDArray[np.float32]:
    tensor = _weight(use).const_value
    assert tensor is not None
    array = tensor.numpy()
    return np.ascontiguousarray(array.T if use.flipped else array.reshape(len(array), -1), np.float32)


def _rows(use: Use) -> int:
    return len(_matrix(use))


def _write(value: ir.Value, matrix: Array, flipped: bool) -> None:
    assert value.const_value is not None
    array = (matrix.T if flipped else matrix).reshape(value.const_value.numpy().shape)
    value.const_value = ir.tensor(np.ascontiguousarray(array, np.float32), name=value.name)
