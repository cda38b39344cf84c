"""A compressed graph trained against the graph it came from, in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from sparsec.errors import CalibrationError
from sparsec.formats import EncodedWeight, encode
from sparsec.passes.differentiable.network import Network
from sparsec.passes.differentiable.settings import deterministic
from sparsec.passes.recover.batches import Batch, Batches, split
from sparsec.passes.recover.constants import biases, norms
from sparsec.passes.recover.losses import Loss, classes, custom, divergence, squared
from sparsec.passes.recover.train import LearntConstant, Student, Training, train, variances
from sparsec.passes.recover.weights import LearntWeight
from sparsec.passes.weights import Weight, find_weights
from sparsec.progress import Progress
from sparsec.recovery import Recover

__all__ = ["Recovered", "recover"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Recovered:
    """The weights as trained, by the names of their Decode nodes' results, and how training went."""

    weights: dict[str, EncodedWeight]
    training: Training


def recover(
    model: ir.Model,
    original: ir.Model,
    settings: Recover,
    samples: Sequence[Mapping[str, Array]],
    *,
    seen: int = 0,
    labels: Array | None = None,
    mask: str = "",
    function: Callable[..., Any] | None = None,
    with_biases: bool = True,
    threads: int = 1,
    progress: Progress | None = None,
) -> Recovered:
    """Train the encoded weights (`sparsec::Decode` nodes) of `model`, its biases and norms, in place.

    Args:
        model: standard operators and Decode nodes, static shapes. original: the same before compression, the teacher.
        samples: inputs by name, at least two, the first of which calibration has `seen`.
        labels: [samples, n], for `loss: labels` classes of each sample's n decisions.
        mask: the input that is 0 where a position is padding; losses of results of layers leave those out.
        function: the loss `custom`. with_biases: whether biases may change.
        threads: of torch; any number gives the same bytes.

    Raises UnsupportedOpError before any work for operators that torch cannot compute here, CalibrationError for too few samples,
    labels that do not fit or a loss that is no number.
    """
    student_net, teacher = Network(model), Network(original)
    if len(samples) < 2:
        raise CalibrationError(f"recover: found {len(samples)} sample; at least 2 are needed, one of them is held out")
    trained, held = split(len(samples), settings.held_out, seen)
    batches = Batches(samples, labels, trained, settings.batch, mask)
    held_out = Batches(samples, labels, held, settings.batch, mask)
    with deterministic(threads) as pool:
        first = next(batches.plain())
        loss = _loss(settings, model, original, teacher, first, labels, function)
        student = _student(model, student_net, first, settings, with_biases)
        training = train(student, teacher, loss, batches, held_out, settings, pool, progress)
        stored = {name: weight.stored() for name, weight in student.weights.items()}
        _write(model, student, stored)
    return Recovered(stored, training)


def _student(model: ir.Model, network: Network, first: Batch, settings: Recover, with_biases: bool) -> Student:
    weights = {}
    for number, (name, node) in enumerate(network.weights.items()):
        stored = node.weight()
        encoded = stored if isinstance(stored, EncodedWeight) else encode(stored, node.scheme)
        weights[name] = LearntWeight(encoded, settings.method, settings.rank, settings.seed + number)
    constants = {}
    added = biases(model) if with_biases else {}
    spread = variances(network, first, list(added.values()))
    for name in (*added, *norms(model)):
        start = network.constants[name]
        size = float(start.double().square().mean().sqrt()) or 1.0
        unit = spread[added[name]] ** 0.5 if name in added else size
        constants[name] = LearntConstant(start, unit, torch.zeros(start.shape, requires_grad=True))
    return Student(network, weights, constants)


def _loss(
    settings: Recover,
    model: ir.Model,
    original: ir.Model,
    teacher: Network,
    first: Batch,
    labels: Array | None,
    function: Callable[..., Any] | None,
) -> Loss:
    outputs = [(a.name or "", b.name or "") for a, b in zip(model.graph.outputs, original.graph.outputs, strict=True)]
    output = model.graph.outputs[0]
    match settings.loss:
        case "kl":
            return divergence(*outputs[0])
        case "labels":
            assert labels is not None
            assert output.shape is not None
            shape = tuple(int(size) for size in output.shape.numpy())
            return classes(outputs[0][0], shape, labels)
        case "custom":
            assert function is not None
            return custom(function, [a for a, _ in outputs], [b for _, b in outputs])
    floating = [
        (value.name or "", name)
        for value, (_, name) in zip(model.graph.outputs, outputs, strict=True)
        if value.dtype is not None and value.dtype.is_floating_point()
    ]
    layers = _layers(model, original) if settings.loss == "layers" else []
    layers = [pair for pair in layers if pair not in floating]
    powers = variances(teacher, first, [b for _, b in (*floating, *layers)])
    return squared([pairs for pairs in (floating, layers) if pairs], powers)


def _layers(model: ir.Model, original: ir.Model) -> list[tuple[str, str]]:
    """Results of products with a constant weight, their biases included: names in the compressed graph and in the original."""
    ours = {value.name: value for node in model.graph for value in node.outputs}
    found = []
    for weight in find_weights(original):
        for use in weight.uses if isinstance(weight, Weight) else ():
            if use.operator == "Gather":
                continue
            value = use.node.outputs[0]
            readers = list(value.uses())
            if len(readers) == 1 and readers[0][0].op_type == "Add" and not value.is_graph_output():
                other = readers[0][0].inputs[1 - readers[0][1]]
                if other is not None and other.const_value is not None:
                    value = readers[0][0].outputs[0]
            name = value.name or ""
            same = ours.get(f"{name}.biased", ours.get(name))
            if same is not None and same.shape == value.shape:
                found.append((same.name or "", name))
    return found


def _write(model: ir.Model, student: Student, stored: Mapping[str, EncodedWeight]) -> None:
    for name, weight in stored.items():
        inputs = student.network.weights[name].weight_inputs.values
        for value, array in zip(inputs, weight.arrays().values(), strict=True):
            assert value.const_value is not None
            shaped = np.ascontiguousarray(array).reshape(value.const_value.shape.numpy())
            value.const_value = ir.tensor(shaped, name=value.name)
    for name, constant in student.constants.items():
        array = constant.value().detach().numpy()
        model.graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(array), name=name)
