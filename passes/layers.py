"""The records of what became of each weight, and of what went before weights were coded."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LayerRecord:
    """One weight: its scheme, or the reason why it is dense, and what that costs.

    name: the tensor; node: the first node that reads it; op: that node's operator (`DepthwiseConv` for depthwise Conv);
    shape: as ONNX has it; zeros: fraction of elements that are zero after compression; bits_per_weight and nbytes count
    everything stored; nmse: |W' - W|^2 / |W|^2 of the weight, 0 when exact.
    """

    name: str
    node: str
    op: str
    shape: tuple[int, ...]
    scheme: str
    reason: str
    zeros: float
    bits_per_weight: float
    nbytes: int
    nmse: float
    rule: int | None = None
    """Index of the rule in the recipe that chose the scheme; None when the weight is dense for another reason."""
    output_error: float | None = None
    """Of calibrated weights: the layer's squared error on the calibration inputs over its outputs' squares (means taken out)."""
    factors: dict[str, int] = field(default_factory=dict)
    """Of factored weights: the names under which the factors are stored, and how many values each has."""
    notes: str = ""
    """What was done to the layer besides (channels scaled, inputs reordered), and what was asked for and could not be."""
    activations: str = ""
    """How the product reads its inputs: "" for float32, else as in `sparsec.int8`."""


@dataclass
class Removal:
    """What structured removal did to one group of units, or why it did nothing.

    kind: `channels`, `heads`, `constant channels`, `branch`, `norm` (to RMSNormalization) or `hidden width`; name: the first weight
    of the group, or the node; units: how many there were; removed: how many went; nbytes: of weights that went with them (less
    what was added); reason: why fewer went than were asked for, or ''.
    """

    kind: str
    name: str
    units: int
    removed: int
    nbytes: int
    reason: str = ""
