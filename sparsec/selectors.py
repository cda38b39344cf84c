"""Selectors: how a recipe names weights.

A selector is, from the most to the least specific: the exact name of a node or weight, `re:` and a regular expression that
matches the whole name, `@first` or `@last` (in the order of execution), an operator (`Conv`, `DepthwiseConv`, `MatMul`, `Gemm`,
`Gather`), or `*`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

__all__ = ["OPERATORS", "Candidate", "Selectors", "did_you_mean", "specificity"]

OPERATORS = ("Conv", "DepthwiseConv", "MatMul", "Gemm", "Gather")
"""Operators whose weights a recipe can address; a depthwise convolution is also a `Conv`."""


class Candidate(BaseModel):
    """A weight a recipe can address: its name, the nodes that use it, their operators, its place in the order of execution."""

    model_config = ConfigDict(frozen=True)
    name: str
    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    is_first: bool = False
    is_last: bool = False


_EXACT, _REGEX, _PLACE, _DEPTHWISE, _OPERATOR, _GLOBAL, _NONE = 6, 5, 4, 3, 2, 1, 0


def specificity(selector: str, candidate: Candidate) -> int:
    """How specifically a selector matches, 0 if it does not."""
    if selector == candidate.name or selector in candidate.nodes:
        return _EXACT
    if selector.startswith("re:"):
        hit = any(re.fullmatch(selector[3:], name) for name in (candidate.name, *candidate.nodes))
        return _REGEX if hit else _NONE
    if selector in ("@first", "@last"):
        return _PLACE if (candidate.is_first if selector == "@first" else candidate.is_last) else _NONE
    if selector == "*":
        return _GLOBAL
    if selector in candidate.operators:
        return _DEPTHWISE if selector == "DepthwiseConv" else _OPERATOR
    return _NONE


def checked_selector(selector: str) -> str:
    if selector.startswith("re:"):
        try:
            re.compile(selector[3:])
        except re.error as error:
            raise ValueError(f"selector {selector!r} is not a regular expression: {error}") from None
    elif selector.startswith("@") and selector not in ("@first", "@last"):
        raise ValueError(f"selector {selector!r} is not known; @first and @last are")
    elif not selector:
        raise ValueError("an empty selector; use '*' for all weights")
    return selector


def did_you_mean(word: str, options: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(options), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _checked(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(checked_selector, value))


Selectors = Annotated[tuple[str, ...], BeforeValidator(_one_or_many), AfterValidator(_checked)]
"""A field of a recipe: one selector or several. Raises ValueError for what is none."""
