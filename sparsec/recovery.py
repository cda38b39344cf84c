"""The section `recover` of a recipe: how a compressed model is trained on, in its formats (docs/recipes.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Augment", "Recover"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Augment(_Strict):
    """Changes of image inputs [B, C, H, W], drawn anew in every epoch: mirrored left to right (half of them), moved by up to
    `shift` pixels either way, the border repeated."""

    flip: bool = False
    shift: int = Field(default=0, ge=0)


class Recover(_Strict):
    """Training of what compression left, against the uncompressed model (teacher) on the calibration inputs, or against labels.

    method: `full` trains stored values, scales, codebooks, biases and norms; `perp` biases, norms and a low-rank update of the stored
    values (`rank`). loss: `output` compares all outputs with the teacher's, `layers` the results of compressed layers too, `kl`
    the distributions over the last axis of the first output, `labels` takes labels of classes instead of a teacher; `custom` is a
    function that only the API can give. epochs: passes over the samples; lr: the first learning rate, a share of each value's
    size a step (cosine to 0); batch: samples a step. samples: the most that are read. held_out: the share of samples that are not
    trained on; the epoch that does best on them is kept, the start among them.
    """

    method: Literal["full", "perp"] = "full"
    loss: Literal["output", "layers", "kl", "labels", "custom"] = "output"
    epochs: int = Field(default=10, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    batch: int = Field(default=32, ge=1)
    samples: int = Field(default=4096, ge=2)
    rank: int = Field(default=4, ge=1)
    held_out: float = Field(default=0.1, gt=0, lt=1)
    augment: Augment = Augment()
    seed: int = Field(default=0, ge=0)
