"""Encode the chosen weights: `W` becomes `sparsec::Decode(codes, ...)`, in place, with a record of what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec import ops
from sparsec.formats import EncodedWeight, decode, encode
from sparsec.passes.calibrate.solve import Solved
from sparsec.passes.encode_cache import cached_encoding, cached_form
from sparsec.passes.factor.form import Factored
from sparsec.passes.factor.solve import factored
from sparsec.passes.layers import LayerRecord
from sparsec.passes.select import Choice
from sparsec.progress import Progress

__all__ = ["encode_weights", "insert_decode"]

Mask = NDArray[np.bool_]
Matrix = NDArray[np.float32]


def encode_weights(
    choices: Sequence[Choice],
    digests: Sequence[str],
    masks: Sequence[Mask | None],
    solved: Sequence[Solved | None],
    progress: Progress | None = None,
) -> list[tuple[EncodedWeight | Factored, LayerRecord]]:
    """Encode every weight in its scheme (numpy, in threads: the heavy parts release the interpreter's lock).

    digests: of `weight_digest`; what was encoded before comes from the cache. solved: weights that calibration has encoded.

    Raises:
        WeightError: a weight does not fit its scheme.
    """

    def work(index: int) -> tuple[EncodedWeight | Factored, LayerRecord]:
        choice, digest, mask, given = choices[index], digests[index], masks[index], solved[index]
        if given is not None:
            record = _record(choice, given.encoded, given.zeros, given.nmse)
            record.output_error = given.output_error
            return given.encoded, record
        if choice.rule.several_products:
            form = cached_form(choice, digest, mask, lambda: _factored(choice, mask))
            return form, _record(choice, form, form.zeros(), _figures(choice.weight.matrix(), form.decoded())[1])
        encoded, zeros, nmse = cached_encoding(choice, digest, mask, lambda: _encode(choice, mask))
        return encoded, _record(choice, encoded, zeros, nmse)

    with ThreadPoolExecutor(max_workers=4) as pool:
        # The largest first: an embedding table that comes last keeps one thread busy while three wait.
        order = sorted(range(len(choices)), key=lambda i: -choices[i].weight.rows * choices[i].weight.cols)
        futures = {pool.submit(work, i): i for i in order}
        found = {}
        for future in as_completed(futures):
            index = futures[future]
            found[index] = future
            if progress is not None:
                progress("encode", len(found), len(choices), choices[index].weight.name)
        return [found[i].result() for i in range(len(choices))]


def insert_decode(model: ir.Model, choice: Choice, encoded: EncodedWeight) -> None:
    """Put a Decode node before the first reader of the weight and drop the weight itself."""
    weight = choice.weight
    value, name = weight.value, weight.name
    first = _first_reader(model.graph, value)
    model.graph.initializers.pop(name)
    built = ops.decode(ops.weight_inputs(encoded, name), weight.shape, trans=weight.flipped, name=f"{name}.decode")
    built.output.name = f"{name}.decoded"
    model.graph.insert_before(first, built.node)
    ir.convenience.replace_all_uses_with(value, built.output)
    built.register(model)


def _first_reader(graph: ir.Graph, value: ir.Value) -> ir.Node:
    readers = {node for node, _ in value.uses()}
    return next(node for node in graph if node in readers)


def _encode(choice: Choice, mask: Mask | None) -> tuple[EncodedWeight, float, float]:
    matrix = choice.weight.matrix()
    encoded = encode(matrix, choice.scheme, mask, name=choice.weight.name)
    return encoded, *_figures(matrix, decode(encoded))


def _factored(choice: Choice, chosen: Mask | None) -> Factored:
    """Without data: every input counts the same."""

    def coder(target: Matrix, second_moment: object, mask: Mask | None) -> EncodedWeight:
        return encode(target, choice.scheme, chosen if mask is None else mask, name=choice.weight.name)

    return factored(choice.weight.matrix(), None, choice.structure, choice.rule, coder)


def _figures(matrix: Matrix, decoded: Matrix) -> tuple[float, float]:
    """(share of zeros, normalised squared error)."""
    error = float(np.square(decoded - matrix, dtype=np.float64).sum())
    power = float(np.square(matrix, dtype=np.float64).sum())
    return float(np.mean(decoded == 0)), error / power if power else 0.0


def _record(choice: Choice, encoded: EncodedWeight | Factored, zeros: float, nmse: float) -> LayerRecord:
    use = choice.weight.uses[0]
    form = encoded if isinstance(encoded, Factored) else None
    return LayerRecord(
        name=choice.weight.name,
        node=use.node.name or "",
        op=use.operator,
        shape=choice.weight.shape,
        scheme=encoded.words if isinstance(encoded, Factored) else str(encoded.scheme),
        reason=choice.refused,
        zeros=zeros,
        bits_per_weight=encoded.bits_per_weight(),
        nbytes=encoded.nbytes,
        nmse=nmse,
        rule=choice.rule_index,
        factors={} if form is None else form.sizes(choice.weight.name),
    )
