"""Graph to graph, on onnx_ir: canonicalise, choose schemes, encode, fuse."""

from sparsec.passes.compression import Calibration
from sparsec.passes.layers import LayerRecord, Removal
from sparsec.passes.pipeline import Compressed, compress
from sparsec.passes.quantise_activations import fixed_products, float_activations
from sparsec.passes.stages import PassRecord

__all__ = [
    "Calibration",
    "Compressed",
    "LayerRecord",
    "PassRecord",
    "Removal",
    "compress",
    "fixed_products",
    "float_activations",
]
