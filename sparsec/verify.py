"""Verification: outputs of what sparsec made against stock onnxruntime on the same inputs.

A dense program must equal the original model within DENSE_BOUND. A compressed program must equal the portable ONNX of
the compressed graph within COMPRESSED_BOUND; its distance to the original is the price of the compression and is
reported, not bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.errors import VerificationError

Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

DENSE_BOUND = 1e-4
COMPRESSED_BOUND = 1e-3
# Where activations are rounded to int8, the last bit of a float decides between two steps now and then, and the layers behind
# multiply what it changes: two correct programs then differ by about as much as the rounding changes the result.
_INT8_NOISES = 3.0
# Largest relative error over the random walk of the roundings, in models of the zoo: 1.2 (MobileNetV2), 0.5 (the story models); of
# fixed-point products 2.1 (MiniLM with half of its weights), 1.6 (the story models).
_HALF_MARGIN = 8.0


@dataclass(frozen=True)
class OutputComparison:
    """One output: largest absolute difference, and the same over the largest magnitude of the reference."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    absolute: float
    relative: float

    def within(self, bound: float | None) -> bool:
        """Whether the relative error is a number, and below the bound if there is one."""
        return math.isfinite(self.relative) and (bound is None or self.relative <= bound)


@dataclass(frozen=True)
class Verification:
    """Result of one verification. `bound` None: the error is reported only. `original`: the same outputs against the
    original model, where that is not the reference."""

    subject: str
    reference: str
    inputs: str
    bound: float | None
    outputs: tuple[OutputComparison, ...]
    original: tuple[OutputComparison, ...] = ()

    @property
    def passed(self) -> bool:
        return all(row.within(self.bound) for row in self.outputs)

    @property
    def error(self) -> float:
        """Largest relative error of all outputs against the reference."""
        return max((row.relative for row in self.outputs), default=0.0)

    @property
    def error_to_original(self) -> float:
        """Largest relative error against the original model."""
        return max((row.relative for row in self.original or self.outputs), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """JSON-able; errors to three significant digits."""
        return {
            "subject": self.subject,
            "reference": self.reference,
            "inputs": self.inputs,
            "bound": self.bound,
            "passed": self.passed,
            "error": rounded(self.error),
            "error_to_original": rounded(self.error_to_original),
            "outputs": [
                {
                    "name": row.name,
                    "dtype": row.dtype,
                    "shape": list(row.shape),
                    "absolute": rounded(row.absolute),
                    "relative": rounded(row.relative),
                }
                for row in self.outputs
            ],
        }

    def table(self) -> str:
        """Plain text, one line per output."""
        lines = [f"{'output':24} {'shape':18} {'dtype':8} {'max |a-b|':>10} {'relative':>10}  {'bound':>7}"]
        for row in self.outputs:
            verdict = "" if row.within(self.bound) else "  FAILED"
            bound = "-" if self.bound is None else f"{self.bound:.0e}"
            shape = "x".join(map(str, row.shape)) or "scalar"
            lines.append(
                f"{row.name:24} {shape:18} {row.dtype:8} {row.absolute:10.3g} {row.relative:10.3g}  {bound:>7}{verdict}"
            )
        return "\n".join(lines)

    def summary(self) -> str:
        """One line: who was compared with whom, on which inputs, and the verdict."""
        allowed = "error reported, no bound" if self.bound is None else f"within {self.bound:g}"
        verdict = allowed if self.passed else "FAILED"
        return f"{self.subject} against {self.reference} (inputs: {self.inputs}): {verdict}"

    def check(self) -> Verification:
        """Return self; raise VerificationError with the table of outputs unless passed."""
        if self.passed:
            return self
        raise VerificationError(
            f"{self.subject} differs from {self.reference} (inputs: {self.inputs}); relative = max|a-b| / max|b|:\n"
            f"{self.table()}\nTry other inputs (--inputs x.npz), or --no-verify to have the output anyway."
        )


def rounded(value: float) -> float | None:
    """Three significant digits; None for infinities and NaN, which JSON has not."""
    return float(f"{value:.3g}") if math.isfinite(value) else None


def compare(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> tuple[OutputComparison, ...]:
    """Compare outputs by name: relative error = max|a-b| / max|b| over each output, in float64.

    Equal infinities and NaNs at equal places count as equal; a missing output, another shape or dtype, or a NaN on one side
    only is an infinite error.
    """
    rows = []
    for name, b in wanted.items():
        b = np.asarray(b)
        a = np.asarray(found[name]) if name in found else None
        if a is None or a.shape != b.shape or a.dtype != b.dtype:
            rows.append(OutputComparison(name, str(b.dtype), b.shape, math.inf, math.inf))
            continue
        absolute, relative = _errors(a, b)
        rows.append(OutputComparison(name, str(b.dtype), b.shape, absolute, relative))
    return tuple(rows)


def _errors(a: Array, b: Array) -> tuple[float, float]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    differs = ~((x == y) | (np.isnan(x) & np.isnan(y)))
    gaps = x[differs] - y[differs]
    if not np.isfinite(gaps).all():
        return math.inf, math.inf
    absolute = float(np.abs(gaps).max(initial=0.0))
    largest = float(np.abs(y[np.isfinite(y)]).max(initial=0.0))
    return absolute, absolute / largest if largest else absolute


def int8_bound(rounded: Mapping[str, Array], floating: Mapping[str, Array]) -> float:
    """Bound of a compressed program with int8 activations: `_INT8_NOISES` times what the rounding changes.

    Args:
        rounded, floating: outputs of the reference with and without the rounding of activations, on the inputs of the verification.
    """
    noise = max((row.relative for row in compare(rounded, floating)), default=0.0)
    return max(COMPRESSED_BOUND, float(f"{_INT8_NOISES * noise:.2g}"))


def half_bound(storage: str, roundings: int) -> float:
    """Bound of a program that keeps values in `storage` ("float16", "bfloat16") between `roundings` kernels, or has so many products
    in 16-bit fixed point ("int16", sparsec/fixed.py).

    Each of them rounds its result once, by at most the unit roundoff u of the type (2^-11, 2^-8; sums of fixed-point products are
    about as near as float16); roundings of different kernels are independent, so that their errors add up like the steps of a random
    walk. _HALF_MARGIN is for what layers amplify.
    """
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "int16": 2.0**-11}[storage]
    return float(f"{_HALF_MARGIN * unit * math.sqrt(1 + roundings):.2g}")


def verify_run(
    run: Run,
    reference: Run,
    feed: Mapping[str, Array],
    *,
    bound: float | None,
    subject: str,
    against: str,
    inputs: str,
    original: Run | None = None,
) -> Verification:
    """Run both sides on `feed` and compare.

    Args:
        run, reference: arrays by input name in, arrays by output name out.
        bound: largest relative error allowed; None only reports.
        subject, against, inputs: words for the report and the error.
        original: the uncompressed model, where that is not the reference.

    Returns:
        The comparison; call `.check()` on it to raise VerificationError when it failed.
    """
    found = run(feed)
    return Verification(
        subject,
        against,
        inputs,
        bound,
        compare(found, reference(feed)),
        compare(found, original(feed)) if original is not None else (),
    )
