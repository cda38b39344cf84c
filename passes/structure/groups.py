"""The units of structured removal: sets of indices of many tensors that go together or stay (Fang, Ma, Song, Mi, Wang, "DepGraph:
Towards Any Structural Pruning", 2023). A unit is a connected component of the graph of ties."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.structure.axes import Labels, Reader, Slot, sizes
from sparsec.passes.structure.coupling import labelled

__all__ = ["Coupling", "Family", "Tied", "couple", "output_axis"]

LINEAR = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Tied:
    """What one family takes from one axis of one constant: unit u goes with the indices where `units` is u (-1: another's)."""

    slot: Slot
    axis: int
    units: NDArray[np.int64]

    def outputs_left(self, gone: NDArray[np.intp]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Linear layers whose outputs this axis numbers, by node, and which of them stay when the units `gone` go."""
        for node, index in self.slot.readers:
            if index == 1 and node.op_type in LINEAR and len(self.slot.axes) > 1 and self.axis == output_axis(node):
                yield node.name or "", ~np.isin(self.units, gone)


@dataclass(frozen=True, eq=False)
class Family:
    """Units that take indices of the same axes: the channels of a layer and of all that is tied to it.

    name: of the first weight, in order of execution, whose outputs they are. heads: units are heads of an attention. components:
    int64 [units], sorted. costs: weights that go with a unit as things are. readers: linear layers that sum over the units.
    opaque: a product without a constant weight sums over them.
    """

    name: str
    heads: bool
    components: NDArray[np.int64]
    tied: list[Tied]
    readers: list[Reader]
    opaque: bool
    read_units: list[NDArray[np.int64]]

    def reads(self) -> Iterator[tuple[Reader, NDArray[np.int64]]]:
        """The readers, each with the unit of each of its channels (-1: another family's)."""
        return zip(self.readers, self.read_units, strict=True)

    @property
    def size(self) -> int:
        return len(self.components)

    def units_of(self, component: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each component number the family's unit, -1 for others."""
        place = np.searchsorted(self.components, component).clip(max=self.size - 1)
        return np.where(self.components[place] == component, place, -1)

    def cost(self) -> float:
        """Elements of constants that go with a unit, on average."""
        total = 0.0
        for tied in self.tied:
            whole = sizes(tied.slot.value)
            total += float(np.prod(whole)) / whole[tied.axis] * np.count_nonzero(tied.units >= 0)
        return total / self.size


@dataclass(frozen=True, eq=False)
class Coupling:
    """component: int64, of every label. families: what can be removed. stuck: name of a weight -> why its outputs all stay."""

    labels: Labels
    component: NDArray[np.int64]
    families: list[Family]
    stuck: dict[str, str]


def couple(model: ir.Model) -> Coupling:
    """Find the families of a canonical graph, in order of execution."""
    labels = labelled(model)
    component = _components(labels)
    pinned = _pinned(labels, component)
    members: dict[int, list[tuple[int, int]]] = defaultdict(list)
    places = [(slot.axes, -1 - number) for number, slot in enumerate(labels.slots)]
    places += [(tuple(axes), number) for number, axes in enumerate(labels.of.values())]
    for axes, number in places:
        for axis, one in enumerate(axes):
            if one is not None:
                for unit in np.unique(component[one]):
                    if unit not in pinned:
                        members[int(unit)].append((number, axis))
    by_places: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for unit in sorted(members):
        by_places[tuple(members[unit])].append(unit)
    heads = _set(component, labels.heads)
    opaque = _set(component, labels.opaque)
    families = []
    for key, units in by_places.items():
        if any(number < 0 for number, _ in key):
            families.append(_family(labels, component, np.array(units), key, heads, opaque))
    order = {slot.value: place for place, slot in enumerate(labels.slots)}
    families.sort(key=lambda family: min((order[t.slot.value], int(family.components[0])) for t in family.tied))
    return Coupling(labels, component, families, _stuck(labels, component, pinned))


def _components(labels: Labels) -> NDArray[np.int64]:
    graph = nx.Graph()
    for one, other in labels.ties:
        graph.add_edges_from(zip(one.tolist(), other.tolist(), strict=True))
    component = np.arange(labels.count, dtype=np.int64)
    for tied in nx.connected_components(graph):
        component[list(tied)] = min(tied)
    return component


def _pinned(labels: Labels, component: NDArray[np.int64]) -> dict[int, str]:
    found: dict[int, str] = {}
    for one, why in labels.pins:
        for number in np.unique(component[one]).tolist():
            if not found.get(number):
                found[number] = why
    return found


def _set(component: NDArray[np.int64], axes: list[NDArray[np.int64]]) -> set[int]:
    return {number for axis in axes for number in component[axis].tolist()}


def _family(
    labels: Labels,
    component: NDArray[np.int64],
    units: NDArray[np.int64],
    key: tuple[tuple[int, int], ...],
    heads: set[int],
    opaque: set[int],
) -> Family:
    family = Family("", int(units[0]) in heads, units, [], [], any(int(unit) in opaque for unit in units), [])
    for number, axis in sorted(key, key=lambda place: (-place[0], place[1])):
        if number < 0:
            slot = labels.slots[-1 - number]
            one = slot.axes[axis]
            assert one is not None
            family.tied.append(Tied(slot, axis, family.units_of(component[one])))
    reads = [(reader, family.units_of(component[reader.inputs])) for reader in labels.readers]
    reads = [(reader, mine) for reader, mine in reads if (mine >= 0).any()]
    return replace(
        family, name=_name(family.tied), readers=[r for r, _ in reads], read_units=[mine for _, mine in reads]
    )


def _name(tied: list[Tied]) -> str:
    """The first weight whose outputs the units are; if there is none, the first constant."""
    weights = [one for one in tied if any(True for _ in one.outputs_left(np.zeros(0, np.intp)))]
    return (weights or tied)[0].slot.value.name or ""


def output_axis(node: ir.Node) -> int:
    """Which axis of its weight numbers the outputs of a linear layer."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1):
        return 0
    return 1


def _stuck(labels: Labels, component: NDArray[np.int64], pinned: dict[int, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for slot in labels.slots:
        for node, index in slot.readers:
            if index != 1 or node.op_type not in LINEAR or len(slot.axes) < 2:
                continue
            one = slot.axes[output_axis(node)]
            numbers = [] if one is None else component[one].tolist()
            if all(number in pinned for number in numbers):
                reasons = [pinned[number] for number in numbers if pinned[number]]
                found.setdefault(slot.value.name or "", reasons[0] if reasons else "tied to what cannot lose channels")
    return found
