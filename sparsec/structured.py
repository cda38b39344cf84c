"""The recipe's section `structure`: what goes as a whole before anything is coded (docs/recipes.md).

structure:
  channels: 30%           # of every group of channels that belong together
  heads: 25%              # of every attention's heads
  score: flap
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sparsec.selectors import Selectors

__all__ = ["Structure"]


class Structure(BaseModel):
    """Structured removal. Shares are `30%` or 0.3, from 0 to below 100 %.

    channels, heads: how much goes of each group of channels or heads that belong together (`scope: global`: of all groups
    together, by standardised scores). score: `magnitude` (squared norm of the weights that would go), `flap` (what is lost once
    biases stand in: variance of a channel times the weights that read it; needs calibration inputs), `auto`: flap where there are
    some. compensate: what stays makes up for what went: `bias` (means), `weights` (least squares on the calibration inputs, biases
    too), `none`; `auto`: weights where there are calibration inputs. slice: share of a transformer's hidden
    width that goes, in a basis of principal directions (SliceGPT). depth: how many residual branches are bypassed, of the kind
    `branches`: those the outputs miss least. zero_channels: channels that are constant, or that nobody reads, go first; exact.
    rms_norm: LayerNormalization becomes RMSNormalization where that is exact and free. ignore: selectors of weights whose outputs
    all stay, and whose branches are not bypassed (`slice` takes the whole stream or nothing).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    channels: float = 0.0
    heads: float = 0.0
    score: Literal["auto", "magnitude", "flap"] = "auto"
    scope: Literal["layer", "global"] = "layer"
    compensate: Literal["auto", "none", "bias", "weights"] = "auto"
    damping: float = Field(default=0.01, ge=0)
    """Added to the diagonal of second moments, as a share of its mean."""
    slice: float = 0.0
    depth: int = Field(default=0, ge=0)
    branches: Literal["any", "attention", "feedforward"] = "any"
    zero_channels: bool = False
    rms_norm: bool = False
    ignore: Selectors = ()

    @field_validator("channels", "heads", "slice", mode="before")
    @classmethod
    def _share(cls, value: Any) -> float:
        share = value
        if isinstance(value, str) and value.strip().endswith("%"):
            try:
                share = float(value.strip()[:-1]) / 100
            except ValueError:
                share = None
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"{value!r} is no share; write '30%' or 0.3, from 0 to below 100 % (something must stay)")
        return float(share)

    @property
    def needs_calibration(self) -> str:
        """The first setting that cannot do without calibration inputs, or ''."""
        for key, wanted in (("score", "flap"), ("compensate", "bias"), ("compensate", "weights")):
            if getattr(self, key) == wanted:
                return f"{key}: {wanted}"
        return "slice" if self.slice else "depth" if self.depth else ""
