"""Which rules lower which op, from most to least specialised: the first rule that does not refuse wins."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from sparsec.codegen.context import Rule
from sparsec.codegen.kernels.conv import lower_conv
from sparsec.codegen.kernels.cumsum import lower_cumsum
from sparsec.codegen.kernels.depthwise import lower_depthwise
from sparsec.codegen.kernels.elements import lower_gather_elements, lower_scatter
from sparsec.codegen.kernels.elementwise import OPS, lower_elementwise
from sparsec.codegen.kernels.gather import lower_constant_gather, lower_gather, lower_gather_nd
from sparsec.codegen.kernels.gemv import lower_gemv
from sparsec.codegen.kernels.lookup import lower_lookup
from sparsec.codegen.kernels.matmul import lower_fused_matmul, lower_gemm, lower_matmul
from sparsec.codegen.kernels.movement import lower_concat, lower_depth_space, lower_pad, lower_tile, lower_trilu
from sparsec.codegen.kernels.norm import lower_instance_norm, lower_norm
from sparsec.codegen.kernels.onehot import lower_onehot
from sparsec.codegen.kernels.pool import lower_global_pool, lower_pool
from sparsec.codegen.kernels.recurrent import lower_recurrent
from sparsec.codegen.kernels.reduce import REDUCTIONS, lower_arg, lower_reduce
from sparsec.codegen.kernels.relax import lower_relax
from sparsec.codegen.kernels.resize import lower_resize
from sparsec.codegen.kernels.softmax import lower_softmax
from sparsec.codegen.kernels.spmm_rules import lower_sparse_conv, lower_sparse_matmul
from sparsec.codegen.kernels.topk import lower_topk
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
)


def rules_for(node: ir.Node) -> Sequence[Rule]:
    """The rules to ask for this node, in order."""
    return TABLE.get((node.domain, node.op_type), ())


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
    ("sparsec", "Conv"): (lower_depthwise, lower_sparse_conv, lower_conv),
    ("sparsec", "Gather"): (lower_lookup,),
    ("sparsec", "MatMul"): (lower_gemv, lower_sparse_matmul, lower_fused_matmul),
}
