"""Quantisation with calibration data: codes, scales and codebooks that keep a layer's outputs.

`quantise` is what a pipeline calls; the others are its parts, and ancestors to compare with. All are pure functions of a weight [N, K],
the second moment [K, K] of its inputs, a scheme and a keep-mask, and give an `EncodedWeight`.
"""

from sparsec.passes.quantise.awq import Part, input_scales
from sparsec.passes.quantise.compensate import compensate
from sparsec.passes.quantise.descent import descend
from sparsec.passes.quantise.flexround import flexround
from sparsec.passes.quantise.gpfq import follow_paths
from sparsec.passes.quantise.joint import learn_jointly
from sparsec.passes.quantise.refit import refit
from sparsec.passes.quantise.solve import quantise
from sparsec.passes.quantise.support import on_support

__all__ = [
    "Part",
    "compensate",
    "descend",
    "flexround",
    "follow_paths",
    "input_scales",
    "learn_jointly",
    "on_support",
    "quantise",
    "refit",
]
