"""Graph to graph, on onnx_ir: canonicalise, choose schemes, encode, fuse."""

from sparsec.passes.layers import LayerRecord
from sparsec.passes.pipeline import Compressed, PassRecord, canonicalise, compress
from sparsec.passes.quantise_activations import float_activations

__all__ = ["Compressed", "LayerRecord", "PassRecord", "canonicalise", "compress", "float_activations"]
