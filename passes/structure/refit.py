"""What stays makes up for what went: each linear layer is fitted to the outputs it had, on the inputs it reads now (fit.py), one after
the other; biases keep the means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sparsec.passes.calibrate.biases import own_bias
from sparsec.passes.calibrate.inputs import layer_rows
from sparsec.passes.structure.fit import Sums, best_fit
from sparsec.passes.structure.moments import first_input, linear_use, row_limit, visit
from sparsec.passes.weights import Use

__all__ = ["refit"]

Array = np.ndarray[Any, Any]


def refit(
    model: ir.Model,
    before: ir.Model,
    wanted: Mapping[str, Array],
    values: Mapping[str, tuple[str, str, Array]],
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
        values: by new node, what it should give: the name of a value in `before`, a node that comes after it there, and T.
        weights: False changes biases only.
        mask: the input that is 0 where another is padding.

    Returns:
        Layers that were left alone, by the name of the weight, with the reason.
    """
    pairs, left = _pairs(model, before, values)
    biases = [
        (own_bias(model, p.now, _rows(p.now)), None if p.then is None else own_bias(before, p.then, _rows(p.then)))
        for p in pairs
    ]
    now_at = visit(model, samples, [(p.now.node, first_input(p.now.node)) for p in pairs], threads)
    then_at = visit(before, samples, [(p.stop, p.value) for p in pairs], threads)
    # More threads than cores make BLAS many times slower, and results depend on how many there are.
    with threadpool_limits(1, user_api="blas"):
        for pair, (bias, bias_then), value, value_then in zip(pairs, biases, now_at, then_at, strict=True):
            name = pair.now.node.name or ""
            offset = None if bias_then is None else _array(before, bias_then).reshape(-1)
            target = wanted.get(name) if pair.then is not None else values[name][2]
            layer = _Layer(pair, target, offset)
            for number, sample in enumerate(samples):
                limit, padding = row_limit(layer.inputs, len(samples)), sample.get(mask)
                x = np.stack(layer_rows(pair.now, value(number), limit, number, padding))
                d = np.stack(layer_rows(pair.then or pair.now, value_then(number), limit, number, padding))
                layer.add(number, x, d)
            layer.solve(model.graph.initializers[bias], weights, damping)
    return left


@dataclass(frozen=True, eq=False)
class _Pair:
    """A layer now, and what it should give: the layer it was (`then`), or a value. `value`: what is looked at in the model before, when
    that has run up to the node `stop`."""

    now: Use
    then: Use | None
    stop: ir.Node
    value: str


def _pairs(
    model: ir.Model, before: ir.Model, values: Mapping[str, tuple[str, str, Array]]
) -> tuple[list[_Pair], dict[str, str]]:
    """Layers, in order, that read something else than before; weights that several nodes read are left."""
    then = {node.name: node for node in before.graph}
    made = {value.name for node in before.graph for value in node.outputs}
    changed: set[ir.Value] = set()
    found, left = [], {}
    for node in model.graph:
        old = then.get(node.name)
        if old is None or any(value in changed for value in node.inputs) or not _same(node, old):
            changed.update(node.outputs)
        use = linear_use(node)
        if use is None:
            continue
        if old is None:
            value, stop, _ = values.get(node.name or "", ("", "", None))
            if value in made and stop in then:
                found.append(_Pair(use, None, then[stop], value))
            continue
        x, use_then = node.inputs[0], linear_use(old)
        assert x is not None
        if use_then is None or (x not in changed and x.name == first_input(old)):
            continue
        if len(_weight(use).uses()) > 1:
            left[_weight(use).name or ""] = f"not fitted again: read by {len(_weight(use).uses())} nodes"
        else:
            found.append(_Pair(use, use_then, old, first_input(old)))
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

    def __init__(self, pair: _Pair, target: Array | None, offset: Array | None) -> None:
        self._now, self._target, self._offset = pair.now, target, offset
        self._weight = _by_groups(pair.now)
        self._then = None if pair.then is None else _by_groups(pair.then)
        self.inputs = self._weight.shape[2]
        zero = [Sums.of(np.zeros((0, self.inputs)), np.zeros((0, rows.shape[0]))) for rows in self._weight]
        self._halves: tuple[list[Sums], list[Sums]] = (list(zero), list(zero))
        self._waiting: tuple[list[tuple[Array, Array]], ...] = ([], [])

    def add(self, sample: int, x: Array, d: Array) -> None:
        outputs = d if self._then is None else np.matmul(d, self._then.swapaxes(1, 2))
        y = outputs.swapaxes(0, 1).reshape(outputs.shape[1], -1)
        if self._offset is not None:
            y = y + self._offset
        if self._target is not None:
            y = y @ self._target
        waiting = self._waiting[sample % 2]
        waiting.append((x, y))
        if sum(len(rows) for _, rows in waiting) > 2 * self.inputs:
            self._sum(sample % 2)

    def _sum(self, half: int) -> None:
        """Samples of few rows are summed up many at once: a sum over K x K costs as much as K rows."""
        waiting = self._waiting[half]
        if not waiting:
            return
        x, y = np.concatenate([x for x, _ in waiting], 1), np.concatenate([y for _, y in waiting])
        for group, (rows, wanted) in enumerate(zip(x, np.split(y, len(x), axis=1), strict=True)):
            self._halves[half][group] += Sums.of(rows, wanted)
        waiting.clear()

    def solve(self, bias: ir.Value, weights: bool, damping: float) -> None:
        fits, biases = [], []
        for half in (0, 1):
            self._sum(half)
        for weight, one, other in zip(self._weight, *self._halves, strict=True):
            x, y, _, _ = (one + other).centred()
            fit = best_fit(weight, (one, other), damping) if weights else weight.astype(np.float64)
            fits.append(fit)
            biases.append(y - fit @ x)
        if weights:
            _write(_weight(self._now), np.concatenate(fits), self._now.flipped)
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
