"""onnxscript's rewriter, asked about a node only by the rules whose pattern ends in its operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import RewritePass, pattern

__all__ = ["rewrite"]


class _Anchored:
    """A rule that refuses nodes of other operators at once: the matcher takes thirty times longer to say no."""

    def __init__(self, rule: pattern.RewriteRule, operator: str) -> None:
        self._rule, self._operator = rule, operator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
        """As `RewriteRule.try_rewrite`."""
        return self._rule.try_rewrite(model, graph, node, **options) if node.op_type == self._operator else None


def rewrite(rules: Sequence[pattern.RewriteRule] | pattern.RewriteRuleSet) -> RewritePass:
    """The pass that applies `rules` in their order."""
    listed = rules.rules if isinstance(rules, pattern.RewriteRuleSet) else rules
    return RewritePass([_anchored(rule) for rule in listed])


def _anchored(rule: pattern.RewriteRule) -> Any:
    known = rule._target_pattern.output_nodes[0].op_identifier()
    return rule if known is None else _Anchored(rule, known[1])
