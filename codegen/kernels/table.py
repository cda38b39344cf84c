"""Which rules lower which op, from most to least specialised: the first rule that does not refuse wins."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Rule
from sparsec.codegen.kernels.attention_rules import attention_choice, lower_attention
from sparsec.codegen.kernels.bit_gemv import lower_bit_gemv
from sparsec.codegen.kernels.coded_gemv import lower_coded_gemv
from sparsec.codegen.kernels.conv import conv_choice, lower_conv, lower_direct, lower_planar
from sparsec.codegen.kernels.cumsum import lower_cumsum
from sparsec.codegen.kernels.dense import lower_dense
from sparsec.codegen.kernels.depthwise import depthwise_choice, lower_depthwise
from sparsec.codegen.kernels.elements import lower_gather_elements, lower_scatter
from sparsec.codegen.kernels.elementwise import OPS, elementwise_choice, lower_elementwise
from sparsec.codegen.kernels.gather import lower_constant_gather, lower_gather, lower_gather_nd
from sparsec.codegen.kernels.gemv import lower_gemv
from sparsec.codegen.kernels.lookup import lower_lookup
from sparsec.codegen.kernels.matmul import lower_fused_matmul, lower_gemm, lower_matmul
from sparsec.codegen.kernels.movement import (
    concat_choice,
    lower_concat,
    lower_depth_space,
    lower_pad,
    lower_tile,
    lower_trilu,
)
from sparsec.codegen.kernels.norm import lower_instance_norm, lower_norm, norm_choice
from sparsec.codegen.kernels.onehot import lower_onehot
from sparsec.codegen.kernels.pixel import as_matmul
from sparsec.codegen.kernels.pool import global_pool_choice, lower_global_pool, lower_pool, pool_choice
from sparsec.codegen.kernels.recurrent import lower_recurrent
from sparsec.codegen.kernels.reduce import REDUCTIONS, lower_arg, lower_reduce, reduce_choice
from sparsec.codegen.kernels.relax import lower_relax
from sparsec.codegen.kernels.resize import lower_resize, resize_choice
from sparsec.codegen.kernels.softmax import lower_softmax, softmax_choice
from sparsec.codegen.kernels.sparse_int8 import lower_sparse_int8
from sparsec.codegen.kernels.spmm_rules import (
    lower_sparse_conv,
    lower_sparse_matmul,
    lower_sparse_rows,
    sparse_conv_choice,
    sparse_matmul_choice,
)
from sparsec.codegen.kernels.token_strips import lower_token_strips
from sparsec.codegen.kernels.topk import lower_topk
from sparsec.codegen.kernels.vector_gemv import lower_vector_gemv
from sparsec.codegen.kernels.views import (
    lower_constant_of_shape,
    lower_expand,
    lower_identity,
    lower_range,
    lower_reshape,
    lower_shape,
    lower_slice,
    lower_split,
    lower_transpose,
    reshape_choice,
    transpose_choice,
)
from sparsec.codegen.layouts import FOLLOWS, Choice, Chooser


def rules_for(node: ir.Node) -> Sequence[Rule]:
    """The rules to ask for this node, in order."""
    return TABLE.get((node.domain, node.op_type), ())


_PRODUCTS: tuple[Rule, ...] = (
    lower_dense,
    lower_vector_gemv,
    lower_bit_gemv,
    lower_token_strips,
    lower_gemv,
    lower_sparse_int8,
    lower_coded_gemv,
    lower_sparse_rows,
    lower_sparse_matmul,
    lower_fused_matmul,
)

TABLE: dict[tuple[str, str], tuple[Rule, ...]] = {
    **{("", op): (lower_elementwise,) for op in sorted(OPS)},
    **{("", op): (lower_reduce,) for op in REDUCTIONS},
    ("", "AffineGrid"): (lower_relax,),
    ("", "ArgMax"): (lower_arg,),
    ("", "ArgMin"): (lower_arg,),
    ("", "AveragePool"): (lower_pool, lower_relax),
    ("", "BitShift"): (lower_relax,),
    ("", "Concat"): (lower_concat,),
    ("", "ConstantOfShape"): (lower_constant_of_shape,),
    ("", "Conv"): (lower_depthwise, lower_relax),
    ("", "ConvTranspose"): (lower_relax,),
    ("", "CumSum"): (lower_cumsum,),
    ("", "DepthToSpace"): (lower_depth_space,),
    ("", "DequantizeLinear"): (lower_relax,),
    ("", "Dropout"): (lower_identity,),
    ("", "DynamicQuantizeLinear"): (lower_relax,),
    ("", "Einsum"): (lower_relax,),
    ("", "Expand"): (lower_expand,),
    ("", "Flatten"): (lower_reshape,),
    ("", "GRU"): (lower_recurrent,),
    ("", "Gather"): (lower_constant_gather, lower_gather),
    ("", "GatherElements"): (lower_gather_elements,),
    ("", "GatherND"): (lower_gather_nd,),
    ("", "Gemm"): (lower_gemm,),
    ("", "GlobalAveragePool"): (lower_global_pool,),
    ("", "GlobalMaxPool"): (lower_global_pool,),
    ("", "GridSample"): (lower_relax,),
    ("", "Hardmax"): (lower_relax,),
    ("", "Identity"): (lower_identity,),
    ("", "InstanceNormalization"): (lower_instance_norm,),
    ("", "LRN"): (lower_relax,),
    ("", "LSTM"): (lower_recurrent,),
    ("", "LayerNormalization"): (lower_norm,),
    ("", "LogSoftmax"): (lower_softmax,),
    ("", "LpPool"): (lower_relax,),
    ("", "MatMul"): (lower_matmul, lower_relax),
    ("", "MatMulInteger"): (lower_relax,),
    ("", "MaxPool"): (lower_pool, lower_relax),
    ("", "MeanVarianceNormalization"): (lower_relax,),
    ("", "OneHot"): (lower_onehot,),
    ("", "Pad"): (lower_pad,),
    ("", "QuantizeLinear"): (lower_relax,),
    ("", "RMSNormalization"): (lower_norm,),
    ("", "RNN"): (lower_recurrent,),
    ("", "Range"): (lower_range,),
    ("", "Reshape"): (lower_reshape,),
    ("", "Resize"): (lower_resize, lower_relax),
    ("", "ScatterElements"): (lower_scatter,),
    ("", "ScatterND"): (lower_scatter,),
    ("", "Shape"): (lower_shape,),
    ("", "SimplifiedLayerNormalization"): (lower_norm,),
    ("", "Size"): (lower_shape,),
    ("", "Slice"): (lower_slice,),
    ("", "Softmax"): (lower_softmax,),
    ("", "SpaceToDepth"): (lower_depth_space,),
    ("", "Split"): (lower_split,),
    ("", "Squeeze"): (lower_reshape,),
    ("", "Tile"): (lower_tile,),
    ("", "TopK"): (lower_topk,),
    ("", "Transpose"): (lower_transpose,),
    ("", "Trilu"): (lower_trilu,),
    ("", "Unsqueeze"): (lower_reshape,),
    ("sparsec", "Attention"): (lower_attention,),
    ("sparsec", "Conv"): (
        as_matmul(_PRODUCTS),
        lower_depthwise,
        lower_planar,
        lower_direct,
        lower_sparse_conv,
        lower_conv,
    ),
    ("sparsec", "Gather"): (lower_lookup,),
    ("sparsec", "MatMul"): _PRODUCTS,
    ("sparsec", "Quantise"): (lower_elementwise,),
}

# The layouts a node can compute in: the first answer counts. What is not listed computes in row order.
CHOICES: dict[tuple[str, str], tuple[Chooser, ...]] = {
    **{("", op): (elementwise_choice,) for op in sorted(OPS)},
    **{("", op): (reduce_choice,) for op in REDUCTIONS},
    **{
        ("", op): (lambda node, low: FOLLOWS,)
        for op in ("DepthToSpace", "Dropout", "Identity", "Pad", "Slice", "SpaceToDepth", "Split", "Tile")
    },
    ("", "AveragePool"): (pool_choice,),
    ("", "Concat"): (concat_choice,),
    ("", "Conv"): (depthwise_choice,),
    ("", "Flatten"): (reshape_choice,),
    ("", "GlobalAveragePool"): (global_pool_choice,),
    ("", "GlobalMaxPool"): (global_pool_choice,),
    ("", "LayerNormalization"): (norm_choice,),
    ("", "LogSoftmax"): (softmax_choice,),
    ("", "MaxPool"): (pool_choice,),
    ("", "RMSNormalization"): (norm_choice,),
    ("", "Reshape"): (reshape_choice,),
    ("", "Resize"): (resize_choice,),
    ("", "SimplifiedLayerNormalization"): (norm_choice,),
    ("", "Softmax"): (softmax_choice,),
    ("", "Squeeze"): (reshape_choice,),
    ("", "Transpose"): (transpose_choice,),
    ("", "Unsqueeze"): (reshape_choice,),
    ("sparsec", "Attention"): (attention_choice,),
    ("sparsec", "Conv"): (depthwise_choice, sparse_conv_choice, conv_choice),
    ("sparsec", "MatMul"): (sparse_matmul_choice,),
    ("sparsec", "Quantise"): (elementwise_choice,),
}


def choice_of(node: ir.Node, low: Lowering) -> Choice | None:
    """The layouts this node can compute in, None for row order alone."""
    for chooser in CHOICES.get((node.domain, node.op_type), ()):
        if (choice := chooser(node, low)) is not None:
            return choice
    return None
