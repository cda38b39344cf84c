"""A product as steps of a program: one, or one that sums up parts of the inputs side by side and one that adds the sums (join.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsec.codegen.context import Lowering, Tensor


def append(
    low: Lowering,
    family: str,
    params: Mapping[str, Any],
    ins: Sequence[Tensor],
    added: Sequence[Tensor],
    out: Tensor,
    size: tuple[int, int],
    names: tuple[str, str, str],
) -> None:
    """Append a product whose `params` say in how many `parts` it is. ins: its operands; added: what its end adds; size: rows and columns of
    `out`; names: of the node, its op, and a note."""
    (m, n), (node, op, note) = size, names
    if (parts := params.get("parts", 1)) == 1:
        low.call(family, params, [*ins, *added], [out], node=node, op=op, note=note)
        return
    sums = low.temp("uint32", (parts, m, n), name=f"{out.buffer.name}.parts")
    plain = {**params, "bias": False, "residual": False, "act": "", "act_params": []}
    low.call(family, plain, ins, [sums], node=node, op=op, note=note)
    finish = {key: params[key] for key in ("bias", "residual", "act", "act_params")}
    joined = {"m": m, "n": n, "parts": parts, "bits": True, **finish}
    low.call("cuda.join", joined, [sums, *added], [out], node=node, op=op, note="sum of the parts")
