"""Which rules lower which op, from most to least specialised: the first rule that does not refuse wins."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from sparsec.codegen.context import Rule
from sparsec.codegen.kernels.depthwise import lower_depthwise
from sparsec.codegen.kernels.pool import lower_global_pool, lower_pool


def rules_for(node: ir.Node) -> Sequence[Rule]:
    """The rules to ask for this node, in order."""
    return TABLE.get((node.domain, node.op_type), ())


TABLE: dict[tuple[str, str], tuple[Rule, ...]] = {
    ("", "AveragePool"): (lower_pool,),
    ("", "Conv"): (lower_depthwise,),
    ("", "GlobalAveragePool"): (lower_global_pool,),
    ("", "GlobalMaxPool"): (lower_global_pool,),
    ("", "MaxPool"): (lower_pool,),
    ("sparsec", "Conv"): (lower_depthwise,),
}
