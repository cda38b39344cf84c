"""Which rules lower which op for a GPU: rules of GPU families first, then those of the processor's table that lead to plain loops.

A rule of the processor's table appends calls of processor families; `FAMILIES` names those that have a GPU family with the same
parameters. What is left runs unit by unit on threads (generic.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Rule
from sparsec.codegen.cuda.convolutions import CONVOLUTIONS
from sparsec.codegen.cuda.kernels.attention import LARGEST_HEAD
from sparsec.codegen.cuda.kernels.depthwise import lower_depthwise
from sparsec.codegen.cuda.kernels.relax import lower_relax
from sparsec.codegen.cuda.matmuls import lower_gemm, lower_matmul
from sparsec.codegen.cuda.products import PRODUCTS
from sparsec.codegen.kernels import table as processor
from sparsec.codegen.kernels.bit_gemv import lower_bit_gemv
from sparsec.codegen.kernels.coded_gemv import lower_coded_gemv
from sparsec.codegen.kernels.conv import lower_conv as lower_panels_conv
from sparsec.codegen.kernels.conv import lower_direct
from sparsec.codegen.kernels.dense import lower_dense
from sparsec.codegen.kernels.gemv import lower_gemv
from sparsec.codegen.kernels.matmul import lower_fused_matmul
from sparsec.codegen.kernels.pixel import as_matmul
from sparsec.codegen.kernels.relax import lower_relax as lower_processor_relax
from sparsec.codegen.kernels.sparse_int8 import lower_sparse_int8
from sparsec.codegen.kernels.spmm_rules import lower_sparse_conv, lower_sparse_matmul, lower_sparse_rows
from sparsec.codegen.kernels.token_strips import lower_token_strips
from sparsec.codegen.kernels.vector_gemv import lower_vector_gemv
from sparsec.codegen.layouts import Choice

# Rules whose kernels are made for the processor's vectors and caches.
_PROCESSOR_ONLY = frozenset([
    lower_bit_gemv, lower_coded_gemv, lower_dense, lower_direct, lower_fused_matmul, lower_gemv, lower_panels_conv,
    lower_sparse_conv, lower_sparse_int8, lower_sparse_matmul, lower_sparse_rows, lower_token_strips, lower_vector_gemv,
])  # fmt: skip

TABLE: dict[tuple[str, str], tuple[Rule, ...]] = {
    ("", "Gemm"): (lower_gemm,),
    ("", "MatMul"): (lower_matmul, lower_relax),
    ("sparsec", "Conv"): (as_matmul(PRODUCTS), lower_depthwise, *CONVOLUTIONS),
    ("sparsec", "MatMul"): PRODUCTS,
}

# Processor family -> the GPU family that takes the same parameters.
FAMILIES: dict[str, str] = {
    **{
        family: f"cuda.{family}"
        for family in (
            "copy",
            "depthwise",
            "elementwise",
            "gather",
            "global_pool",
            "lookup",
            "norm",
            "pool",
            "reduce",
            "softmax",
        )
    },
    "gemm": "cuda.product",
}

_CHANNELS_LAST = Choice({"cl": 0.0})
_IMAGES = frozenset([("", "AveragePool"), ("", "Conv"), ("", "MaxPool")])
# Whose kernels for a processor also take tokens that lie side by side.
_TOKENS = frozenset(
    [("sparsec", "MatMul"), ("sparsec", "Attention")]
    + [("", name) for name in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")]
)


def family_for(family: str, params: Mapping[str, Any]) -> str:
    """The family that computes a step which a rule of the processor's table made."""
    if family == "attention":
        return "cuda.attention" if max(params["d"], params["dv"]) <= LARGEST_HEAD else family
    return FAMILIES.get(family, family)


def rules_for(node: ir.Node) -> Sequence[Rule]:
    """The rules to ask for this node, in order."""
    key = (node.domain, node.op_type)
    if key in TABLE:
        return TABLE[key]
    rules = [rule for rule in processor.rules_for(node) if rule not in _PROCESSOR_ONLY]
    return [lower_relax if rule is lower_processor_relax else rule for rule in rules]


def choice_of(node: ir.Node, low: Lowering) -> Choice | None:
    """The layouts this node can compute in: images channels last, where threads side by side read neighbouring channels."""
    if (node.domain, node.op_type) == ("sparsec", "Conv"):
        x, out = node.inputs[0], node.outputs[0]
        assert x is not None
        one_pixel = prod(low.shape(x)[2:]) * prod(low.shape(out)[2:]) == 1  # the same in both layouts
        return Choice({"row": 0.0}, free=True) if one_pixel else _CHANNELS_LAST
    if (node.domain, node.op_type) in _TOKENS:
        return None
    choice = processor.choice_of(node, low)
    if choice is not None and "cl" in choice.cost and (node.domain, node.op_type) in _IMAGES:
        return _CHANNELS_LAST
    return choice
