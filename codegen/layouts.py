"""In which layout every node computes: the labelling of the graph with the least estimated time, as a minimum cut.

Nodes are labelled `row` or `cl`. A labelling costs what each node takes in its layout, plus one conversion of every value
whose producer and some reader are labelled differently (once, however many readers: conversions are shared). Costs of this form
are minimised exactly by a minimum s-t cut (Kolmogorov and Zabih, "What energy functions can be minimized via graph cuts?", 2004):
the source side is `row`, the sink side `cl`. Among labellings of equal cost the one with the most `row` nodes is taken.

What a node can do is said by the choices of kernels/table.py; a node without a choice computes in `row`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from math import inf, prod

import onnx_ir as ir

from sparsec.codegen.context import Layout, Lowering, same_memory
from sparsec.codegen.mincut import UNBOUNDED, MinCut
from sparsec.codegen.program import ITEMSIZE

# Bytes a nanosecond of a layout conversion, read and written: transposing through registers, from level-2 cache or beyond.
_CONVERSION_RATE = 8.0
# Multiplications a nanosecond and vector lane, at most: two vector units at 1.8 GHz.
_MACS_PER_LANE = 3.6
# Fixed cost of a step, in nanoseconds.
_STEP = 300.0


@dataclass(frozen=True)
class Choice:
    """The layouts a node can compute in, with the estimated nanoseconds of one thread in each.

    `out` is the layout of its results where that is always the same (None: the one it computes in). A `free` node reads its
    inputs as they lie, at no cost. A node that `follows` computes in the layout its first input was produced in.
    """

    cost: Mapping[Layout, float]
    out: Layout | None = None
    free: bool = False
    follows: bool = False


# (node, lowering) -> its choice; None where the rule this belongs to does not take the node.
Chooser = Callable[[ir.Node, Lowering], Choice | None]

ROW_ONLY = Choice({"row": 0.0})
FOLLOWS = Choice({"row": 0.0, "cl": 0.0}, follows=True)


def multiply_time(low: Lowering, macs: float, share: float) -> float:
    """Nanoseconds of `macs` float32 multiplications at `share` of the peak of one core."""
    return macs / (_MACS_PER_LANE * low.target.lanes * share)


def move_time(low: Lowering, value: ir.Value) -> float:
    """Nanoseconds to convert a value from one layout to the other; 0 where they coincide."""
    shape = low.shape(value)
    if len(shape) < 3 or same_memory(shape) or low.constant(value) is not None:
        return 0.0
    return _STEP + 2.0 * ITEMSIZE.get(low.dtype(value), 8) * prod(shape) / _CONVERSION_RATE


class _Cut:
    """The network: its source is `row`, its sink `cl`."""

    ROW, CL = "row", "cl"

    def __init__(self) -> None:
        self._net = MinCut(self.ROW, self.CL)

    def edge(self, start: Hashable, end: Hashable, cost: float) -> None:
        """Pay `cost` if `start` is labelled row and `end` cl."""
        if start != end and cost > 0.0:
            self._net.edge(start, end, UNBOUNDED if cost == inf else round(cost))

    def tie(self, a: Hashable, b: Hashable) -> None:
        """The same label for both."""
        self.edge(a, b, inf)
        self.edge(b, a, inf)

    def conversion(self, vertex: int, start: Hashable, readers: list[Hashable], cost: float) -> None:
        """Pay `cost` once if any reader is labelled differently from `start`; `vertex` is a name for two new vertices."""
        if cost == 0.0:
            return
        wants_cl, wants_row = (vertex, "cl"), (vertex, "row")
        self.edge(start, wants_cl, cost)
        self.edge(wants_row, start, cost)
        for reader in readers:
            self.edge(wants_cl, reader, inf)
            self.edge(reader, wants_row, inf)

    def channels_last(self) -> set[Hashable]:
        """The vertices that are labelled cl."""
        return self._net.sink_side()


def plan_layouts(low: Lowering, choose: Chooser) -> dict[ir.Node, Layout]:
    """The layout of every node that can compute channels last; nodes that are not listed compute in row order.

    `choose(node, low)` is the node's choice. Deferred elementwise nodes (fusion.py) are computed by their reader, in its layout.
    """
    choices = {node: choose(node, low) or ROW_ONLY for node in low.graph}
    labelled = [node for node, choice in choices.items() if "cl" in choice.cost]
    if not any(c.cost.get("cl", inf) < c.cost.get("row", inf) or c.out == "cl" for c in choices.values()):
        return dict.fromkeys(labelled, "row")  # row order everywhere is the cheapest
    cut = _Cut()
    number = {node: index for index, node in enumerate(choices)}
    for node, choice in choices.items():
        cut.edge(_Cut.ROW, number[node], choice.cost.get("cl", inf))
        cut.edge(number[node], _Cut.CL, choice.cost.get("row", inf))

    def made_in(value: ir.Value) -> Hashable:
        """The vertex whose label is the layout a value is produced in."""
        producer = value.producer()
        return _Cut.ROW if producer is None else choices[producer].out or number[producer]

    values = [*low.graph.inputs, *(out for node in choices for out in node.outputs)]
    for index, value in enumerate(values):
        start, readers = made_in(value), [number[node] for node, _ in value.uses() if not choices[node].free]
        if value.producer() in low.deferred:
            for reader in readers:
                cut.tie(start, reader)
            continue
        cost = move_time(low, value) if readers or value.is_graph_output() else 0.0
        cut.conversion(-1 - index, start, readers + [_Cut.ROW] * value.is_graph_output(), cost)
    for node, choice in choices.items():
        if choice.follows and node.inputs[0] is not None:
            cut.tie(number[node], made_in(node.inputs[0]))
    last = cut.channels_last()
    return {node: "cl" if number[node] in last else "row" for node in labelled}
