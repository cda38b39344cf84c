"""Units that can go without a trace: whoever reads them reads a constant, which its bias takes over, or multiplies them by zero."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.calibrate.biases import add_to_bias, own_bias
from sparsec.passes.structure.axes import Reader, sizes
from sparsec.passes.structure.constants import Known, constant_channels, padded
from sparsec.passes.structure.groups import Coupling, Family
from sparsec.passes.structure.moments import linear_use

__all__ = ["Dead", "dead_units", "fold"]


@dataclass(eq=False)
class Dead:
    """gone: families and the units that can go; all_but_one: families of which one unit stays though it could go too; shifts: by
    node, float64 [outputs], what the bias of a layer that reads them gains."""

    gone: list[tuple[Family, NDArray[np.intp]]] = field(default_factory=list)
    all_but_one: list[Family] = field(default_factory=list)
    shifts: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def dead_units(model: ir.Model, coupling: Coupling) -> Dead:
    """Find them in a canonical graph; each is looked at by itself, and all may go together."""
    known, found = constant_channels(model), Dead()
    for family in coupling.families:
        if family.opaque or not family.readers:
            continue
        alive = np.zeros(family.size, bool)
        for reader, units in family.reads():
            good = _harmless(reader, known)
            alive[units[(units >= 0) & ~good]] = True
        units = np.flatnonzero(~alive)
        if len(units) == family.size:
            found.all_but_one.append(family)
            units = units[1:]
        if not len(units):
            continue
        found.gone.append((family, units))
        for reader, mine in family.reads():
            shift = _shift(reader, known, np.isin(mine, units))
            name = reader.node.name or ""
            found.shifts[name] = found.shifts.get(name, 0.0) + shift
    return found


def fold(model: ir.Model, name: str, shift: NDArray[np.float64]) -> None:
    """Add to the bias of a layer, which gets one if it has none; nothing where all is 0."""
    if not shift.any():
        return
    use = linear_use(next(node for node in model.graph if node.name == name))
    assert use is not None
    add_to_bias(model, own_bias(model, use, len(shift)), shift.astype(np.float32))


def _weight(reader: Reader) -> NDArray[np.float64]:
    """[groups, outputs / groups, channels / groups, places of the kernel]."""
    use = linear_use(reader.node)
    assert use is not None
    tensor = reader.node.inputs[1]
    assert tensor is not None
    assert tensor.const_value is not None
    array = tensor.const_value.numpy().astype(np.float64)
    if reader.node.op_type != "Conv":
        return np.asarray((array.T if use.flipped else array)[None, :, :, None])
    groups = reader.node.attributes.get_int("group", 1)
    return np.asarray(array.reshape(groups, -1, array.shape[1], int(np.prod(array.shape[2:]))))


def _values(reader: Reader, known: dict[ir.Value, Known], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """What is known of the channels that a layer reads, [groups, channels / groups]."""
    x = reader.node.inputs[0]
    assert x is not None
    place = 1 if reader.node.op_type == "Conv" else len(sizes(x)) - 1
    axis, values = known.get(x, (place, np.full(sizes(x)[place], np.nan)))
    if axis != place:
        values = np.full(sizes(x)[place], np.nan)
    return np.asarray(values.reshape(shape), np.float64)


def _harmless(reader: Reader, known: dict[ir.Value, Known]) -> NDArray[np.bool_]:
    """For each channel of a group, whether all groups can do without it."""
    weight = _weight(reader)
    values = _values(reader, known, (weight.shape[0], weight.shape[2]))
    constant = (values == 0) if padded(reader.node) else ~np.isnan(values)
    found: NDArray[np.bool_] = ((weight == 0).all((1, 3)) | constant).all(0)
    return found


def _shift(reader: Reader, known: dict[ir.Value, Known], gone: NDArray[np.bool_]) -> NDArray[np.float64]:
    weight = _weight(reader)
    values = _values(reader, known, (weight.shape[0], weight.shape[2]))
    values = np.where(np.isnan(values) | ~gone, 0.0, values)
    return np.asarray(np.einsum("gnck,gc->gn", weight, values).reshape(-1))
