"""Which rules lower which op, from most to least specialised: the first rule that does not refuse wins."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from sparsec.codegen.context import Rule


def rules_for(node: ir.Node) -> Sequence[Rule]:
    """The rules to ask for this node, in order."""
    return TABLE.get((node.domain, node.op_type), ())


TABLE: dict[tuple[str, str], tuple[Rule, ...]] = {}
