"""How long a step will take: the model behind choices that are not measured.

A step reads and writes its arguments, does floating-point operations and, where its weights are coded, decodes weights.
Arithmetic and memory overlap, so the slower of the two counts; decoding competes with arithmetic for the same units and
adds to it. The rates are the machine's (machine.py); what a kernel family reaches of them is in `_SHARE` and `_DECODE`, fitted
to measurements of those kernels: good to about a factor of two, enough to tell clear winners from losers. Tuning measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsec.codegen.kernels.coded_gemv import table_entries
from sparsec.codegen.kernels.gemm import tiling
from sparsec.codegen.machine import Machine
from sparsec.codegen.program import ITEMSIZE, Step
from sparsec.target import Target

__all__ = ["Work", "operations_at_peak", "predict", "step_seconds", "work"]

_SHARE = {
    "bit_gemv": 0.3, "coded_gemv": 0.3, "dense": 0.85, "direct": 0.6, "gemm": 0.8, "gemv": 0.5, "spmm": 0.4, "token_strips": 0.55,
    "winograd": 0.6,
}  # fmt: skip
"""Share of the multiply-add peak that a family reaches on large products; others: `_OTHER_SHARE`."""
_OTHER_SHARE = 0.1
_ENTRIES_IN_TIME = {8: 16, 16: 64}
"""Entries of a table that coded_gemv.py looks up in the time of one, by lanes; larger ones take in proportion."""
_LANES_OF_PICKED = 0.4
"""Lanes that spmv.py, which loads its activations one by one, keeps as busy as multiply-adds at the peak would."""
_NARROW_TILE = 0.5
"""Vectors of multiplications that a stored weight costs in spmm.py where its tile has one or two of them."""
_DECODE = {"dense": 10.0, "strip": 30.0, "element": 110.0}
"""Floating-point operations that one decoded weight is worth, by how its positions are stored (panels.py)."""
_CALL_S = 3e-7
"""A kernel call costs this much before it does anything."""


@dataclass(frozen=True)
class Work:
    """What one run of a step does: floating-point operations, weights decoded, bytes of its arguments."""

    operations: float
    decoded: float
    nbytes: float


def work(step: Step, target: Target) -> Work:
    """The work of a step, from its parameters and signature."""
    moved = sum(arg.size * ITEMSIZE[arg.dtype] for arg in step.signature.args if arg.role != "work")
    return Work(float(step.signature.cost), _decoded(step.spec.family, step.spec.params, target), float(moved))


def _decoded(family: str, params: Mapping[str, Any], target: Target) -> float:
    """gemm.py decodes a panel of a coded weight for every block of rows of A."""
    if family != "gemm" or params["b"]["kind"] != "coded":
        return 0.0
    return float(params["batch"] * tiling(params, target).blocks * params["n"] * params["k"])


def step_seconds(step: Step, target: Target, machine: Machine, threads: int = 1) -> float:
    """Predicted seconds of one run of a step on `threads` threads whose weights are where a loop over them would find them."""
    done = work(step, target)
    peak = machine.fma.of(threads, machine.threads) * min(1.0, target.vector_bits / machine.vector_bits)
    decode = 0.0
    if done.decoded:
        decode = done.decoded * _DECODE[step.spec.params["b"]["decode"]["kind"]] / peak
    arithmetic = done.operations / (_share(step, target) * peak) + decode
    return _CALL_S + max(arithmetic, done.nbytes / machine.read_rate(done.nbytes, threads))


def operations_at_peak(step: Step, target: Target) -> float:
    """The operations that the multiply-add peak would do while the step runs; of families without a known share, the step's own."""
    known = step.spec.family == "spmv" or step.spec.family in _SHARE
    return step.signature.cost / _share(step, target) if known else float(step.signature.cost)


def _share(step: Step, target: Target) -> float:
    """What a step reaches of the multiply-add peak, in the operations of its signature."""
    if step.spec.family == "spmv":
        return _LANES_OF_PICKED / target.lanes
    if step.spec.family == "coded_gemv":
        entries = table_entries(step.spec.params)
        return _SHARE["coded_gemv"] * min(1.0, _ENTRIES_IN_TIME[target.lanes] / max(1, entries))
    share = _SHARE.get(step.spec.family, _OTHER_SHARE)
    if step.spec.family != "spmm":
        return share
    pixels, most = step.spec.params["pixels"], step.spec.params["vectors"]
    vectors = -(-pixels // target.lanes)
    tiles = -(-vectors // most)
    done = vectors + (_NARROW_TILE * tiles if vectors <= 2 * tiles else 0)
    return float(share * pixels / (done * target.lanes))


def predict(steps: Iterable[Step], target: Target, machine: Machine, threads: int = 1) -> float:
    """Predicted seconds of one run of some steps, one after the other."""
    return sum(step_seconds(step, target, machine, threads) for step in steps)
